"""Do learnt and held-out records stay apart, and are judged texts kept out of both?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shoal.training.leakage import RUN_WORDS, JudgedTexts
from shoal.training.pair_files import read_beir_judged
from shoal.training.pairs import DEV_PART, Pair, distinct, held_out, normalised, repeated, split

CORPUS = Path(__file__).resolve().parents[2] / "deploy" / "corpora" / "xquad-en"
RECORDS = [
    Pair(f"question {at} of source {at // 3}", f"passage {at} of source {at // 3}", str(at // 3))
    for at in range(3_000)
]


def test_no_source_is_on_both_sides() -> None:
    sides = split(RECORDS)
    assert len(sides.train) + len(sides.dev) == len(RECORDS)
    assert not {pair.source for pair in sides.train} & {pair.source for pair in sides.dev}
    assert len(sides.dev) == pytest.approx(len(RECORDS) / DEV_PART, rel=0.3)


def test_a_source_is_always_on_the_same_side() -> None:
    assert split(RECORDS).dev == split(reversed(RECORDS)).dev[::-1]


def test_what_is_held_out_word_for_word_is_not_learnt() -> None:
    dev = next(pair for pair in RECORDS if held_out(pair.source))
    learnt = next(pair for pair in RECORDS if not held_out(pair.source))
    copies = [
        Pair("another question", dev.positive.upper(), learnt.source),
        Pair(f"  {dev.query} ", "another passage", learnt.source),
        Pair("a third", "a third passage", learnt.source, ("fine", dev.positive, "good")),
    ]
    sides = split([dev, learnt, *copies])
    assert sides.dev == [dev]
    assert sides.train == [
        learnt,
        Pair("a third", "a third passage", learnt.source, ("fine", "good")),
    ]
    assert sides.dropped == 2


def test_a_text_is_learnt_once() -> None:
    first = Pair("A question", "A passage", "1", ("wrong",))
    again = [Pair("a  QUESTION", "other", "2"), Pair("other", "a passage", "3")]
    assert distinct([first, *again]) == [first]
    assert normalised("ＦＵＬＬ  Width") == "full width"


def test_heavier_records_are_learnt_from_more_often() -> None:
    weights = [0.01, 0.5, 1.0, 2.49]
    pairs = [Pair(f"q{at}", "p", "s", weight=weights[at % 4]) for at in range(400)]
    found = repeated(pairs, seed=1)
    assert found == repeated(pairs, seed=1) != repeated(pairs, seed=2)
    counts = [sum(pair.weight == each for pair in found) / 100 for each in weights]
    assert counts == pytest.approx([1, 2, 4, 9.96], abs=0.2)
    assert set(found) == set(pairs)
    assert repeated(RECORDS, seed=1) == RECORDS


@pytest.fixture(scope="module")
def judged() -> JudgedTexts:
    queries, corpus, _ = read_beir_judged(CORPUS)
    return JudgedTexts([*queries.values(), *corpus.values()])


def test_no_judged_text_is_learnt_from(judged: JudgedTexts) -> None:
    texts = [
        json.loads(line)["text"]
        for name in ("corpus.jsonl", "queries.jsonl")
        for line in (CORPUS / name).read_text(encoding="utf-8").splitlines()
    ]
    caught = [
        Pair("is it", text, "x") for text in texts if len(normalised(text).split()) >= RUN_WORDS
    ]
    assert len(caught) > 500
    assert judged.without(caught) == []
    # A part of a passage, and one among the negatives.
    passage = " ".join(texts[0].split()[5 : 5 + 2 * RUN_WORDS])
    assert judged.hold(Pair("is it", f"Somebody copied: {passage}, and more.", "x"))
    assert judged.hold(Pair("is it", "fine", "x", negatives=("fine too", texts[3])))


def test_what_is_not_judged_is_learnt_from(judged: JudgedTexts) -> None:
    fine = Pair("what is it", "A server that keeps mail, and a client that reads it. " * 3, "x")
    assert judged.without([fine]) == [fine]


def test_records_made_of_packages_hold_no_judged_text(judged: JudgedTexts) -> None:
    from shoal.training.debian import PackageListsError, iter_packages
    from shoal.training.title_bodies import package_pairs

    try:
        packages = [package for package, _ in zip(iter_packages(), range(3_000), strict=False)]
    except PackageListsError as error:
        pytest.skip(str(error))
    pairs = list(package_pairs(packages))
    assert len(pairs) > 100
    assert judged.without(pairs) == pairs
