"""Does the demo tell its whole story, and start over when it is run again?"""

import json

import pytest
from shoal.cli import debian, demo
from shoal.cli.corpora import BundledCorpus
from shoal.cli.main import app
from shoal.training.debian import Package, PackageListsError
from shoal.v1.search_pb2 import SEARCH_KIND_IVF_PQ
from typer.testing import CliRunner

from tests.harness.cli_broker import serving

DOCUMENTS = [{"_id": f"p{at}", "title": "T", "text": f"paragraph {at}"} for at in range(5)]
PACKAGES = [Package(f"p{at}", f"p{at}", "T", f"paragraph {at}", "", "") for at in range(5)]


@pytest.fixture
def broker(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    with serving() as served:
        monkeypatch.setenv("SHOAL_ENDPOINT", served.endpoint)
        yield served


@pytest.fixture
def small_corpus(tmp_path, monkeypatch):
    (tmp_path / "qrels").mkdir()
    corpus = BundledCorpus(tmp_path)
    corpus.documents.write_text("".join(json.dumps(each) + "\n" for each in DOCUMENTS))
    corpus.queries.write_text('{"_id": "q", "text": "which paragraph?"}\n')
    corpus.qrels.write_text("query-id\tcorpus-id\tscore\nq\tp0\t1\n")
    monkeypatch.setattr(demo, "xquad", lambda: corpus)


def test_it_ingests_asks_judges_and_says_what_is_next(broker, small_corpus):
    for again in (False, True):
        done = CliRunner().invoke(app, ["demo"])
        assert (done.exit_code, done.stderr) == (0, "")
        assert ("from an earlier demo: it is dropped" in done.stdout) == again
        assert "5 documents, 5 passages" in done.stdout
        for question in demo.STORIES[demo.Corpus.XQUAD].questions:
            assert question in done.stdout
        assert done.stdout.count("Coverage: complete") == 5
        assert done.stdout.count("Time: 36.8 ms (cache 0.1 ms") == 5
        assert "characters 0-11" in done.stdout
        assert "nDCG@10" in done.stdout
        assert "shoal down" in done.stdout
    assert len(broker.indexes["xquad"]) == 5


def test_debian_waits_until_ivf_pq_answers_and_says_so(broker, monkeypatch):
    monkeypatch.setattr(debian, "iter_packages", lambda: iter(PACKAGES))
    broker.kind = SEARCH_KIND_IVF_PQ
    done = CliRunner().invoke(app, ["demo", "debian"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert "are now searched by IVF-PQ" in done.stdout
    assert "play chess against the computer" in done.stdout


def test_debian_says_if_no_codebook_comes(broker, monkeypatch):
    monkeypatch.setattr(debian, "iter_packages", lambda: iter(PACKAGES))
    monkeypatch.setattr(demo, "CODEBOOK_TIMEOUT_S", 0.0)
    done = CliRunner().invoke(app, ["demo", "debian"])
    assert done.exit_code == 1
    assert "is still searched exactly" in done.stderr
    assert "this one has 5" in done.stderr


def test_without_package_lists_nothing_is_dropped(broker, monkeypatch):
    def empty():
        raise PackageListsError("the lists are empty: fetch them")

    monkeypatch.setattr(debian, "iter_packages", empty)
    broker.indexes["debian"], broker.versions["debian"] = {}, 1
    done = CliRunner().invoke(app, ["demo", "debian"])
    assert done.exit_code == 1
    assert "the lists are empty: fetch them" in done.stderr
    assert "debian" in broker.indexes
