"""Does a reranker read that part of a passage which the question is about, and tokenise it once?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shoal.bundle import BundleTokenizer, PairReader
from shoal.bundle.window import best_window

ENCODER = Path(__file__).resolve().parents[2] / "deploy" / "bundles" / "all-minilm-l6-v2-int8"
FILLER = "The committee met again in spring and agreed on nothing of note. " * 6
ANSWER = "William Dargan built the first railway in Ireland, which opened in 1834."
QUESTION = "who built the first railway in Ireland"


@pytest.fixture
def tokenizer() -> BundleTokenizer:
    return BundleTokenizer(ENCODER / "tokenizer.json", 64)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_the_window_is_where_the_answer_is(tokenizer: BundleTokenizer, place: str) -> None:
    before = {"first": "", "middle": FILLER, "last": FILLER * 2}[place]
    after = {"first": FILLER * 2, "middle": FILLER, "last": ""}[place]
    question, passage, answer = tokenizer.ids([QUESTION, before + ANSWER + " " + after, ANSWER])
    window = best_window(question, passage, 32).tolist()
    assert len(window) == 32
    assert set(question.tolist()) & set(answer.tolist()) <= set(window)


def test_a_short_passage_is_read_whole_and_the_first_of_equal_windows_wins() -> None:
    passage = np.arange(3_000, 3_100, dtype=np.int32)
    assert best_window([5], passage, 100) is passage
    assert best_window([], passage, 20).tolist() == passage[:20].tolist()
    assert best_window([9_999], passage, 20).tolist() == passage[:20].tolist()


@pytest.mark.parametrize(
    ("question", "passage"),
    [(QUESTION, ANSWER), ("", ANSWER), (QUESTION, ""), ("", ""), ("語", "ไทย 🐟")],
)
def test_what_is_short_is_read_as_the_tokenizer_reads_it(
    tokenizer: BundleTokenizer, question: str, passage: str
) -> None:
    (pair,) = PairReader(tokenizer, 40).read([(question, passage)])
    (expected,) = tokenizer.encode_pairs([(question, passage)])
    assert pair.ids.tolist() == expected.ids
    assert pair.type_ids.tolist() == expected.type_ids


def test_a_pair_never_exceeds_the_model(tokenizer: BundleTokenizer) -> None:
    (pair,) = PairReader(tokenizer, 40).read([(QUESTION * 50, FILLER)])
    assert len(pair.ids) == tokenizer.max_length


def test_a_passage_is_tokenised_once(
    tokenizer: BundleTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ids = tokenizer.ids
    monkeypatch.setattr(tokenizer, "ids", lambda texts: asked.extend(texts) or ids(texts))
    reader = PairReader(tokenizer, 40)
    first = reader.read([(QUESTION, FILLER), (QUESTION, ANSWER)])
    again = reader.read([("which railway", FILLER), (QUESTION, ANSWER)])
    assert asked == [QUESTION, FILLER, ANSWER, "which railway"]
    assert first[1].ids.tolist() == again[1].ids.tolist()


def test_a_pair_is_as_long_as_was_said(tokenizer: BundleTokenizer) -> None:
    pairs = [(QUESTION, FILLER), (QUESTION * 50, ANSWER), ("", ""), (QUESTION, "bees")]
    reader = PairReader(tokenizer, 40)
    assert reader.lengths(pairs) == [len(each.ids) for each in reader.read(pairs)]
