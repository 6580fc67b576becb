"""Are rankings compared as the papers say, and callers chosen once and for all?"""

import asyncio
import dataclasses
import itertools
import math
import random

import pytest
from shoal.broker.answer import Trace
from shoal.broker.callers import is_chosen
from shoal.broker.canary import Canary
from shoal.broker.comparison import kendall_tau, overlap, rank_biased_overlap
from shoal.broker.rollouts_server import add_report
from shoal.broker.routes import routes_of
from shoal.broker.shadow import MAX_RUNNING, Shadow
from shoal.internal.v1.topology_pb2 import IndexPlacement, Layout, ShardPlacement, Topology
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.v1.cluster_pb2 import Instance, Role
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import CanaryReport, Rollout
from shoal.v1.search_pb2 import CacheState, Coverage, Hit, SearchRequest, SearchResponse

LETTERS = "abcdefghij"


def test_overlap_is_the_part_in_common():
    assert overlap("abcd", "cdab") == 1.0
    assert overlap("abcd", "abxy") == 0.5
    assert overlap("abcd", "ab") == 0.5
    assert overlap("", "") == 1.0
    assert overlap("ab", "") == 0.0


def test_rank_biased_overlap_agrees_with_its_definition():
    """For rankings of one length, equation 30: agreement at each depth, the last one going on."""

    def by_definition(first, second, p):
        depth = len(first)
        agreed = [len(set(first[:d]) & set(second[:d])) / d for d in range(1, depth + 1)]
        seen = (1 - p) * sum(a * p ** (d - 1) for d, a in enumerate(agreed, start=1))
        return seen + agreed[-1] * p**depth

    chance = random.Random(3)
    for _ in range(200):
        first = chance.sample("abcdefghijklmnop", 10)
        second = chance.sample("abcdefghijklmnop", 10)
        assert rank_biased_overlap(first, second) == pytest.approx(
            by_definition(first, second, 0.9)
        )


def test_rank_biased_overlap_is_symmetric_bounded_and_heeds_the_top():
    chance = random.Random(4)
    for _ in range(200):
        first = chance.sample("abcdefghijklmnop", chance.randint(1, 10))
        second = chance.sample("abcdefghijklmnop", chance.randint(1, 10))
        value = rank_biased_overlap(first, second)
        assert 0.0 <= value <= 1.0 + 1e-12
        assert value == pytest.approx(rank_biased_overlap(second, first))
    assert rank_biased_overlap(LETTERS, LETTERS) == pytest.approx(1.0)
    assert rank_biased_overlap(LETTERS, "klmnopqrst") == 0.0
    assert rank_biased_overlap(LETTERS, "bacdefghij") < rank_biased_overlap(LETTERS, "abcdefghji")
    # A ranking that is cut short, and agrees as far as it goes, is taken to go on so.
    assert rank_biased_overlap(LETTERS, LETTERS[:4]) == pytest.approx(1.0)


def test_kendalls_tau_counts_pairs():
    assert kendall_tau("abcd", "abcd") == 1.0
    assert kendall_tau("abcd", "dcba") == -1.0
    assert kendall_tau("abcd", "bacd") == pytest.approx(2 * 5 / 6 - 1)
    assert kendall_tau("axb", "byza") == -1.0
    assert math.isnan(kendall_tau("ab", "bc"))


def test_a_share_of_the_callers_is_chosen_and_grows():
    callers = [f"caller-{number}" for number in range(4_000)]
    shares = (0.0, 0.05, 0.3, 1.0)
    chosen = [{each for each in callers if is_chosen(each, "uid", 2, share)} for share in shares]
    assert all(smaller <= larger for smaller, larger in itertools.pairwise(chosen))
    for share, some in zip(shares, chosen, strict=True):
        assert len(some) / len(callers) == pytest.approx(share, abs=0.03)
    others = {each for each in callers if is_chosen(each, "uid", 3, 0.3)}
    assert others != chosen[2]  # Not the same ones in every rollout.


def topology(*instances):
    def layout(version, model=""):
        placed = [ShardPlacement(shard_server="shard-server-0-0", shards=[0])]
        return Layout(
            index_version=version,
            shard_count=1,
            placements=placed,
            encoder_model=model,
            dimension=4 if model else 0,
        )

    index = IndexPlacement(
        name="docs",
        uid="uid",
        encoder_model="old@1",
        dimension=8,
        serving=layout(0),
        candidate=layout(2, "new@2"),
        rollout=Rollout(candidate_version=2, shadow_share=0.5),
    )
    named = [
        Instance(id=id_, role=Role.ROLE_ENCODER, address="a:1", model=model)
        for id_, model in instances
    ]
    return Topology(epoch=1, instances=named, indexes=[index])


def test_each_version_has_the_encoders_of_its_model():
    known = [("encoder-0", "old@1"), ("encoder-1", "old@1"), ("encoder-2-0", "new@2")]
    route = routes_of(topology(*known)).index("docs")
    assert (route.encoder_model, route.dimension) == ("old@1", 8)
    assert route.encoders == ("encoder-0", "encoder-1")
    candidate = route.version(2)
    assert (candidate.encoder_model, candidate.dimension) == ("new@2", 4)
    assert candidate.encoders == ("encoder-2-0",)
    assert route.key != candidate.key
    with pytest.raises(ServiceError, match=r"version 1 of index docs is not loaded \(0, 2 are\)"):
        route.version(1)


def test_encoders_that_have_not_said_what_they_serve_are_for_the_declared_model_alone():
    route = routes_of(topology(("encoder-0", ""))).index("docs")
    assert route.encoders == ("encoder-0",)
    assert route.version(2).encoders == ()


def answer(*ids, complete=True):
    return SearchResponse(
        hits=[Hit(document_id=each) for each in ids], coverage=Coverage(complete=complete)
    )


@pytest.fixture
def route():
    known = [("encoder-0", "old@1"), ("encoder-2-0", "new@2")]
    return routes_of(topology(*known)).index("docs")


async def settle(shadow):
    await asyncio.gather(*shadow._running)


async def test_no_more_than_a_few_comparisons_run_and_the_rest_is_dropped(route):
    gate = asyncio.Event()

    async def run(request, to, deadline):
        await gate.wait()
        assert (to.index_version, request.bypass_cache) == (2, True)
        return answer("a", "b")

    shadow = Shadow(run, draw=lambda: 0.0)
    request = SearchRequest(index="docs", text="question")
    for _ in range(MAX_RUNNING + 3):
        shadow.consider(request, route, answer("a", "c"), 0.01)
    assert shadow.report(route).dropped == 3
    shadow.consider(request, route, answer("a"), 0.01, busy=True)
    assert shadow.report(route).dropped == 4
    gate.set()
    await settle(shadow)
    report = shadow.report(route)
    assert (report.compared, report.failed) == (MAX_RUNNING, 0)
    assert list(report.overlap) == [0.5] * MAX_RUNNING
    assert not request.bypass_cache  # The caller's own request is left as it is.


async def test_what_the_candidate_cannot_answer_is_counted(route):
    async def run(request, to, deadline):
        if request.text == "late":
            raise TimeoutError
        return answer("a", complete=False)

    shadow = Shadow(run, draw=lambda: 0.0)
    for text in ("late", "cut"):
        shadow.consider(SearchRequest(text=text), route, answer("a"), 0.01)
    await settle(shadow)
    assert (shadow.report(route).compared, shadow.report(route).failed) == (0, 2)


async def test_only_sampled_questions_are_compared_and_only_in_this_rollout(route):
    async def run(request, to, deadline):
        return answer("a")

    draws = iter([0.49, 0.5, 0.51])
    shadow = Shadow(run, draw=lambda: next(draws))
    for _ in range(3):
        shadow.consider(SearchRequest(text="question"), route, answer("a"), 0.01)
    shadow.consider(SearchRequest(), route, answer("a"), 0.01)  # By vector.
    shadow.consider(SearchRequest(text="cut"), route, answer("a", complete=False), 0.01)
    await settle(shadow)
    assert shadow.report(route).compared == 1
    promoted = dataclasses.replace(route, index_version=7)
    assert shadow.report(promoted).compared == 0
    shadow.keep([promoted])
    assert shadow.report(route).compared == 0


QUESTION = SearchRequest(index="docs", text="question")


def with_canary(route, share=0.5):
    rollout = Rollout(candidate_version=2, canary_share=share)
    return dataclasses.replace(route, rollout=rollout)


def ask(canary, serving, route, response=None, cache=CacheState.CACHE_STATE_MISS, request=QUESTION):
    with canary.watching(request, serving, route) as watched:
        watched.answered(answer("a") if response is None else response, Trace(cache=cache))


def fail(canary, serving, route, error):
    with (
        pytest.raises(type(error)),
        canary.watching(QUESTION, serving, route),
    ):
        raise error


def test_a_canarys_failures_and_times_are_counted_beside_the_others(route):
    serving, canary = with_canary(route), Canary()
    ask(canary, serving, serving)
    ask(canary, serving, serving, cache=CacheState.CACHE_STATE_VECTOR_HIT)
    ask(canary, serving, serving, cache=CacheState.CACHE_STATE_HIT)  # Says nothing of a version.
    ask(canary, serving, serving.candidate)
    ask(canary, serving, serving.candidate, cache=CacheState.CACHE_STATE_BYPASS)
    ask(canary, serving, serving.candidate, cache=CacheState.CACHE_STATE_SHARED)
    ask(canary, serving, serving.candidate, answer("a", complete=False))
    fail(canary, serving, serving.candidate, TimeoutError())
    fail(canary, serving, serving.candidate, ServiceError(Reason.REASON_MODEL_MISMATCH, "other"))
    fail(canary, serving, serving.candidate, InvalidFieldError("top_k", "is the caller's"))
    report = canary.report(serving)
    assert (report.answered, report.failed) == (3, 3)
    assert (report.serving_answered, report.serving_failed) == (2, 0)
    assert (len(report.candidate_ms), len(report.serving_ms)) == (2, 1)


def test_what_all_brokers_have_seen_is_added_up():
    ours = CanaryReport(answered=3, failed=1, candidate_ms=[1.0])
    add_report(ours, CanaryReport(answered=2, serving_answered=5, candidate_ms=[2.0, 3.0]))
    assert (ours.answered, ours.failed, ours.serving_answered) == (5, 1, 5)
    assert list(ours.candidate_ms) == [1.0, 2.0, 3.0]


def test_a_candidate_that_has_gone_has_failed_its_callers(route):
    serving, canary = with_canary(route), Canary()
    canary.missed(serving)  # It is being loaded.
    assert canary.report(serving).failed == 0
    ask(canary, serving, serving.candidate)
    canary.missed(serving)
    assert (canary.report(serving).answered, canary.report(serving).failed) == (1, 1)


def test_only_what_a_canary_decides_is_counted_and_for_as_long_as_there_is_one(route):
    serving, canary = with_canary(route), Canary()
    ask(canary, with_canary(route, 0.0), route)
    ask(canary, serving, serving, request=SearchRequest(index="docs"))
    ask(canary, serving, serving.candidate, request=SearchRequest(text="x", index_version=2))
    ask(canary, serving, serving, request=SearchRequest(text="x", spaces=["code"]))
    assert canary.report(serving).ByteSize() == 0
    ask(canary, serving, serving)
    ask(canary, serving, serving, request=SearchRequest(text="x", spaces=["default"]))
    canary.keep([serving])
    assert canary.report(serving).serving_answered == 2
    canary.keep([with_canary(route, 0.0)])
    assert canary.report(serving).ByteSize() == 0


async def test_the_candidate_does_all_that_the_caller_asked_of_what_serves(route):
    """Without texts, or with the vector from the cache, it would not be the same work."""
    seen = []

    async def run(request, to, deadline):
        seen.append(request)
        return answer("a")

    shadow = Shadow(run, draw=lambda: 0.0)
    shadow.consider(QUESTION, route, answer("a"), math.nan)
    await settle(shadow)
    assert (seen[0].bypass_cache, seen[0].omit_text) == (True, False)
    report = shadow.report(route)
    assert math.isnan(report.serving_ms[0])
    assert report.candidate_ms[0] >= 0
