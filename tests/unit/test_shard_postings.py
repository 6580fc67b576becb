"""Do postings and BM25 give what comparing everything would give, however they came to be?"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from shoal.lexical.analysis import pack_terms
from shoal.shard import bm25
from shoal.shard.bm25 import K1, B
from shoal.shard.postings import (
    CountedTerms,
    Postings,
    PostingsBuilder,
    TailPostings,
    gathered,
)
from shoal.shard.tombstones import Live

# Few terms, so that passages share them, and some in nearly all passages.
PASSAGE = st.lists(st.sampled_from([1, 1, 1, 2, 2, 3, 5, 8, 13, 2**32 - 1]), max_size=12)
PASSAGES = st.lists(PASSAGE, max_size=40)
QUESTION = st.lists(st.sampled_from([1, 2, 3, 5, 8, 13, 99, 2**32 - 1]), max_size=6)


def counted(passages: list[list[int]]) -> CountedTerms:
    return CountedTerms.read(pa.array(map(pack_terms, passages), pa.large_binary()))


def built(passages: list[list[int]]) -> Postings:
    builder = PostingsBuilder()
    for first in range(0, len(passages), 7):
        builder.add(counted(passages[first : first + 7]))
    return builder.finish()


def same(ours: Postings, theirs: Postings) -> bool:
    pairs = zip(ours.columns().values(), theirs.columns().values(), strict=True)
    return all(np.array_equal(mine, other) for mine, other in pairs)


def live_of(count: int, dead: set[int]) -> Live:
    killed = np.array(sorted(each for each in dead if each < count), dtype=np.int64)
    return Live(count).changed(count, killed)


def asked(question: list[int], statistics: bm25.Statistics | None, source: Postings, live: Live):
    terms, counts = np.unique(np.array(question, np.uint32), return_counts=True)
    if statistics is None:
        statistics = bm25.statistics_of(source, terms, live)
    return bm25.term_query(terms, counts, statistics)


def reference(passages: dict[int, list[int]], question: list[int]) -> dict[int, float]:
    """BM25 as it stands in the textbook, over the passages that are live."""
    average = sum(map(len, passages.values())) / max(1, len(passages)) or 1.0
    scores = {}
    for position, passage in passages.items():
        has = Counter(passage)
        score = 0.0
        for term, count in Counter(question).items():
            n = sum(term in each for each in passages.values())
            idf = math.log(1 + (len(passages) - n + 0.5) / (n + 0.5))
            norm = K1 * (1 - B + B * len(passage) / max(average, 1.0))
            score += count * idf * has[term] / (has[term] + norm) if has[term] else 0.0
        if score:
            scores[position] = score
    return scores


@given(PASSAGES, st.sets(st.integers(0, 39)), QUESTION, st.integers(1, 12), st.randoms())
def test_the_best_are_those_of_the_textbook(passages, dead, question, k, random):
    live = live_of(len(passages), dead)
    row_ids = np.array(random.sample(range(1000), len(passages)), dtype=np.uint64)
    source = built(passages)
    query = asked(question, None, source, live)
    scores, positions = bm25.search(source, query, k, live, row_ids)
    expected = reference({at: each for at, each in enumerate(passages) if at not in dead}, question)
    assert len(positions) == min(k, len(expected))
    for score, position in zip(scores.tolist(), positions.tolist(), strict=True):
        assert math.isclose(score, expected[position], rel_tol=1e-5)
    best = sorted(expected.values(), reverse=True)[: len(positions)]
    assert np.allclose(scores, best, rtol=1e-5)
    # Equal scores stand in the order of their row ids, at the cut too.
    every, order = bm25.search(source, query, 1000, live, row_ids)
    ranked = sorted(zip(-every, row_ids[order].tolist(), order.tolist(), strict=True))
    assert [position for *_, position in ranked][:k] == positions.tolist()
    assert np.array_equal(bm25.scores_at(source, query, positions), scores)


@given(PASSAGES, st.sets(st.integers(0, 39)), QUESTION, st.integers(0, 40), st.integers(1, 12))
def test_a_division_changes_nothing(passages, dead, question, cut, k):
    row_ids = np.arange(100, 100 + len(passages), dtype=np.uint64)
    whole = built(passages)
    live = live_of(len(passages), dead)
    terms = np.unique(np.array(question, np.uint32))
    tail = TailPostings()
    rest = passages[cut:]
    for first in range(0, len(rest), 3):
        tail.append(counted(rest[first : first + 3]))
    parts = [
        (built(passages[:cut]), live_of(len(passages[:cut]), dead), row_ids[:cut]),
        (
            tail.first(len(rest)),
            live_of(len(rest), {each - cut for each in dead if each >= cut}),
            row_ids[cut:],
        ),
    ]
    counts = [bm25.statistics_of(source, terms, each) for source, each, _ in parts]
    statistics = bm25.summed(counts, len(terms))
    alone = bm25.statistics_of(whole, terms, live)
    assert statistics.passage_count == alone.passage_count
    assert statistics.total_length == alone.total_length
    assert np.array_equal(statistics.frequencies, alone.frequencies)
    query = asked(question, statistics, whole, live)
    scores, positions = bm25.search(whole, query, k, live, row_ids)
    found = []
    for source, each, rows in parts:
        part_scores, part_positions = bm25.search(source, query, k, each, rows)
        found += zip((-part_scores).tolist(), rows[part_positions].tolist(), strict=True)
    assert sorted(found)[:k] == list(
        zip((-scores).tolist(), row_ids[positions].tolist(), strict=True)
    )


@given(st.lists(st.tuples(PASSAGES, st.sets(st.integers(0, 39))), min_size=1, max_size=4))
def test_gathering_is_building_of_what_is_kept(parts):
    masks = [live_of(len(passages), dead).mask() for passages, dead in parts]
    sources = [built(passages) for passages, _ in parts]
    kept = [
        passage
        for (passages, _), mask in zip(parts, masks, strict=True)
        for passage, wanted in zip(passages, mask.tolist(), strict=True)
        if wanted
    ]
    assert same(gathered(list(zip(sources, masks, strict=True))), built(kept))


@given(PASSAGES, st.integers(0, 40))
def test_a_tail_is_what_was_appended(passages, cut):
    tail = TailPostings()
    tail.append(counted(passages[:cut]))
    before = tail.first(len(passages[:cut]))
    tail.append(counted(passages[cut:]))
    assert same(before.sorted(), built(passages[:cut]))
    every = tail.first(len(passages))
    assert same(every.sorted(), built(passages))
    rest = np.arange(len(passages)) >= cut
    carried = TailPostings()
    carried.append(every.counted(rest))
    assert same(carried.first(int(rest.sum())).sorted(), built(passages[cut:]))


def test_passages_without_terms_have_their_places():
    column = pa.array([None, pack_terms([7, 7, 9]), None, b"", pack_terms([7])], pa.large_binary())
    read = CountedTerms.read(column[1:])
    assert read.counts.tolist() == [2, 0, 0, 1]
    assert read.lengths.tolist() == [3, 0, 0, 1]
    assert read.positions(10).tolist() == [10, 10, 13]


def test_a_frequent_word_does_not_displace_a_rare_one():
    passages = [[1] * 5 for _ in range(500)] + [[1, 2], [2, 3, 4, 5, 6, 7, 8, 9]]
    source, live = built(passages), Live(502)
    row_ids = np.arange(502, dtype=np.uint64)
    scores, positions = bm25.search(source, asked([1, 2], None, source, live), 2, live, row_ids)
    assert positions.tolist() == [500, 501]
    assert scores[0] > scores[1] > 0
