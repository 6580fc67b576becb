"""Does `shoal train encoder` read what it is given, and say what is wrong with it?"""

import json
from types import SimpleNamespace

import pytest
from shoal.cli import training
from shoal.cli.corpora import xquad
from shoal.cli.main import app
from typer.testing import CliRunner


class TrainingError(Exception):
    pass


@pytest.fixture
def calls(monkeypatch):
    """What the trainer was called with."""
    made = []

    def train_encoder(pairs, dev, out, settings, *, resume, report):
        if settings.steps == 13:
            raise TrainingError("there is no checkpoint")
        made.append({"pairs": pairs, "dev": dev, "settings": settings, "resume": resume})
        report(settings.steps, "loss 0.1")
        found = {"recall@10": 0.5}
        return SimpleNamespace(steps=settings.steps, loss=0.1, before=found, after=found)

    fake = SimpleNamespace(train_encoder=train_encoder, TrainingError=TrainingError)
    monkeypatch.setattr(training, "_training", lambda: fake)
    return made


@pytest.fixture
def pairs_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = [
        {"anchor": f"q{at}", "positive": f"p{at}", "negative_1": "n1", "negative_2": "n2"}
        for at in range(200)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(*words):
    return CliRunner().invoke(app, ["train", "encoder", *map(str, words)])


def test_a_file_and_settings(calls, pairs_file, tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text("batch: 4\nsteps: 9\ntemperature: {schedule: learnable}\n")
    options = ("--config", config, "--set", "queue.size=8", "--steps", 7, "--seed", 3, "--json")
    done = run(tmp_path / "out", "--pairs", pairs_file, *options)
    assert done.exit_code == 0, done.output
    (call,) = calls
    settings = call["settings"]
    assert (settings.steps, settings.seed, settings.batch, settings.queue.size) == (7, 3, 4, 8)
    assert settings.temperature.schedule == "learnable"
    assert len(call["pairs"]) + len(call["dev"]) == 200
    assert not call["resume"]
    assert json.loads(done.stdout[done.stdout.index("{") :])["steps"] == 7


def test_mined_passages_are_learnt_from(calls, pairs_file, tmp_path):
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"anchor": "q0", "positive": "p0"}\n{"anchor": "new", "positive": "text"}\n')
    done = run(tmp_path / "out", "--pairs", plain, "--negatives", pairs_file, "--resume")
    assert done.exit_code == 0, done.output
    (call,) = calls
    assert (call["settings"].negatives, call["resume"]) == (1, True)
    records = [*call["pairs"], *call["dev"]]
    assert len(records) == 201
    assert next(each for each in records if each.query == "q0").negatives == ("n1", "n2")


def test_judged_texts_are_left_out(calls, pairs_file, tmp_path):
    text = json.loads(xquad().documents.read_text().split("\n", 1)[0])["text"]
    with pairs_file.open("a") as file:
        file.write(json.dumps({"anchor": "asked", "positive": text}) + "\n")
    done = run(tmp_path / "out", "--pairs", pairs_file)
    assert done.exit_code == 0, done.output
    assert "1 that share words with a judged set" in " ".join(done.output.split())
    assert not [each for each in calls[0]["pairs"] + calls[0]["dev"] if each.positive == text]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ((), "nothing to learn from"),
        (("--pairs", "none.jsonl"), "none.jsonl: No such file"),
        (("--pairs", "FILE", "--set", "steps"), "NAME=VALUE was expected"),
        (("--pairs", "FILE", "--set", "stepz=3"), "stepz: Extra inputs"),
        (("--pairs", "FILE", "--config", "none.yaml"), "none.yaml"),
        (("--pairs", "FILE", "--judged", "none"), "there is no corpus.jsonl"),
        (("--pairs", "FILE", "--steps", "13"), "there is no checkpoint"),
    ],
)
def test_what_is_wrong_is_said(calls, pairs_file, tmp_path, options, problem):
    done = run(tmp_path / "out", *(pairs_file if each == "FILE" else each for each in options))
    assert done.exit_code == 1
    assert problem in " ".join(done.output.split())
