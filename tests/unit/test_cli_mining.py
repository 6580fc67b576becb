"""Are mined negatives wrong, hard, and named with where they come from?"""

import json

import pytest
from shoal.cli.hard_negatives import Candidate, Pair, Rules, choose
from shoal.cli.main import app
from shoal.cli.mining import BATCH
from shoal.training.pair_files import PairFileError, write_pairs
from shoal.training.pair_files import read_pairs as read_training_pairs
from typer.testing import CliRunner

from tests.harness.cli_broker import ENCODER, document, serving

PAIR = Pair("where do herons breed", "Herons breed in colonies.")
FOUND = [
    Candidate("Herons nest high up in trees.", "a", 0, 1, 0.80),
    Candidate("Herons  breed in COLONIES.", "b", 0, 2, 0.78),
    Candidate("Egrets breed near water.", "c", 2, 3, 0.74),
    Candidate("Storks breed on roofs.", "d", 0, 4, 0.70),
    Candidate("Storks breed on  roofs.", "e", 0, 5, 0.69),
    Candidate("Trains run on rails.", "f", 0, 6, 0.10),
]


@pytest.mark.parametrize(
    ("rules", "chosen"),
    [
        (Rules(margin=0.0), "cdf"),  # what scores above the right passage may be right too
        (Rules(margin=0.05), "df"),
        (Rules(margin=0.0, skip=3), "df"),
        (Rules(margin=0.0, max_score=0.5), "f"),
        (Rules(margin=0.0, count=1), "c"),
        (Rules(margin=0.9), ""),
    ],
)
def test_negatives_keep_away_from_the_positive(rules, chosen):
    negatives = choose(PAIR, FOUND, rules)
    assert negatives is not None
    assert "".join(each.document for each in negatives) == chosen


def test_a_positive_that_was_not_found_has_no_negatives_unless_asked_for():
    elsewhere = [each for each in FOUND if each.document != "b"]
    assert choose(PAIR, elsewhere, Rules()) is None
    kept = choose(PAIR, elsewhere, Rules(keep_unfound=True, max_score=0.75))
    assert [each.document for each in kept] == ["c", "d", "f"]


def test_a_document_is_known_by_its_id_where_the_pair_names_it():
    pair = Pair(PAIR.query, "Another text of it.", document="c")
    negatives = choose(pair, FOUND, Rules(margin=0.0))
    assert [each.document for each in negatives] == ["d", "f"]


def test_what_is_right_by_another_pair_of_the_question_is_no_negative():
    others = [Pair(PAIR.query, "x", document="c"), Pair(PAIR.query, "Storks breed on roofs.")]
    negatives = choose(PAIR, FOUND, Rules(margin=0.0), others)
    assert [each.document for each in negatives] == ["f"]


def test_a_positive_with_its_title_in_front_is_found():
    titled = Candidate("Herons breed in colonies.", "b", 0, 1, 0.78, "Herons")
    for positive in ("Herons. Herons breed in colonies.", "Herons breed in colonies."):
        assert choose(Pair("q", positive), [titled, *FOUND[2:]], Rules(count=1)) == [FOUND[3]]


@pytest.fixture
def broker():
    with serving() as served:
        served.indexes["birds"] = {each: document(each, f"text {each}") for each in "abcdefgh"}
        served.versions["birds"] = 1
        yield served


@pytest.fixture
def mine(broker, tmp_path):
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "mined.jsonl"
    texts = [{"query": f"question {at}", "positive": "text a"} for at in range(2 * BATCH + 3)]
    pairs.write_text("".join(json.dumps(each) + "\n" for each in texts))

    def run(*arguments):
        named = ("--pairs", str(pairs), "--out", str(out), "--endpoint", broker.endpoint)
        return CliRunner().invoke(app, ["mine", "birds", *named, *arguments])

    run.out, run.count = out, len(texts)
    return run


def test_lines_say_what_mined_them(mine):
    done = mine("--count", "2", "--margin", "0.3", "--json")
    assert done.exit_code == 0, done.stderr
    lines = [json.loads(line) for line in mine.out.read_text().splitlines()]
    assert [each["query"] for each in lines] == [f"question {at}" for at in range(mine.count)]
    assert lines[0] == {
        "query": "question 0",
        "positive": "text a",
        "negatives": [
            {"text": "text d", "document": "d", "passage": 0, "rank": 4, "score": 0.325},
            {"text": "text e", "document": "e", "passage": 0, "rank": 5, "score": 0.2},
        ],
        "index": "birds",
        "index_version": 7,
        "model": ENCODER,
    }
    assert json.loads(done.stdout)["written"] == mine.count


def test_what_was_cut_short_is_gone_on_with(mine, broker):
    assert mine().exit_code == 0
    whole = mine.out.read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 1):
        mine.out.write_bytes(whole[:kept])
        broker.searches.clear()
        assert mine().exit_code == 0
        assert mine.out.read_bytes() == whole


def test_an_output_of_another_version_is_refused(mine, broker):
    assert mine().exit_code == 0
    whole = mine.out.read_bytes()
    broker.index_version = 8
    done = mine()
    assert done.exit_code == 1
    assert "mined at version 7" in done.stderr
    mine.out.write_text('{"my": "own file"}')
    assert "was not made by this command" in mine().stderr
    assert mine.out.read_text() == '{"my": "own file"}'
    assert whole


def test_pairs_without_a_positive_are_refused(mine, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"query": "a"}\n')
    done = mine()
    assert "pairs.jsonl:1: needs `query` and `positive`" in done.stderr


def test_the_source_of_a_pair_goes_on_to_training(mine, tmp_path):
    common = {"positive": "text a", "document": "a"}
    lines = [{"query": "one", **common, "source": "handbook"}, {"query": "two", **common}]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert mine().exit_code == 0
    assert [pair.source for pair in read_training_pairs(mine.out)] == ["handbook", "a"]
    pairs.write_text(json.dumps({"query": "one", **common, "source": 3}) + "\n")
    assert "pairs.jsonl:1: `document` and `source` must be strings" in mine().stderr


def test_negatives_are_written_as_positives_are(mine, broker, tmp_path):
    for each in "bcdefgh":
        broker.indexes["birds"][each] = document(each, f"text {each}", title="Birds")
    lines = [{"query": query, "positive": f"text {at}"} for at in "ac" for query in ("Q", "q ")]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert mine("--margin", "0").exit_code == 0
    mined = [json.loads(line) for line in mine.out.read_text().splitlines()]
    found = [[each["text"] for each in line["negatives"]] for line in mined]
    # Both passages are right for the question, however it is spelt.
    assert found[0] == [f"Birds. text {each}" for each in "bdefgh"]
    assert found[2] == [f"Birds. text {each}" for each in "defgh"]


def test_the_weight_of_a_pair_goes_on_to_training(mine, tmp_path):
    lines = [{"query": "one", "positive": "text a", "weight": 2.5}]
    lines.append({"query": "two", "positive": "text a"})
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert mine().exit_code == 0
    mined = read_training_pairs(mine.out)
    assert [pair.weight for pair in mined] == [2.5, 1.0]
    write_pairs(mined, tmp_path / "again.jsonl")
    assert read_training_pairs(tmp_path / "again.jsonl") == mined
    pairs.write_text(json.dumps(lines[0] | {"weight": 0}) + "\n")
    assert "pairs.jsonl:1: `weight` must be a number above 0" in mine().stderr
    with pytest.raises(PairFileError, match=r"pairs\.jsonl:1: `weight` must be"):
        read_training_pairs(pairs)


def test_training_questions_are_no_feedback(mine, broker):
    assert mine().exit_code == 0
    assert len(broker.batched_searches) == mine.count
    assert all(each.no_feedback for each in broker.batched_searches)
