"""Are people's formats read, and is a wrong line named?"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from shoal.training.pair_files import (
    PairFileError,
    read_beir_judged,
    read_marco,
    read_pairs,
    write_pairs,
)
from shoal.training.pairs import Pair


def _beir(folder: Path, qrels: str, part: str = "train") -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = [
        {"_id": "d1", "title": "Ale", "text": "Brewed from malt."},
        {"_id": "d2", "title": "", "text": "A hem is stitched."},
    ]
    lines = [json.dumps(each) for each in corpus]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "how to brew"}\n')
    (folder / "qrels" / f"{part}.tsv").write_text(qrels)
    return folder


def test_a_set_in_beirs_layout(tmp_path: Path) -> None:
    folder = _beir(tmp_path / "set", "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n")
    wrong = ("A hem is stitched.",)
    assert read_pairs(folder) == [Pair("how to brew", "Ale. Brewed from malt.", "d1", wrong)]


def test_a_judged_set(tmp_path: Path) -> None:
    folder = _beir(tmp_path / "set", "query-id\tcorpus-id\tscore\nq1\td1\t2\n", part="test")
    queries, corpus, judgments = read_beir_judged(folder)
    assert queries == {"q1": "how to brew"}
    assert corpus["d1"] == "Ale. Brewed from malt."
    assert judgments == [("q1", "d1", 2)]


def test_marcos_triples_of_a_question_become_one_record(tmp_path: Path) -> None:
    path = tmp_path / "triples.tsv.gz"
    with gzip.open(path, "wt") as file:
        file.write("q\tright\twrong one\nq\tright\twrong two\nq\tright\twrong one\n")
    assert read_pairs(path) == [Pair("q", "right", "right", ("wrong one", "wrong two"))]


def test_marcos_collection(tmp_path: Path) -> None:
    collection, queries, qrels = (tmp_path / name for name in ("c.tsv", "q.tsv", "r.tsv"))
    collection.write_text("7\tA passage.\n8\tAnother.\n")
    queries.write_text("1\twhat\n")
    qrels.write_text("1\t0\t7\t1\n")
    assert read_marco(collection, queries, qrels) == [Pair("what", "A passage.", "7")]


@pytest.mark.parametrize("names", [("anchor", "positive"), ("query", "answer")])
def test_pairs_as_sentence_transformers_has_them(tmp_path: Path, names: tuple[str, str]) -> None:
    path = tmp_path / "pairs.jsonl"
    line = {names[0]: "q", names[1]: "p", "negative_1": "n1", "negative_2": "n2"}
    path.write_text(json.dumps(line) + "\n\n")
    assert read_pairs(path) == [Pair("q", "p", "p", ("n1", "n2"))]


def test_pairs_as_csv(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('anchor,positive,negative\nq,"a passage,\nof two lines",n\n')
    assert read_pairs(path) == [
        Pair("q", "a passage,\nof two lines", "a passage,\nof two lines", ("n",))
    ]


def test_what_was_mined(tmp_path: Path) -> None:
    negative = {"text": "n", "document": "d", "passage": 0, "rank": 3, "score": 0.5}
    line = {"query": "q", "positive": "p", "negatives": [negative], "index": "i", "model": "m"}
    path = tmp_path / "mined.jsonl"
    path.write_text(json.dumps(line) + "\n")
    assert read_pairs(path) == [Pair("q", "p", "p", ("n",))]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    pairs = [Pair("q", "p", "s", ("n1", "n2")), Pair("q2", "p2", "s2")]
    for name in ("pairs.jsonl", "pairs.jsonl.gz"):
        assert write_pairs(pairs, tmp_path / name) == 2
        assert read_pairs(tmp_path / name) == pairs


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", '{"anchor": "q", "positive": "p"}\n{"anchor": "q"', ":2: no JSON"),
        ("a.jsonl", '{"anchor": "q"}\n', ":1: `positive` is missing; there is anchor"),
        ("a.jsonl", '{"anchor": "q", "positive": " "}\n', ":1: `positive` must be a text"),
        ("a.jsonl", '{"anchor": 3, "positive": "p"}\n', ":1: `anchor` must be a text"),
        ("a.jsonl", "[]\n", ":1: an object was expected"),
        ("a.jsonl", '{"anchor":"q","positive":"p","negatives":"n"}', ":1: `negatives` must be a"),
        ("a.jsonl", '{"anchor":"q","positive":"p","negatives":[3]}', ":1: each of `negatives`"),
        ("a.jsonl", "", ": there is no record in it"),
        ("a.csv", "anchor,positive\nq,p\nq\n", ":3: 2 columns were expected"),
        ("a.csv", "anchor,positive\nq,p,r\n", ":2: 2 columns were expected"),
        ("a.tsv", "q\tp\tn\nq\tp\n", ":2: 3 columns were expected (anchor, positive, negative)"),
        ("a.txt", "q", "neither a folder in BEIR's layout nor"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, content: str, problem: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(PairFileError) as caught:
        read_pairs(path)
    assert str(caught.value).startswith(str(path))
    assert problem in str(caught.value)


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"anchor": "q", "positive": "p"}\n\xff\xfe\n')
    with pytest.raises(PairFileError, match="utf-8"):
        read_pairs(path)
    gzipped = tmp_path / "a.jsonl.gz"
    gzipped.write_bytes(b"not gzipped")
    with pytest.raises(PairFileError, match=r"a\.jsonl\.gz:1"):
        read_pairs(gzipped)
    with pytest.raises(PairFileError, match="No such file"):
        read_pairs(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("q9\td1\t1", "train.tsv:2: there is no question q9"),
        ("q1\td9\t1", "train.tsv:2: there is no passage d9"),
        ("q1\td1\thigh", "train.tsv:2: the score must be a whole number, not high"),
        ("q1 d1 1", "train.tsv:2: 3 columns were expected"),
    ],
)
def test_what_is_wrong_in_judgments_is_named(tmp_path: Path, line: str, problem: str) -> None:
    folder = _beir(tmp_path / "set", f"query-id\tcorpus-id\tscore\n{line}\n")
    with pytest.raises(PairFileError, match="train") as caught:
        read_pairs(folder)
    assert problem in str(caught.value)


def test_a_folder_without_its_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(PairFileError, match=r"there is no corpus\.jsonl"):
        read_pairs(tmp_path)
