"""Do package lists become documents, and does a machine without any say what to do?"""

import gzip
import json
import shutil

import pytest
from shoal.cli import debian
from shoal.cli.corpus_file import CorpusReader
from shoal.cli.debian import documents, paragraphs, stanzas, write_corpus
from shoal.cli.main import app
from shoal.cli.output import CliError
from typer.testing import CliRunner

PACKAGES = """\
Package: sl
Version: 5.02-1
Source: sl-src (5.02)
Description: correct you if you type `sl' by mistake
Description-md5: d0a0
Homepage: https://example.org/sl
Section: games
Tag: game::toys,
 role::program

Package: bare
Description: has no long description
Description-md5: ffff

Package: sl
Description: comes a second time
Description-md5: d0a1

Package: nothing
"""

TRANSLATIONS = """\
Package: sl
Description-md5: d0a0
Description-en: correct you if you type `sl' by mistake
 Sl is a program that can display animations
 aimed to correct you. It knows
  * trains,
  * more trains
 .
 The second paragraph.
"""


def lines(text):
    return text.splitlines()


def test_stanzas_have_values_of_several_lines():
    first, *others = stanzas(lines(PACKAGES))
    assert first["Tag"] == "game::toys,\nrole::program"
    assert [each["Package"] for each in others] == ["bare", "sl", "nothing"]


def test_a_package_is_a_document_with_its_long_description():
    (translation,) = stanzas(lines(TRANSLATIONS))
    long_ones = {translation["Description-md5"]: translation["Description-en"]}
    assert list(documents(stanzas(lines(PACKAGES)), long_ones)) == [
        {
            "_id": "sl",
            "title": "sl: correct you if you type `sl' by mistake",
            "text": "Sl is a program that can display animations aimed to correct you. It knows\n"
            "* trains,\n* more trains\n\nThe second paragraph.",
            "metadata": {
                "section": "games",
                "version": "5.02-1",
                "source": "sl-src (5.02)",
                "homepage": "https://example.org/sl",
            },
        },
        {
            "_id": "bare",
            "title": "bare: has no long description",
            "text": "has no long description",
            "metadata": {},
        },
    ]


def test_paragraphs_of_nothing_are_nothing():
    assert paragraphs("") == paragraphs("\n.\n") == ""


def test_what_is_written_can_be_ingested(tmp_path, monkeypatch):
    found = [{"_id": f"p{at}", "title": "t", "text": "x", "metadata": {}} for at in range(1_200)]
    monkeypatch.setattr(debian, "read_packages", lambda: iter(found))
    out = tmp_path / "debian.jsonl.gz"
    done = CliRunner().invoke(app, ["corpus", "debian", str(out), "--json"])
    assert (done.exit_code, json.loads(done.stdout)["documents"]) == (0, 1_200)
    with gzip.open(out) as stream:
        assert all(each.document is not None for each in CorpusReader().read("f", stream))
    assert [each.name for each in tmp_path.iterdir()] == ["debian.jsonl.gz"]


def test_empty_lists_name_the_command_and_leave_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(debian, "read_packages", lambda: iter(()))
    with pytest.raises(CliError, match=r"hold 0 packages: run `apt-get .*update` as root first"):
        write_corpus(tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_apt_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(app, ["corpus", "debian", str(tmp_path / "out.jsonl")])
    assert done.exit_code == 1
    assert "there is no apt-cache here" in done.stderr


@pytest.mark.skipif(shutil.which("apt-cache") is None, reason="no apt on this machine")
def test_this_machine_lists_are_read_or_asked_for(tmp_path):
    done = CliRunner().invoke(app, ["corpus", "debian", str(tmp_path / "out.jsonl"), "--json"])
    if done.exit_code:
        assert debian.UPDATE in done.stderr
    else:
        assert json.loads(done.stdout)["documents"] >= debian.MIN_PACKAGES
