"""Is fusing a pure function of all candidates, and right for those that one kind alone found?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.broker.fusion import HybridPlan, fuse
from shoal.broker.merge import have_words
from shoal.broker.statistics import summed
from shoal.internal.v1.shard_pb2 import CandidateList, TermStatistics
from shoal.rpc.arrays import FLOAT32, UINT32, UINT64, pack
from shoal.v1.search_pb2 import Fusion

SCORE = st.integers(-4, 8).map(lambda each: each / 8)
WORDS = st.integers(0, 6).map(float)
ROWS = st.lists(st.tuples(SCORE, WORDS), min_size=1, max_size=30)
PLANS = st.builds(
    HybridPlan,
    st.sampled_from([0.1, 0.4, 1.0]),
    st.sampled_from([Fusion.FUSION_CONVEX, Fusion.FUSION_RECIPROCAL_RANK]),
    st.just(5),
)


def candidates(rows, numbers):
    """A list as a shard server gives it: in the order of the dense scores."""
    order = sorted(numbers, key=lambda at: (-rows[at][0], at))
    return CandidateList(
        row_ids=pack(np.array(order, np.uint64), UINT64),
        scores=pack(np.array([rows[at][0] for at in order], np.float32), FLOAT32),
        shards=pack(np.zeros(len(order), np.uint32), UINT32),
        lexical_scores=pack(np.array([rows[at][1] for at in order], np.float32), FLOAT32),
    )


def best_of(rows, numbers, depth):
    """What servers give of some rows: the best of either kind."""
    dense = sorted(numbers, key=lambda at: (-rows[at][0], at))[:depth]
    words = sorted((at for at in numbers if rows[at][1] > 0), key=lambda at: (-rows[at][1], at))
    return candidates(rows, {*dense, *words[:depth]})


@given(ROWS, PLANS, st.integers(1, 10), st.integers(1, 4), st.integers(1, 12))
def test_a_division_changes_nothing(rows, plan, depth, servers, top_k):
    every = range(len(rows))
    whole = fuse([best_of(rows, every, depth)], plan, depth, top_k)
    parts = [best_of(rows, every[at::servers], depth) for at in range(servers)]
    divided = fuse(parts, plan, depth, top_k)
    for one, other in (
        (whole.row_ids, divided.row_ids),
        (whole.scores, divided.scores),
        (whole.lexical.fused, divided.lexical.fused),
        (whole.lexical.scores, divided.lexical.scores),
        (whole.lexical.dense_ranks, divided.lexical.dense_ranks),
        (whole.lexical.lexical_ranks, divided.lexical.lexical_ranks),
    ):
        np.testing.assert_array_equal(one, other)
    assert (np.diff(whole.lexical.fused) <= 0).all()
    assert len(whole) <= top_k
    if plan.only_words:
        assert (whole.lexical.scores > 0).all()


def test_convex_scores_are_in_the_range_of_the_inner_products():
    rows = [(0.8, 2.0), (0.6, 4.0), (0.4, 0.0), (-0.2, 1.0)]
    found = fuse([candidates(rows, range(4))], HybridPlan(0.5, Fusion.FUSION_CONVEX, 4), 4, 4)
    assert found.row_ids.tolist() == [1, 0, 2, 3]
    expected = [0.5 * 0.6 + 0.5 * 0.8, 0.5 * 0.8 + 0.5 * 0.4, 0.5 * 0.4, 0.5 * 0.2]
    assert found.lexical.fused.tolist() == pytest.approx(expected)
    assert found.scores.tolist() == pytest.approx([0.6, 0.8, 0.4, -0.2])
    assert found.lexical.dense_ranks.tolist() == [2, 1, 3, 4]
    assert found.lexical.lexical_ranks.tolist() == [1, 2, 0, 3]


def test_ranks_alone_decide_by_reciprocal_rank():
    plan = HybridPlan(0.5, Fusion.FUSION_RECIPROCAL_RANK, 2)
    found = fuse([candidates([(0.9, 0.0), (0.8, 9.0), (0.1, 3.0)], range(3))], plan, 2, 3)
    assert found.row_ids.tolist() == [1, 0, 2]
    assert found.lexical.fused[0] == pytest.approx(0.9 * (61 / 62 + 1) / 2)
    assert found.lexical.fused[1] == pytest.approx(0.9 * 1 / 2)


def test_without_a_positive_inner_product_the_words_decide():
    rows = [(-0.1, 1.0), (-0.2, 5.0)]
    found = fuse([candidates(rows, range(2))], HybridPlan(0.4, Fusion.FUSION_CONVEX, 2), 2, 2)
    assert found.row_ids.tolist() == [1, 0]
    assert np.isfinite(found.lexical.fused).all()


def test_lists_have_words_together_or_not_at_all():
    some, without = candidates([(0.5, 1.0)], [0]), candidates([(0.5, 1.0)], [0])
    without.lexical_scores = b""
    assert have_words([some, CandidateList()])
    assert not have_words([some, without])
    assert not have_words([CandidateList()])


def counts(passages, length, frequencies):
    return TermStatistics(
        passage_count=passages,
        total_length=length,
        terms=pack(np.array([3, 9], np.uint32), UINT32),
        frequencies=pack(np.array(frequencies, np.uint64), UINT64),
    )


def test_counts_of_servers_are_added_up():
    total = summed([counts(3, 20, [1, 2]), counts(5, 40, [0, 4])])
    assert (total.passage_count, total.total_length) == (8, 60)
    assert np.frombuffer(total.frequencies, UINT64).tolist() == [1, 6]
