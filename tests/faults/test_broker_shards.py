"""What does a search answer when shard servers are dead, hang, are slow, or not ready?

fault                             promise
one of two groups away            the rest answers in time, and the answer says what is missing
... and `require_complete`        ABORTED
both away                         an error, in time
one of two replicas away          a complete answer
text of the winners lost          the answer says so
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from shoal.rpc.errors import ServiceError
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import DescribeIndexRequest
from shoal.v1.search_pb2 import Stage

from tests.harness.broker import ONE_SERVER, TWO_REPLICAS, Rig, ids_of, rigged
from tests.harness.cluster import until
from tests.harness.stand_ins import unavailable

# The deadline of a call. gRPC keeps it: whatever is answered was answered in time.
BUDGET_S = 2.0

DEAD, HANGS, SLOW, FAILS, NOT_READY = "dead", "hangs", "slow", "fails", "not ready"


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with rigged() as rig:
        assert (await rig.search()).coverage.complete
        yield rig


async def strike(rig: Rig, server_id: str, fault: str) -> None:
    server = rig.shards[server_id]
    if fault == DEAD:
        await rig.cluster.kill(server_id)
    elif fault == HANGS:
        server.faults.gate.clear()
        server.describes.gate.clear()
    elif fault == SLOW:
        server.faults.delay_s = 60.0
    elif fault == FAILS:
        server.faults.fails = unavailable()
    else:
        server.unready = {0, 1}


@pytest.mark.parametrize("fault", [DEAD, HANGS, SLOW, FAILS, NOT_READY])
async def test_the_rest_answers_and_says_what_is_missing(rig: Rig, fault: str) -> None:
    await strike(rig, "shard-server-1", fault)
    response = await rig.search(timeout_s=BUDGET_S, rerank=True)
    coverage = response.coverage
    assert len(response.hits) == 10
    assert set(ids_of(response)) <= set(rig.best(count=60, without=1))
    assert not coverage.complete
    assert (coverage.shards_searched, coverage.shards_total) == (1, 2)
    assert (coverage.passages_searched, coverage.passages_total) == (
        len(rig.library.rows_of([0], 2)),
        60,
    )
    (cut,) = [each for each in coverage.cuts if each.stage == Stage.STAGE_SEARCH]
    assert cut.reason in {"SHARD_UNAVAILABLE", "DEADLINE_SHARE_SPENT"}
    assert "shard 1" in cut.message
    assert "shard-server-1" in cut.message


@pytest.mark.parametrize("fault", [DEAD, HANGS, NOT_READY])
async def test_whoever_wants_all_or_nothing_gets_nothing(rig: Rig, fault: str) -> None:
    await strike(rig, "shard-server-1", fault)
    with pytest.raises(ServiceError, match="shard 1") as caught:
        await rig.search(timeout_s=BUDGET_S, require_complete=True)
    assert caught.value.reason == Reason.REASON_COVERAGE_INCOMPLETE
    assert caught.value.failure.code == grpc.StatusCode.ABORTED


@pytest.mark.parametrize("fault", [DEAD, HANGS, FAILS, NOT_READY])
async def test_nobody_answers(rig: Rig, fault: str) -> None:
    for id_ in rig.shards:
        await strike(rig, id_, fault)
    with pytest.raises(ServiceError) as caught:
        await rig.search(timeout_s=BUDGET_S)
    expected = (
        Reason.REASON_DEADLINE_EXCEEDED if fault == HANGS else Reason.REASON_SHARD_UNAVAILABLE
    )
    assert caught.value.reason == expected
    assert "shard server" in str(caught.value)  # The broker's words, not those of a timer.


async def test_a_server_that_comes_back_is_searched_again(rig: Rig) -> None:
    server = rig.shards["shard-server-1"]
    address = rig.cluster.instances["shard-server-1"].address
    await rig.cluster.kill("shard-server-1")
    assert not (await rig.search(timeout_s=BUDGET_S)).coverage.complete
    await rig.cluster.add(server, listen=address)
    async with asyncio.timeout(20):
        while not (await rig.search(timeout_s=5.0)).coverage.complete:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("fault", [DEAD, HANGS, FAILS, NOT_READY])
@pytest.mark.parametrize("version", [0, 1])
async def test_another_replica_makes_the_answer_complete(fault: str, version: int) -> None:
    async with rigged(TWO_REPLICAS) as rig:
        await strike(rig, "shard-server-0", fault)
        for _ in range(12):
            response = await rig.search(
                timeout_s=10.0, bypass_cache=True, min_table_version=version
            )
            assert response.coverage.complete
            assert ids_of(response) == rig.best()


async def test_a_slow_replica_is_hedged() -> None:
    """Whichever is asked first, the other one answers long before it would."""
    async with rigged(TWO_REPLICAS) as rig:
        rig.shards["shard-server-0"].faults.delay_s = 60.0
        for _ in range(12):
            assert ids_of(await rig.search(timeout_s=20.0, bypass_cache=True)) == rig.best()
        assert rig.shards["shard-server-1"].calls


async def test_no_hedges_no_harm() -> None:
    """Without a token, a call that is lost is made again elsewhere all the same."""
    async with rigged(TWO_REPLICAS, hedge_ratio=0.0) as rig:
        rig.shards["shard-server-0"].faults.gate.clear()
        for _ in range(12):
            assert ids_of(await rig.search(timeout_s=20.0, bypass_cache=True)) == rig.best()


async def heard_of(rig: Rig, versions: set[int]) -> None:
    """Wait until the broker knows what each replica has applied."""
    async with asyncio.timeout(20):
        while True:
            request = DescribeIndexRequest(name="books")
            answer = await rig.caller.call(rig.caller.indexes.DescribeIndex, request)
            if {each.table_version for each in answer.shards} == versions:
                return
            await asyncio.sleep(0.02)


async def test_a_write_is_read_from_a_replica_that_has_it() -> None:
    """One replica applied it: the other one must not answer, although it is asked as often."""
    async with rigged(TWO_REPLICAS) as rig:
        rig.shards["shard-server-0"].version = 1
        rig.library.version = 2
        await heard_of(rig, {1, 2})
        for _ in range(10):
            response = await rig.search(timeout_s=10.0, min_table_version=2, bypass_cache=True)
            assert response.table_version == 2


@pytest.mark.parametrize("fault", ["hangs", "fails"])
async def test_text_that_could_not_be_read_is_missed_aloud(rig: Rig, fault: str) -> None:
    """The shards answered, but the winners of one of them are gone with it."""
    fetches = rig.shards["shard-server-1"].fetches
    if fault == "hangs":
        fetches.gate.clear()
    else:
        fetches.fails = unavailable("the table is away")
    response = await rig.search("storm sail", timeout_s=BUDGET_S)
    assert response.hits
    assert set(ids_of(response)) < set(rig.best("storm sail"))
    assert not response.coverage.complete
    (cut,) = response.coverage.cuts
    assert cut.stage == Stage.STAGE_FETCH
    assert "shard-server-1" in cut.message


async def test_a_caller_that_leaves_does_not_take_its_batch_along() -> None:
    async with rigged(ONE_SERVER) as rig:
        server = rig.shards["shard-server-0"]
        server.faults.gate.clear()
        searches = [
            asyncio.create_task(rig.search(f"whale {number}", timeout_s=20.0, bypass_cache=True))
            for number in range(8)
        ]
        await until(lambda: bool(server.calls) and rig.under_way == 8)
        for number in (0, 3, 5):
            searches[number].cancel()
        server.faults.gate.set()
        found = await asyncio.gather(*searches, return_exceptions=True)
        for number, response in enumerate(found):
            if number in (0, 3, 5):
                assert isinstance(response, asyncio.CancelledError)
            else:
                assert not isinstance(response, BaseException)
                assert ids_of(response) == rig.best(f"whale {number}")


async def test_a_failing_server_costs_each_caller_no_more_than_its_deadline(rig: Rig) -> None:
    await strike(rig, "shard-server-1", HANGS)
    budgets_s = (0.5, 1.0, 2.0)
    found = await asyncio.gather(
        *(rig.search(f"gull {budget_s}", timeout_s=budget_s) for budget_s in budgets_s),
        return_exceptions=True,
    )
    assert not isinstance(found[-1], BaseException)
    assert found[-1].coverage.shards_searched == 1
