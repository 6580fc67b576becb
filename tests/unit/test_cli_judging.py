"""Are rankings measured as people expect, and queries asked until they are answered?"""

import gzip
import json
from pathlib import Path

import pytest
from shoal.cli import asking, demo
from shoal.cli.corpora import CORPORA, xquad
from shoal.cli.evaluation import BATCH, WAYS, best_passages
from shoal.cli.judging import judged, measure, read_qrels, read_queries
from shoal.cli.main import app
from shoal.cli.output import CliError
from shoal.v1.search_pb2 import Hit, SearchResponse
from typer.testing import CliRunner

from tests.harness.cli_broker import document, serving

GOLDEN = Path(__file__).parents[1] / "golden"


def test_measures_agree_with_arithmetic():
    judgments = {"q1": {"a": 1}, "q2": {"b": 1, "c": 1}, "q3": {"z": 1}}
    run = {"q1": {"x": 0.0, "a": -1.0}, "q2": {"b": 0.0}, "q3": {}}
    found = measure(run, judgments)
    # q1: second place, 1 / log2(3); q2: one of two, 1 / (1 + 1 / log2(3)); q3: nothing.
    assert found["nDCG@10"] == pytest.approx((0.63093 + 0.61315 + 0) / 3, abs=1e-4)
    assert found["Recall@10"] == pytest.approx((1 + 0.5 + 0) / 3, abs=1e-4)
    assert found["Recall@100"] == found["Recall@10"]
    assert found["MRR@10"] == pytest.approx((0.5 + 1 + 0) / 3, abs=1e-4)


def test_mrr_looks_at_ten_and_recall_at_as_many_as_it_says():
    run = {"q": {f"d{rank}": -float(rank) for rank in range(100)}}
    found = measure(run, {"q": {"d10": 1, "d99": 1}})
    assert found == {"nDCG@10": 0.0, "Recall@10": 0.0, "Recall@100": 1.0, "MRR@10": 0.0}


def test_the_best_passage_of_a_document_counts():
    hits = [Hit(document_id=each, score=1.0) for each in ("b", "a", "b", "c", "a")]
    assert best_passages(SearchResponse(hits=hits)) == {"b": 0.0, "a": -1.0, "c": -2.0}


def test_queries_and_judgments_are_read(tmp_path):
    queries, qrels = tmp_path / "queries.jsonl.gz", tmp_path / "qrels.tsv"
    with gzip.open(queries, "wt") as file:
        file.write('{"_id": "q1", "text": "one"}\n\n{"id": "q2", "text": "two"}\n')
    qrels.write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td1\t0\nq3\td1\t1\n")
    assert read_queries(queries) == {"q1": "one", "q2": "two"}
    judgments = read_qrels(qrels)
    assert judgments == {"q1": {"d1": 1}, "q2": {"d1": 0}, "q3": {"d1": 1}}
    assert judged(read_queries(queries), judgments, None) == {"q1": "one"}
    qrels.write_text("q1 0 d1 2\n")
    assert read_qrels(qrels) == {"q1": {"d1": 2}}
    with pytest.raises(CliError, match="belong together"):
        judged({"other": "x"}, judgments, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no queries"),
        ('{"_id": "a", "text": 3}\n', ":1: needs `_id` and `text`"),
        ('{"_id": "a", "text": "b"}\n{"_id": "a", "text": "c"}\n', ":2: the id 'a' stands above"),
        ('{"_id": "a", "text": "b"}\nx\n', ":2: malformed JSON"),
    ],
)
def test_bad_queries_are_named(tmp_path, content, said):
    path = tmp_path / "queries.jsonl"
    path.write_text(content)
    with pytest.raises(CliError, match=said):
        read_queries(path)


@pytest.mark.parametrize("content", ["q1\td1\n", "q1\td1\tgood\n", "q1\td1\t1\t2\t3\n"])
def test_bad_judgments_are_named(tmp_path, content):
    path = tmp_path / "qrels.tsv"
    path.write_text("query-id\tcorpus-id\tscore\n" + content)
    with pytest.raises(CliError, match=":2: needs a query's id"):
        read_qrels(path)


@pytest.fixture
def broker(monkeypatch):
    """Three documents; dense finds the answer second, reranking finds it first."""
    monkeypatch.setattr(asking, "PAUSE_S", 0.0)
    with serving() as served:
        served.indexes["small"] = {each: document(each, f"text {each}") for each in "abc"}
        served.versions["small"] = 1
        for number in range(BATCH * 2 + 3):
            served.rankings[f"question {number}", False] = ["b", "a"]
            served.rankings[f"question {number}", True] = ["a", "b"]
        yield served


@pytest.fixture
def evaluate(broker, tmp_path):
    count = BATCH * 2 + 3
    queries, qrels = tmp_path / "queries.jsonl", tmp_path / "qrels.tsv"
    queries.write_text(
        "".join(
            json.dumps({"_id": f"q{at}", "text": f"question {at}"}) + "\n" for at in range(count)
        )
    )
    qrels.write_text("".join(f"q{at}\ta\t1\n" for at in range(count)))
    named = ("--queries", str(queries), "--qrels", str(qrels), "--endpoint", broker.endpoint)

    def run(*arguments):
        return CliRunner().invoke(app, ["eval", "small", *named, *arguments])

    return run


def test_eval_measures_every_way_of_ranking(evaluate, broker):
    broker.failures_left = 5
    done = evaluate("--json")
    assert done.exit_code == 0
    printed = json.loads(done.stdout)
    for ranking in (printed[way.name] for way in WAYS):
        assert ranking.pop("seconds") >= 0
        assert ranking.pop("queries_per_s") > 0
    assert printed == json.loads((GOLDEN / "cli_eval.json").read_text())
    assert "asked again: not yet" in done.stderr


def test_eval_prints_them_side_by_side(evaluate, broker):
    broker.incomplete = True
    done = evaluate("--limit", "4")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].split() == [
        *("4", "queries", "dense", "lexical", "hybrid", "reranked")
    ]
    assert "MRR@10" in done.stdout
    assert "0.5000" in done.stdout
    assert "4 dense answers were incomplete" in done.stdout


def test_eval_gives_up_on_what_does_not_pass(evaluate, broker):
    broker.failures_left = 10_000
    done = evaluate()
    assert done.exit_code == 1
    assert "failed: not yet [NOT_READY]" in done.stderr


def test_the_bundled_corpus_is_whole_and_says_whose_it_is():
    corpus = xquad()
    assert len(corpus.documents.read_text(encoding="utf-8").splitlines()) == 240
    queries, judgments = read_queries(corpus.queries), read_qrels(corpus.qrels)
    assert len(judged(queries, judgments, None)) == 1_190
    assert "Attribution-ShareAlike 4.0" in (corpus.folder / "LICENSE.txt").read_text()
    assert "Artetxe" in (corpus.folder / "README.md").read_text()
    assert {each.name for each in CORPORA.iterdir()} == {"xquad-en"}


def test_the_demo_asks_questions_that_people_asked():
    asked = set(read_queries(xquad().queries).values())
    assert set(demo.STORIES[demo.Corpus.XQUAD].questions) <= asked
