"""Does `shoal export` hand over what the exporters take?"""

import ast
import json
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from shoal.bundle.card import Agreement, BundleCard, Modality
from shoal.cli import export
from shoal.cli.corpora import xquad
from shoal.cli.main import app
from typer.testing import CliRunner

# Read, not imported: torch is not everywhere.
SOURCE = Path(__file__).parents[2] / "training" / "shoal" / "training" / "export.py"


def parameters(name):
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return {each.arg for each in (*node.args.args, *node.args.kwonlyargs)}
    raise AssertionError(f"{name} is not in {SOURCE}")


@pytest.fixture
def calls(monkeypatch):
    """What the exporters were called with."""
    made = {}

    def exporter(kind):
        def call(source, out, **options):
            made[kind] = {"source": source, "out": out, **options}
            options["report"]("writing ONNX")
            return BundleCard(
                name=options["name"],
                kind=kind,
                max_length=256,
                precision=options["precision"],
                dimension=4 if kind == "encoder" else None,
                pooling="mean" if kind == "encoder" else "none",
                licence="Apache-2.0",
                source="a test",
                agreement=Agreement(texts=200, mean=0.99, lowest=0.98, source="cosine"),
                blend=options.get("blend"),
                languages=options["origin"].languages if options.get("origin") else (),
                modality=options["origin"].modality if options.get("origin") else "prose",
            )

        return call

    def origin(languages=(), licence="unknown", modality="prose"):
        return SimpleNamespace(languages=languages, licence=licence, modality=modality)

    fake = SimpleNamespace(
        export_encoder=exporter("encoder"),
        export_reranker=exporter("reranker"),
        Origin=origin,
        origin_of=lambda source: origin(("en",) * 12),
    )
    monkeypatch.setattr(export, "_training", lambda: fake)
    return made


def test_an_encoder(calls, tmp_path):
    out = tmp_path / "my-encoder"
    done = CliRunner().invoke(
        app, ["export", "encoder", "weights", str(out), "--precision", "fp32", "--json"]
    )
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout)["card"]["precision"] == "fp32"
    sent = calls["encoder"]
    assert set(sent) == parameters("export_encoder")
    assert (sent["source"], sent["out"], sent["name"]) == ("weights", out, "my-encoder")
    assert len(sent["texts"]) == 240
    assert sent["texts"][0].startswith("Super Bowl 50. The Panthers defense")


def test_what_an_encoder_is_for_is_said_and_shown(calls, tmp_path):
    assert {each.value for each in export.Modality} == set(get_args(Modality))
    command = ["export", "encoder", "weights", str(tmp_path / "e")]
    named = ["--modality", "code", "--language", "de", "--language", "en"]
    done = CliRunner().invoke(app, [*command, *named])
    assert (done.exit_code, done.stderr) == (0, "")
    assert "Made for code in de, en." in done.stdout
    assert calls["encoder"]["origin"].licence == "unknown"
    many = CliRunner().invoke(app, [*command, "--modality", "captions"])
    assert "Made for captions in en, en, en, en, en, en, en, en and 4 more" in many.stdout
    plain = CliRunner().invoke(app, command)
    assert "Made for prose, in languages that its card does not name." in plain.stdout
    assert calls["encoder"]["origin"] is None


def test_a_reranker(calls, tmp_path):
    blend = ["--blend-weight", "0.05", "--blend-chosen-on", "held-out pairs"]
    done = CliRunner().invoke(app, ["export", "reranker", "weights", str(tmp_path / "r"), *blend])
    assert (done.exit_code, done.stderr) == (0, "")
    assert "mean 0.99, lowest 0.98 over 200 texts" in done.stdout
    assert f"reranker: {{bundle: {tmp_path / 'r'}}}" in done.stdout
    sent = calls["reranker"]
    assert set(sent) == parameters("export_reranker")
    assert sent["blend"].weight == 0.05
    assert len(sent["pairs"]) == 480
    answers = {pair[1] for pair in sent["pairs"][::2]}
    assert len(answers) < 60, "several questions are answered by one passage"


def test_texts_of_ones_own_and_what_is_wrong_with_them(calls, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"_id": "a", "text": "one"}\n')
    command = ["export", "encoder", "weights", str(tmp_path / "e"), "--texts", str(texts)]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert calls["encoder"]["texts"] == ["one"]
    texts.write_text("oops\n")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert f"{texts}:1: malformed JSON" in done.stderr


def test_without_the_repository_texts_must_be_named(calls, tmp_path, monkeypatch):
    monkeypatch.setattr("shoal.cli.corpora.CORPORA", tmp_path)
    done = CliRunner().invoke(app, ["export", "encoder", "weights", str(tmp_path / "e")])
    assert done.exit_code == 1
    assert "this needs a checkout of the repository" in done.stderr
    monkeypatch.undo()
    assert xquad().documents.is_file()
