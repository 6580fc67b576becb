"""Does the broker follow the topology while it serves: instances, layouts, indexes?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from shoal.internal.v1.shard_pb2 import LayoutKey
from shoal.rpc.errors import ServiceError
from shoal.v1.cluster_pb2 import InstanceState
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import DescribeIndexRequest, IndexState

from tests.harness.broker import ONE_SERVER, TWO_SERVERS, Rig, ids_of, rigged
from tests.harness.cluster import key_of, placement, until
from tests.harness.stand_ins import (
    DIMENSION,
    ENCODER_MODEL,
    StandInEncoder,
    StandInShardServer,
)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with rigged(TWO_SERVERS) as rig:
        yield rig


async def describe(rig: Rig) -> IndexState.ValueType:
    request = DescribeIndexRequest(name="books")
    answer = await rig.caller.call(rig.caller.indexes.DescribeIndex, request)
    state: IndexState.ValueType = answer.index.state
    return state


async def test_an_older_epoch_changes_nothing(rig: Rig) -> None:
    rig.cluster.epoch = 0
    rig.cluster.indexes.clear()
    await rig.cluster.heartbeat()
    assert ids_of(await rig.search()) == rig.best()


async def test_an_index_leaves_and_another_comes(rig: Rig) -> None:
    placed = placement("films", TWO_SERVERS, dimension=DIMENSION, encoder_model=ENCODER_MODEL)
    placed.uid = rig.cluster.indexes[0].uid
    rig.cluster.indexes[:] = [placed]
    await rig.cluster.publish()
    assert ids_of(await rig.search(index="films")) == rig.best()
    with pytest.raises(ServiceError, match="films") as caught:
        await rig.search()
    assert caught.value.reason == Reason.REASON_INDEX_NOT_FOUND


async def test_an_index_that_nobody_serves_yet_is_loading(rig: Rig) -> None:
    index = rig.cluster.indexes[0]
    index.preparing.CopyFrom(index.serving)
    index.ClearField("serving")
    await rig.cluster.publish()
    assert await describe(rig) == IndexState.INDEX_STATE_LOADING
    with pytest.raises(ServiceError, match="loaded") as caught:
        await rig.search()
    assert caught.value.reason == Reason.REASON_NOT_READY


async def test_a_missing_shard_server_degrades_an_index(rig: Rig) -> None:
    async with asyncio.timeout(20):
        while await describe(rig) != IndexState.INDEX_STATE_READY:
            await asyncio.sleep(0.02)
        rig.shards["shard-server-1"].unready = {0, 1}
        while await describe(rig) != IndexState.INDEX_STATE_DEGRADED:
            await asyncio.sleep(0.02)


async def test_no_query_fails_while_the_layout_changes(rig: Rig) -> None:
    """From two servers with a shard each to one server with both, and back, under traffic."""
    index, stop = rig.cluster.indexes[0], asyncio.Event()
    whole = placement("books", ONE_SERVER, dimension=DIMENSION, encoder_model=ENCODER_MODEL)
    whole.serving.placements[0].shard_server = "shard-server-9"
    key: LayoutKey = key_of(whole)
    server = StandInShardServer("shard-server-9", rig.library, key)
    await rig.cluster.add(server)
    count = 0

    async def ask(name: str) -> None:
        nonlocal count
        while not stop.is_set():
            response = await rig.search(f"whale {name}", bypass_cache=True)
            assert response.coverage.complete
            assert ids_of(response) == rig.best(f"whale {name}")
            count += 1

    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(ask(name))
        for each in (whole, index) * 3:
            rig.cluster.indexes[:] = [each]
            await rig.cluster.publish()
            asked = count
            while count < asked + 10:
                await asyncio.sleep(0.01)
        stop.set()
    assert server.calls


async def test_an_encoder_that_drains_gets_nothing_new(rig: Rig) -> None:
    other = StandInEncoder("encoder-1")
    await rig.cluster.add(other)
    rig.cluster.instances["encoder-0"].state = InstanceState.INSTANCE_STATE_DRAINING
    await rig.cluster.publish()
    for number in range(4):
        await rig.search(f"whale {number}")
    assert len(other.calls) == 4
    assert not rig.encoder.calls


async def test_a_call_to_one_that_has_left_is_made_again_elsewhere(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.broker.targets.CLOSE_GRACE_S", 0.05)
    rig.encoder.faults.gate.clear()
    search = asyncio.create_task(rig.search())
    await until(lambda: bool(rig.encoder.calls))
    await rig.cluster.add(StandInEncoder("encoder-1"))
    del rig.cluster.instances["encoder-0"]
    await rig.cluster.publish()
    assert ids_of(await search) == rig.best()


async def test_a_broker_that_stops_finishes_what_it_has_begun(rig: Rig) -> None:
    rig.encoder.faults.gate.clear()
    search = asyncio.create_task(rig.search())
    await until(lambda: bool(rig.encoder.calls))
    stopping = asyncio.create_task(rig.cluster.hosts["broker-0"].stop(20.0))
    health = rig.cluster.hosts["broker-0"]._health
    await until(lambda: health._gracefully_shutting_down)
    assert not stopping.done()
    rig.encoder.faults.gate.set()
    assert ids_of(await search) == rig.best()
    await stopping
