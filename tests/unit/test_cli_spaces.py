"""Do the commands about vector spaces send what was asked for, and say what came of it?"""

import json

import pytest
from shoal.cli import versions
from shoal.cli.main import app
from shoal.v1 import indexes_pb2
from typer.testing import CliRunner

from tests.harness.cli_broker import document, serving


@pytest.fixture
def broker():
    with serving() as served:
        served.indexes["xquad"] = {"p000": document("p000", "A paragraph.")}
        served.versions["xquad"] = 3
        yield served


@pytest.fixture
def shoal(broker, tmp_path, monkeypatch):
    """Runs `shoal` against the broker."""
    monkeypatch.setenv("SHOAL_ENDPOINT", broker.endpoint)
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(versions, "POLL_S", 0.01)

    def run(*arguments):
        return CliRunner().invoke(app, [*map(str, arguments)])

    return run


def test_a_space_is_added_shown_and_dropped(shoal, broker, tmp_path):
    bundle = tmp_path / "code-bundle"
    done = shoal("index", "add-space", "xquad", "code", "--encoder", bundle, "--wait")
    assert (done.exit_code, done.stdout) == (
        0,
        "Space code of xquad is built, by code@fedcba987654.\n",
    )
    assert "--space default --space code" in done.stderr
    assert broker.builds[0].versions[-1].encoder_bundle == str(bundle)
    shown = shoal("index", "describe", "xquad").stdout
    assert "code@fedcba987654" in shown
    (line,) = (each for each in shown.splitlines() if each.startswith("code "))
    assert line.split() == ["code", "READY", "2", "IVF_PQ", "2", "3", "code@fedcba987654"]
    listed = shoal("index", "versions", "xquad").stdout
    broker.builds[0].serving_version = 1
    assert "of space code" in shoal("index", "versions", "xquad").stdout, listed
    again = shoal("index", "add-space", "xquad", "code", "--encoder", bundle)
    assert again.exit_code == 1
    assert "shoal index build INDEX --space SPACE" in again.stderr

    assert shoal("index", "drop-space", "xquad", "code").exit_code == 1  # Nobody was asked.
    dropped = shoal("index", "drop-space", "xquad", "code", "--yes", "--json")
    assert json.loads(dropped.stdout) == {"index": "xquad", "dropped_space": "code"}
    assert "code@" not in shoal("index", "describe", "xquad").stdout
    missing = shoal("index", "drop-space", "xquad", "code", "--yes")
    assert missing.exit_code == 1
    assert "shoal index add-space" in missing.stderr


def test_a_space_that_failed_says_why(shoal, broker):
    failed = indexes_pb2.SPACE_STATE_FAILED
    broker.spaces["xquad"] = [indexes_pb2.Space(name="code", state=failed, message="disk full")]
    shown = shoal("index", "describe", "xquad").stdout
    assert "FAILED" in shown
    assert "disk full" in shown


def test_a_search_names_its_spaces_and_says_who_found_what(shoal, broker):
    done = shoal("search", "xquad", "a question", "--space", "default", "--space", "code")
    assert done.exit_code == 0
    assert list(broker.searches[-1].spaces) == ["default", "code"]
    assert "Space code: all-minilm-l6-v2-int8@0123456789ab, index version 7, 2 of 2 sh" in (
        done.stdout
    )
    named = ("--space", "default", "--space", "code", "--explain")
    explained = shoal("search", "xquad", "a question", *named).stdout
    assert "found in default (rank 1), code (rank 1)" in explained
    assert "epoch 7." in explained
    assert any(line.startswith("code ") for line in explained.splitlines())
    shoal("search", "xquad", "a question")
    assert list(broker.searches[-1].spaces) == []
