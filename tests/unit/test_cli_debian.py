"""Do package lists become documents, and does a machine without any say what to do?"""

import gzip
import json
import shutil

import pytest
from shoal.cli import debian
from shoal.cli.corpus_file import CorpusReader
from shoal.cli.debian import document, write_corpus
from shoal.cli.main import app
from shoal.cli.output import CliError
from shoal.training.debian import MIN_PACKAGES, UPDATE_COMMAND, Package
from typer.testing import CliRunner

PACKAGE = Package(
    name="sl",
    source="sl-src",
    summary="correct you if you type `sl' by mistake",
    description="Sl displays animations.\n\nThe second paragraph.",
    section="games",
    homepage="https://example.org/sl",
    version="5.02-1",
)


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """An apt whose lists are empty: nothing else is found by its name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("apt-cache", "apt-get"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_a_package_is_a_document_with_its_long_description():
    assert document(PACKAGE) == {
        "_id": "sl",
        "title": "sl: correct you if you type `sl' by mistake",
        "text": "Sl displays animations.\n\nThe second paragraph.",
        "metadata": {
            "section": "games",
            "version": "5.02-1",
            "source": "sl-src",
            "homepage": "https://example.org/sl",
        },
    }


def test_without_a_description_the_summary_is_the_text():
    bare = Package("bare", "bare", "says it all", "", "", "")
    assert document(bare)["text"] == "says it all"
    assert document(bare)["metadata"] == {"source": "bare"}


def test_what_is_written_can_be_ingested(tmp_path, monkeypatch):
    found = [Package(f"p{at}", "s", "t", "x", "", "") for at in range(1_200)]
    monkeypatch.setattr(debian, "iter_packages", lambda: iter(found))
    out = tmp_path / "debian.jsonl.gz"
    done = CliRunner().invoke(app, ["corpus", "debian", str(out), "--json"])
    assert (done.exit_code, json.loads(done.stdout)["documents"]) == (0, 1_200)
    with gzip.open(out) as stream:
        assert all(each.document is not None for each in CorpusReader().read("f", stream))
    assert [each.name for each in tmp_path.iterdir()] == ["debian.jsonl.gz"]


def test_empty_lists_name_the_command_and_leave_no_file(tmp_path, apt):
    with pytest.raises(CliError, match=r"hold 0 packages: run `apt-get .*update` as root first"):
        write_corpus(tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == [apt]


def test_a_machine_without_apt_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(app, ["corpus", "debian", str(tmp_path / "out.jsonl")])
    assert done.exit_code == 1
    assert "there is no apt-cache here" in done.stderr


@pytest.mark.skipif(shutil.which("apt-cache") is None, reason="no apt on this machine")
def test_this_machine_lists_are_read_or_asked_for(tmp_path):
    done = CliRunner().invoke(app, ["corpus", "debian", str(tmp_path / "out.jsonl"), "--json"])
    if done.exit_code:
        assert UPDATE_COMMAND in done.stderr
    else:
        assert json.loads(done.stdout)["documents"] >= MIN_PACKAGES
