"""Do the commands about snapshots print what is documented, and fail as people understand?"""

import json
import os
from pathlib import Path

import pytest
from shoal.cli.main import app
from shoal.cli.snapshots import place_of
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
    """Runs `shoal` against the broker."""
    monkeypatch.setenv("SHOAL_ENDPOINT", broker.endpoint)
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))

    def run(*arguments):
        return CliRunner().invoke(app, [str(each) for each in arguments])

    return run


def golden(name, done):
    assert (done.exit_code, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    path = GOLDEN / f"cli_{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(json.dumps(printed, indent=2, ensure_ascii=False) + "\n")
    assert printed == json.loads(path.read_text())


def test_a_snapshot_is_taken_listed_and_restored(shoal):
    done = shoal("snapshot", "xquad", "s3://bucket/monday")
    assert done.stdout == (
        "xquad is in s3://bucket/monday: 1 documents at table version 3, index version 1, 1.5 MB.\n"
    )
    assert "shoal restore s3://bucket/monday --as NAME" in done.stderr
    _, row = shoal("snapshots", "s3://bucket").stdout.splitlines()
    for shown in ("s3://bucket/monday", "xquad", "2026-11-18T11:06:40", "1.5"):
        assert shown in row
    done = shoal("restore", "s3://bucket/monday", "--as", "again", "--shards", 5)
    assert done.stdout.startswith("again is there: 1 documents in 5 shards")
    assert "no snapshots in s3://other" in shoal("snapshots", "s3://other").stdout


def test_what_snapshots_print_as_json(shoal):
    golden("snapshot", shoal("snapshot", "xquad", "s3://bucket/monday", "--json"))
    for day in ("tuesday", "wednesday", "thursday"):
        shoal("snapshot", "xquad", f"s3://bucket/{day}")
    listed = json.loads(shoal("snapshots", "s3://bucket", "--json").stdout)["snapshots"]
    assert [each["uri"].rpartition("/")[2] for each in listed] == [
        "monday",
        "thursday",
        "tuesday",
        "wednesday",
    ]
    golden("restore", shoal("restore", "s3://bucket/monday", "--as", "again", "--json"))


def test_a_folder_is_told_with_its_whole_path(shoal, broker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shoal("snapshot", "xquad", "kept/monday")
    assert list(broker.snapshots) == [str(tmp_path / "kept" / "monday")]
    assert place_of("~/kept") == str(Path.home() / "kept")
    assert place_of("s3://bucket/a") == "s3://bucket/a"


@pytest.mark.parametrize(
    ("arguments", "reason", "remedy"),
    [
        (("snapshot", "xquad", "s3://bucket/taken"), "SNAPSHOT_EXISTS", "one with the date"),
        (("restore", "s3://bucket/none"), "SNAPSHOT_NOT_FOUND", "no snapshot"),
        (("restore", "s3://bucket/taken"), "INDEX_EXISTS", "choose another name"),
        (("snapshot", "nobody", "s3://bucket/x"), "INDEX_NOT_FOUND", "shoal index list"),
    ],
)
def test_refusals_say_what_to_do(shoal, arguments, reason, remedy):
    assert shoal("snapshot", "xquad", "s3://bucket/taken").exit_code == 0
    done = shoal(*arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert reason in done.stderr
    assert remedy in done.stderr
