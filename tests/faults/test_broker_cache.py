"""Does the cache never lie, and never stand in the way? A real Redis, killed and stopped.

fault                       promise
a write between two looks   the second answer has it
Redis killed, stopped       answers go on, without it
Redis back                  it is used again
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from shoal.cluster.redis_server import RedisServer
from shoal.v1.indexes_pb2 import DescribeIndexRequest, DescribeRolloutRequest, ShadowReport
from shoal.v1.search_pb2 import CacheState, SearchResponse

from tests.harness.broker import Rig, ids_of, rigged

HIT, MISS = CacheState.CACHE_STATE_HIT, CacheState.CACHE_STATE_MISS
BYPASS, VECTOR_HIT = CacheState.CACHE_STATE_BYPASS, CacheState.CACHE_STATE_VECTOR_HIT


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis", maxmemory_bytes=4 << 20)
    server.start()
    yield server
    if server.pid is not None:
        os.kill(server.pid, signal.SIGCONT)
    server.stop()


@pytest.fixture
async def rig(redis: RedisServer) -> AsyncIterator[Rig]:
    # The machine may be busy: a look is given more time than it has in earnest.
    async with rigged(redis_url=redis.url, redis_timeout_s=1.0) as rig:
        await hears(rig, 1)
        yield rig


async def hears(rig: Rig, version: int) -> None:
    """Wait until the broker knows that all shards have applied a version."""
    async with asyncio.timeout(20):
        while True:
            request = DescribeIndexRequest(name="books")
            answer = await rig.caller.call(rig.caller.indexes.DescribeIndex, request)
            if all(each.table_version == version for each in answer.shards):
                return
            await asyncio.sleep(0.02)


async def search_until(rig: Rig, state: CacheState.ValueType, query: str) -> SearchResponse:
    """Search until the cache does what it should: what is stored is stored in the background."""
    async with asyncio.timeout(20):
        while True:
            response = await rig.search(query, explain=True)
            assert ids_of(response) == rig.best(query)
            if response.explanation.cache == state:
                return response
            await asyncio.sleep(0.02)


async def test_what_was_answered_is_answered_again(rig: Rig) -> None:
    first = await rig.search("reef gull", explain=True)
    assert first.explanation.cache == MISS
    second = await search_until(rig, HIT, "reef gull")
    assert second.hits == first.hits
    assert second.coverage == first.coverage
    assert second.explanation.broker == "broker-0"
    calls = len(rig.encoder.calls)
    await search_until(rig, HIT, "reef gull")
    assert len(rig.encoder.calls) == calls


async def test_a_vector_is_not_computed_twice(rig: Rig) -> None:
    await search_until(rig, HIT, "reef gull")
    calls = len(rig.encoder.calls)
    response = await rig.search("reef gull", explain=True, top_k=3)
    assert response.explanation.cache == VECTOR_HIT
    assert len(rig.encoder.calls) == calls


async def test_a_question_whose_vector_was_known_is_no_measure_for_a_candidate(rig: Rig) -> None:
    """The candidate encodes it in every comparison, and would seem slower than it is."""
    (index,) = rig.cluster.indexes
    index.candidate.CopyFrom(index.serving)
    index.candidate.index_version = index.serving.index_version + 1
    index.rollout.shadow_share = 1.0
    await rig.cluster.publish()

    async def compared(count: int) -> ShadowReport:
        request = DescribeRolloutRequest(name="books")
        async with asyncio.timeout(20):
            while True:
                seen = await rig.caller.call(rig.caller.indexes.DescribeRollout, request)
                assert seen.shadow.failed == 0
                if seen.shadow.compared == count:
                    return seen.shadow
                await asyncio.sleep(0.02)

    assert (await rig.search("reef gull", explain=True)).explanation.cache == MISS
    await compared(1)
    await search_until(rig, HIT, "reef gull")
    response = await rig.search("reef gull", explain=True, top_k=3)
    assert response.explanation.cache == VECTOR_HIT
    shadow = await compared(2)
    assert [math.isnan(each) for each in shadow.serving_ms] == [False, True]
    assert not any(map(math.isnan, shadow.candidate_ms))


async def test_who_bypasses_the_cache_neither_reads_nor_writes_it(rig: Rig) -> None:
    for _ in range(2):
        response = await rig.search("reef gull", explain=True, bypass_cache=True)
        assert response.explanation.cache == BYPASS
    response = await rig.search("reef gull", explain=True)
    assert response.explanation.cache == MISS
    assert len(rig.encoder.calls) == 3


async def test_an_acknowledged_write_is_never_hidden_by_the_cache(rig: Rig) -> None:
    """The writer's answer names a version; whoever asks for it gets it, however hot the query."""
    await search_until(rig, HIT, "whale ship")
    for version in range(2, 8):
        rig.library.version = version
        response = await rig.search("whale ship", min_table_version=version, explain=True)
        assert response.table_version >= version
        assert response.explanation.cache != HIT


async def test_a_write_makes_old_answers_unreachable_by_itself(rig: Rig) -> None:
    await search_until(rig, HIT, "whale ship")
    rig.library.version = 2
    await hears(rig, 2)
    response = await rig.search("whale ship", explain=True)
    assert response.table_version == 2
    assert response.explanation.cache == VECTOR_HIT


async def test_an_answer_is_not_kept_longer_than_what_it_was_found_among(rig: Rig) -> None:
    expires_s = time.time() + 2.0
    rig.shards["shard-server-1"].next_expiry_s = expires_s
    await search_until(rig, HIT, "whale ship")
    async with asyncio.timeout(20):
        while True:
            at_s = time.time()
            response = await rig.search("whale ship", explain=True)
            # Redis counts from when it was told, which is a little later than it was reckoned.
            if at_s > expires_s + 1.0:
                assert response.explanation.cache != HIT
            if response.explanation.cache != HIT:
                assert time.time() >= expires_s
                break
            await asyncio.sleep(0.02)
    # What is due already is not kept at all.
    for _ in range(5):
        response = await rig.search("whale ship", explain=True)
        assert response.explanation.cache == VECTOR_HIT
    rig.shards["shard-server-1"].next_expiry_s = time.time() + 3600
    await search_until(rig, HIT, "whale ship")


async def test_who_shares_an_answer_gets_none_that_has_expired_meanwhile(rig: Rig) -> None:
    server = rig.shards["shard-server-0"]
    for next_expiry_s, calls in ((None, 1), (time.time() - 1.0, 2)):
        server.next_expiry_s = next_expiry_s
        server.faults.gate.clear()
        server.calls.clear()
        query = f"storm {calls}"
        searches = [asyncio.create_task(rig.search(query)) for _ in range(2)]
        async with asyncio.timeout(20):
            while rig.under_way < 2 or not server.calls:
                await asyncio.sleep(0.01)
        server.faults.gate.set()
        for response in await asyncio.gather(*searches):
            assert ids_of(response) == rig.best(query)
        assert len(server.calls) == calls


async def test_a_partial_answer_is_not_kept(rig: Rig) -> None:
    server = rig.shards["shard-server-1"]
    server.faults.gate.clear()
    assert not (await rig.search("storm", timeout_s=1.0)).coverage.complete
    server.faults.gate.set()
    response = await rig.search("storm", explain=True)
    assert response.coverage.complete
    assert response.explanation.cache != HIT


async def test_answers_go_on_when_redis_is_killed_and_it_is_used_again(
    rig: Rig, redis: RedisServer
) -> None:
    await search_until(rig, HIT, "whale ship")
    assert redis.pid is not None
    os.kill(redis.pid, signal.SIGKILL)
    for number in range(10):
        query = f"whale {number}"
        assert ids_of(await rig.search(query)) == rig.best(query)
    redis.restart()
    await search_until(rig, HIT, "whale ship")


async def test_answers_go_on_while_redis_is_stopped(redis: RedisServer) -> None:
    """Slow is worse than dead: the connection stands, and nothing comes."""
    async with rigged(redis_url=redis.url, redis_timeout_s=0.05) as rig:
        await hears(rig, 1)
        assert redis.pid is not None
        os.kill(redis.pid, signal.SIGSTOP)
        for number in range(10):
            query = f"whale {number}"
            response = await rig.search(query, timeout_s=5.0, explain=True)
            assert ids_of(response) == rig.best(query)
        assert response.explanation.cache == BYPASS
        os.kill(redis.pid, signal.SIGCONT)
        await search_until(rig, HIT, "whale ship")


async def test_redis_that_never_was_is_not_missed(tmp_path: Path) -> None:
    async with rigged(redis_url=f"unix://{tmp_path}/nobody.sock") as rig:
        for _ in range(3):
            assert ids_of(await rig.search()) == rig.best()


async def test_a_crowd_does_not_switch_the_cache_off(rig: Rig) -> None:
    """More looks at once than there are connections is no fault of Redis."""
    await search_until(rig, HIT, "whale ship")
    await asyncio.gather(*(rig.search(f"reef {number}") for number in range(150)))
    response = await rig.search("whale ship", explain=True)
    assert response.explanation.cache == HIT


async def test_rubbish_in_the_cache_is_a_miss(rig: Rig, redis: RedisServer) -> None:
    import redis as redis_py

    await search_until(rig, HIT, "whale ship")
    with redis_py.Redis.from_url(redis.url) as store:
        for key in list(store.scan_iter()):
            store.set(key, b"\xff\xff rubbish")
    response = await rig.search("whale ship", explain=True)
    assert ids_of(response) == rig.best("whale ship")
    assert response.explanation.cache == MISS
