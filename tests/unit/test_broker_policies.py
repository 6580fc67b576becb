"""Are the broker's small decisions right: merging, coverage, budgets, hedges, replicas?"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.broker.budget import RESERVE_S, Budget, RerankCost
from shoal.broker.coverage import coverage_of, cut, shards_text
from shoal.broker.hedge import BURST, HedgeBudget
from shoal.broker.indexes_server import _live_recall
from shoal.broker.merge import merge
from shoal.broker.replicas import LONGEST_REST_S, Chooser, Health
from shoal.internal.v1.shard_pb2 import CandidateList, ShardState
from shoal.rpc.arrays import FLOAT32, UINT32, UINT64, pack
from shoal.rpc.deadline import Deadline
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import Hit, Stage

Row = tuple[float, int, int]
"""Score, row id, shard."""

scores = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.25000003, 0.5, 1.0])


@st.composite
def shard_lists(draw: st.DrawFn) -> list[list[Row]]:
    rows = draw(st.lists(scores, max_size=30))
    count = draw(st.integers(1, 4))
    lists: list[list[Row]] = [[] for _ in range(count)]
    for row_id, score in enumerate(rows):
        shard = draw(st.integers(0, count - 1))
        lists[shard].append((score, row_id, shard))
    return [sorted(each, key=lambda row: (-row[0], row[1])) for each in lists]


def candidate_list(rows: list[Row], filled: bool) -> CandidateList:
    return CandidateList(
        row_ids=pack(np.asarray([row[1] for row in rows]), UINT64),
        scores=pack(np.asarray([row[0] for row in rows]), FLOAT32),
        shards=pack(np.asarray([row[2] for row in rows]), UINT32),
        hits=[Hit(document_id=str(row[1])) for row in rows] if filled else [],
    )


@given(shard_lists(), st.integers(1, 40), st.lists(st.booleans(), min_size=4, max_size=4))
def test_merging_is_sorting_all(lists: list[list[Row]], top_k: int, filled: list[bool]) -> None:
    merged = merge([candidate_list(*each) for each in zip(lists, filled, strict=False)], top_k)
    everything = sorted(
        ((row, source) for source, rows in enumerate(lists) for row in rows),
        key=lambda each: (-each[0][0], each[0][1]),
    )[:top_k]
    assert merged.row_ids.tolist() == [row[1] for row, _ in everything]
    np.testing.assert_allclose(merged.scores, [row[0] for row, _ in everything], rtol=1e-6)
    assert merged.shards.tolist() == [row[2] for row, _ in everything]
    assert merged.sources.tolist() == [source for _, source in everything]
    assert [each and each.document_id for each in merged.hits] == [
        str(row[1]) if filled[source] else None for row, source in everything
    ]


def test_nothing_merges_to_nothing() -> None:
    assert len(merge([], 10)) == 0
    assert len(merge([CandidateList(), CandidateList()], 10)) == 0


def state(shard: int, *, ready: bool = True, passages: int = 10) -> ShardState:
    return ShardState(shard=shard, ready=ready, passage_count=passages)


def test_coverage_is_complete_only_if_every_shard_answered_and_nothing_was_cut() -> None:
    both = [state(0), state(1, passages=5)]
    whole = coverage_of(2, both, dict, [])
    assert whole.complete
    assert (whole.shards_searched, whole.shards_total) == (2, 2)
    assert (whole.passages_searched, whole.passages_total) == (15, 15)

    late = cut(Stage.STAGE_RERANK, Reason.REASON_DEADLINE_SHARE_SPENT, "late")
    assert not coverage_of(2, both, dict, [late]).complete
    assert late.reason == "DEADLINE_SHARE_SPENT"


@pytest.mark.parametrize("states", [[state(0)], [state(0), state(1, ready=False, passages=0)]])
def test_a_missing_shard_counts_with_what_it_was_last_known_to_hold(
    states: list[ShardState],
) -> None:
    part = coverage_of(2, states, lambda: {0: 9, 1: 7}, [])
    assert not part.complete
    assert (part.shards_searched, part.shards_total) == (1, 2)
    assert (part.passages_searched, part.passages_total) == (10, 17)


def test_live_recall_weighs_shards_by_the_neighbours_that_were_wanted_of_them() -> None:
    few = ShardState(ready=True, recall=1.0, recall_query_count=90, recall_neighbour_count=100)
    many = ShardState(ready=True, recall=0.5, recall_query_count=100, recall_neighbour_count=900)
    away = ShardState(recall=0.1, recall_query_count=100, recall_neighbour_count=900)
    assert _live_recall([few, many, away, ShardState(ready=True)]) == pytest.approx(0.55)
    assert _live_recall([ShardState(ready=True)]) is None


def test_shards_are_named() -> None:
    assert shards_text([3]) == "shard 3"
    assert shards_text((2, 0, 1)) == "shards 0, 1, 2"


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@given(st.floats(0.001, 100.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_stages_leave_something_to_those_after_them(
    total_s: float, encode: float, search: float, fetch: float
) -> None:
    """Whatever part of its share each stage uses."""
    clock = Clock()
    budget = Budget(Deadline.after(total_s, clock))
    for stage, used in ((budget.encode, encode), (budget.search, search), (budget.fetch, fetch)):
        share = stage()
        assert clock.now_s <= share.at_s < budget.deadline.at_s
        clock.now_s += used * share.budget_s
    assert not budget.deadline.passed
    assert budget.rerank(5.0).at_s <= budget.deadline.at_s - RESERVE_S


def test_the_answer_to_a_reranked_search_has_time_to_travel() -> None:
    clock = Clock()
    assert Budget(Deadline.after(1.0, clock)).rerank(5.0).budget_s <= 0.95
    assert Budget(Deadline.after(60.0, clock)).rerank(5.0).budget_s == pytest.approx(5.0)


def test_the_cost_of_reranking_is_learnt() -> None:
    cost = RerankCost()
    for _ in range(100):
        cost.observed(20, 0.405)
    assert cost.affordable(200, 0.2) == pytest.approx(9, abs=1)
    assert cost.affordable(5, 10.0) == 5
    assert cost.affordable(20, 0.0) == 0
    for _ in range(100):
        cost.observed(20, 0.025)
    assert cost.affordable(200, 0.2) == pytest.approx(195, abs=10)


def test_what_became_too_dear_is_tried_again_in_time() -> None:
    """One bad moment must not end reranking for ever: what is not tried is not learnt."""
    cost = RerankCost()
    cost.observed(1, 60.0)
    assert cost.affordable(20, 0.1) == 0
    assert any(cost.affordable(20, 0.1) for _ in range(2_000))


@given(st.floats(0.01, 1.0), st.lists(st.booleans(), max_size=400))
def test_hedges_stay_within_their_ratio(ratio: float, wishes: list[bool]) -> None:
    budget, taken = HedgeBudget(ratio), 0
    for wish in wishes:
        budget.paid()
        taken += wish and budget.take()
    assert taken <= 1 + ratio * len(wishes) + 1e-6


def test_hedges_do_not_pile_up() -> None:
    budget = HedgeBudget(0.05)
    for _ in range(10_000):
        budget.paid()
    assert sum(budget.take() for _ in range(100)) == int(BURST)
    none = HedgeBudget(0.0)
    none.paid()
    assert not none.take()


@dataclass
class Replica:
    """An instance that takes a while."""

    name: str
    takes_s: float
    health: Health = field(default_factory=Health)
    calls: int = 0


def simulate(replicas: list[Replica], count: int, clock: Clock, chooser: Chooser) -> None:
    """Calls that come one every 2 ms and overlap; durations vary, from a seed."""
    draw, running = random.Random(7), list[tuple[float, float, Replica]]()
    for _ in range(count):
        clock.now_s += 0.002
        for done in [each for each in running if each[0] <= clock.now_s]:
            running.remove(done)
            done[2].health.succeeded(done[0] - done[1], clock.now_s)
        chosen = chooser.choose(replicas)
        assert chosen is not None
        chosen.calls += 1
        chosen.health.started(clock.now_s)
        takes_s = chosen.takes_s * draw.uniform(0.5, 1.5)
        running.append((clock.now_s + takes_s, clock.now_s, chosen))
    for end_s, start_s, replica in running:
        replica.health.succeeded(end_s - start_s, end_s)


def test_a_slow_replica_gets_few_calls() -> None:
    clock = Clock()
    replicas = [Replica("a", 0.005), Replica("b", 0.005), Replica("slow", 0.1)]
    simulate(replicas, 3_000, clock, Chooser(clock, seed=1))
    assert replicas[2].calls < 200
    assert replicas[0].calls == pytest.approx(replicas[1].calls, rel=0.3)


def test_equal_replicas_share_evenly() -> None:
    clock = Clock()
    replicas = [Replica(str(number), 0.005) for number in range(4)]
    simulate(replicas, 4_000, clock, Chooser(clock, seed=2))
    assert all(each.calls == pytest.approx(1_000, rel=0.3) for each in replicas)


def test_a_failing_replica_rests_longer_and_longer_and_returns() -> None:
    clock, good, bad = Clock(), Replica("good", 0.005), Replica("bad", 0.005)
    chooser = Chooser(clock, seed=3)
    failures, tries = 0, 0
    for _ in range(5_000):
        clock.now_s += 0.002
        chosen = chooser.choose([good, bad])
        assert chosen is not None
        chosen.health.started(clock.now_s)
        if chosen is bad:
            failures += 1
            bad.health.failed(clock.now_s)
        else:
            good.health.succeeded(0.005, clock.now_s)
    assert 2 < failures < 15  # Ten seconds, with rests of up to two.
    clock.now_s += LONGEST_REST_S
    for _ in range(100):
        chosen = chooser.choose([good, bad])
        assert chosen is not None
        chosen.health.started(clock.now_s)
        chosen.health.succeeded(0.005, clock.now_s)
        tries += chosen is bad
    assert tries > 10
    assert bad.health.failures == 0
    assert good.health.in_flight == bad.health.in_flight == 0


def test_one_that_rests_is_called_if_nobody_else_is_left() -> None:
    clock, sooner, later = Clock(), Replica("sooner", 0.0), Replica("later", 0.0)
    chooser = Chooser(clock, seed=4)
    assert chooser.choose([]) is None
    for replica, count in ((sooner, 1), (later, 3)):
        for _ in range(count):
            replica.health.started(clock.now_s)
            replica.health.failed(clock.now_s)
    assert chooser.choose([sooner, later]) is sooner
    assert chooser.choose([later]) is later


def test_the_slow_end_of_latencies_is_about_the_95th_percentile() -> None:
    health, draw = Health(), random.Random(5)
    for _ in range(5_000):
        health.started(0.0)
        health.succeeded(draw.uniform(0.010, 0.020), 0.0)
    assert health.latency_s == pytest.approx(0.015, rel=0.2)
    assert health.slow_s == pytest.approx(0.0195, rel=0.15)


def test_one_that_hangs_is_left_alone_while_it_hangs() -> None:
    clock, good, hung = Clock(), Replica("good", 0.005), Replica("hung", 0.005)
    chooser = Chooser(clock, seed=6)
    hung.health.started(clock.now_s)
    clock.now_s += 1.0
    for _ in range(20):
        good.health.started(clock.now_s)
        assert chooser.choose([good, hung]) is good


def test_a_call_that_was_given_up_counts_as_failed_only_if_it_took_for_ever() -> None:
    health = Health()
    health.started(0.0)
    health.abandoned(health.lost_s / 2, 1.0)
    assert health.failures == 0
    health.started(1.0)
    health.abandoned(health.lost_s, 2.0)
    assert health.failures == 1
    assert health.rests_until_s > 2.0
    assert health.in_flight == 0
