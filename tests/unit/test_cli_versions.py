"""Do the commands about index versions print what is documented, and fail as people understand?"""

import json
import os
from pathlib import Path

import pytest
from shoal.cli import versions
from shoal.cli.main import app
from typer.testing import CliRunner

from tests.harness.cli_broker import document, serving

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def broker():
    with serving() as served:
        served.indexes["xquad"] = {"p000": document("p000", "A paragraph.")}
        served.versions["xquad"] = 3
        yield served


@pytest.fixture
def shoal(broker, tmp_path, monkeypatch):
    """Runs `shoal index` against the broker."""
    monkeypatch.setenv("SHOAL_ENDPOINT", broker.endpoint)
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(versions, "POLL_S", 0.01)

    def run(*arguments):
        return CliRunner().invoke(app, ["index", *map(str, arguments)])

    return run


def test_versions_are_listed_with_what_serves_and_what_did(shoal, broker):
    done = shoal("versions", "xquad")
    assert done.exit_code == 0
    _, first, second = done.stdout.splitlines()
    for shown in ("1", "READY", "2026-11-18T11:06:40", "0.975", "1.5", "served before"):
        assert shown in first
    assert second.rstrip().endswith("serves")
    broker.builds = [broker.listed((1, "FAILED"), (2, "BUILDING"), done=0.4, message="disk full")]
    shown = shoal("versions", "xquad").stdout
    assert "disk full" in shown
    assert "40%, encoding" in shown
    assert "Exact search (version 0) serves." in shown


def test_what_the_next_versions_are_to_be_is_changed(shoal):
    done = shoal("update", "xquad", "--recall", 0.98, "--kind", "hnsw")
    assert "built for recall@10 0.98, of the kind hnsw." in done.stdout
    assert "`shoal index build xquad`" in done.stderr
    done = shoal("update", "xquad", "--kind", "auto")
    assert "recall@10 0.95, of the kind that suits." in done.stdout
    printed = json.loads(shoal("update", "xquad", "--kind", "ivf-sq8", "--json").stdout)
    assert printed["declared_kind"] == "IVF_SQ8"
    nothing = shoal("update", "xquad")
    assert nothing.exit_code != 0
    assert "nothing to change" in nothing.stderr + str(nothing.exception)
    assert shoal("update", "xquad", "--kind", "exact").exit_code == 2
    assert shoal("update", "xquad", "--recall", 1.0).exit_code == 2


def test_what_versions_prints_as_json(shoal):
    done = shoal("versions", "xquad", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    path = GOLDEN / "cli_index_versions.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(json.dumps(printed, indent=2, ensure_ascii=False) + "\n")
    assert printed == json.loads(path.read_text())


def test_a_build_is_begun_or_waited_for(shoal, broker):
    building = broker.listed((1, "READY"), (2, "BUILDING"), done=0.4)
    ready = broker.listed((1, "READY"), (2, "READY"))
    broker.builds = [building]
    assert "Version 2 of xquad is being built." in shoal("build", "xquad").stdout
    broker.builds = [building, building, ready]
    done = shoal("build", "xquad", "--wait")
    assert (
        "Version 2 of xquad is ready: ivf-pq, 2 passages, recall@10 0.975, 1.5 MB." in done.stdout
    )
    assert "shoal index promote xquad 2" in done.stderr
    broker.builds = [building, ready]
    assert json.loads(shoal("build", "xquad", "--wait", "--json").stdout)["state"] == "READY"


def test_a_build_that_fails_or_takes_too_long_is_an_error(shoal, broker):
    building = broker.listed((2, "BUILDING"), done=0.4)
    broker.builds = [building, broker.listed((2, "FAILED"), message="disk full")]
    done = shoal("build", "xquad", "--wait")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "version 2 of xquad failed: disk full" in done.stderr
    broker.builds = [building]
    done = shoal("build", "xquad", "--wait", "--timeout", 0.1)
    assert done.exit_code == 1
    assert "still being built" in done.stderr


def test_promotions_say_what_serves(shoal):
    assert shoal("promote", "xquad", 1).stdout == "Version 1 of xquad serves.\n"
    printed = json.loads(shoal("promote", "xquad", 0, "--json").stdout)
    assert printed == {"index": "xquad", "promoted_version": 0, "serving_version": 0}
    assert shoal("rollback", "xquad").stdout == (
        "Version 1 of xquad is being loaded; version 2 answers until then.\n"
    )
    assert shoal("drop-version", "xquad", 1).stdout == "Version 1 of xquad is gone.\n"


@pytest.mark.parametrize(
    ("arguments", "reason", "remedy"),
    [
        (("build", "xquad"), "BUILD_IN_PROGRESS", "says how far it is"),
        (("promote", "xquad", 9), "VERSION_NOT_FOUND", "lists them"),
        (("drop-version", "xquad", 2), "VERSION_SERVES", "shoal index promote"),
        (("versions", "nobody"), "INDEX_NOT_FOUND", "shoal index list"),
    ],
)
def test_refusals_say_what_to_do(shoal, arguments, reason, remedy):
    done = shoal(*arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert reason in done.stderr
    assert remedy in done.stderr
