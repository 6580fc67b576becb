"""Are shards of another division made by moving codes, and do they find what was found before?"""

import asyncio
import contextlib
import errno

import numpy as np
import pytest
from shoal.internal.v1 import shard_pb2 as pb
from shoal.internal.v1.shard_pb2_grpc import ShardServiceStub
from shoal.internal.v1.topology_pb2 import PublishTopologyRequest
from shoal.internal.v1.topology_pb2_grpc import TopologyServiceStub
from shoal.rpc.arrays import pack_vectors
from shoal.rpc.channels import open_channel
from shoal.rpc.server import ServiceHost
from shoal.shard import origin
from shoal.shard.codebook import train_codebook
from shoal.shard.config import ShardSettings
from shoal.shard.segment_folder import HashedFile
from shoal.shard.server import ShardService
from shoal.table.slots import shard_of, slot_of

from tests.harness.shard_corpus import SERVER, UID, Corpus, layout, topology

PATIENCE_S = 30.0
DIMENSION = 32


class Server:
    """A running shard server, and calls to it."""

    def __init__(self, corpus, channel):
        self.corpus = corpus
        self.stub = ShardServiceStub(channel)
        self.topology = TopologyServiceStub(channel)
        self.epoch = 0
        self.serving = None
        self.flying = 0

    async def publish(self, serving, preparing=None):
        self.epoch += 1
        request = PublishTopologyRequest(
            topology=topology(self.corpus, self.epoch, serving, preparing), instance_id=SERVER
        )
        assert not (await self.topology.PublishTopology(request, timeout=PATIENCE_S)).refusal

    async def states(self, shards, version=0):
        """States of a layout, once all of its shards have applied a version."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                states = (await self.stub.DescribeShards(pb.DescribeShardsRequest())).shards
                mine = [each for each in states if each.layout.shard_count == shards]
                ready = [each for each in mine if each.ready and each.table_version >= version]
                if len(ready) == shards:
                    return mine
                await asyncio.sleep(0.02)

    async def change(self, wanted, version=0):
        """From what serves to another division, as the controller does it."""
        before = self.serving or wanted
        await self.publish(before, wanted)
        states = await self.states(wanted.shard_count, version)
        # Brokers follow first; what they asked of the old one is answered before it goes.
        self.serving, old = wanted, self.flying
        async with asyncio.timeout(PATIENCE_S):
            while old and self.flying:
                await asyncio.sleep(0)
        await self.publish(wanted)
        return states

    async def search(self, queries, wanted, top_k=10):
        request = pb.SearchShardsRequest(
            layout=pb.LayoutKey(
                index_uid=UID, index_version=wanted.index_version, shard_count=wanted.shard_count
            ),
            shards=range(wanted.shard_count),
            queries=pack_vectors(queries),
            top_k=[top_k] * len(queries),
            fill=[pb.FILL_REFERENCE] * len(queries),
        )
        self.flying += 1
        try:
            return await self.stub.SearchShards(request, timeout=PATIENCE_S)
        finally:
            self.flying -= 1


@contextlib.asynccontextmanager
async def serving(corpus, **settings):
    # A fold gives the tail codes, and so other scores: none here, unless a test asks for them.
    settings = {"follow_interval_s": 0.05, "threads": 1, "fold_at_passages": 5000} | settings
    service = ShardService(ShardSettings(**settings), SERVER)
    host = ServiceHost(service, "127.0.0.1:0")
    channel = open_channel(await host.start())
    try:
        yield Server(corpus, channel)
    finally:
        await channel.close()
        await host.stop(grace_s=2.0)


@pytest.fixture(params=["exact", "codes"])
def indexed(request, tmp_path):
    """A corpus, and its layouts by the number of shards."""
    corpus = Corpus(tmp_path, dimension=DIMENSION, seed=2)
    corpus.fill(600)
    if request.param == "exact":
        return corpus, layout
    train_codebook(corpus.uri, tmp_path / "codebook", threads=1)
    return corpus, lambda count: layout(count, codebook=tmp_path / "codebook")


def told(response):
    """What a search found, without where."""
    return [
        (
            np.frombuffer(result.row_ids, "<u8").tolist(),
            np.frombuffer(result.scores, "<f4").tolist(),
            [each.document_id for each in result.hits],
        )
        for result in response.results
    ]


def forbid_the_table(monkeypatch):
    def build(*_):
        raise AssertionError("the table was read")

    monkeypatch.setattr(origin, "build_runs", build)


def change_some(corpus, step):
    """Upserts and deletes, fewer than a fold takes."""
    names = [f"doc-{at}" for at in range(step * 20, step * 20 + 12)]
    new = {f"new-{step}-{at}": corpus.document("new", 2) for at in range(10)}
    return corpus.write(
        {name: corpus.document(name, 2) for name in names[:8]} | new, tuple(names[8:])
    )


async def test_splits_and_merges_find_the_same(indexed, monkeypatch, tmp_path):
    corpus, divided = indexed
    queries = corpus.vectors(40)
    async with serving(corpus, snapshot_dir=tmp_path / "own", snapshot_interval_s=0) as server:
        await server.change(divided(2))
        forbid_the_table(monkeypatch)
        before = divided(2)
        for step, count in enumerate((4, 3, 1, 2)):
            version = change_some(corpus, step)
            await server.states(before.shard_count, version)
            expected = told(await server.search(queries, before))
            states = await server.change(divided(count), version)
            response = await server.search(queries, divided(count))
            assert told(response) == expected
            for result in response.results:
                shards = np.frombuffer(result.shards, "<u4").tolist()
                for document, shard in zip(result.hits, shards, strict=True):
                    assert shard_of(slot_of(document.document_id), count) == shard
            assert sum(state.passage_count for state in states) == corpus.passage_count
            assert sum(state.document_count for state in states) == len(corpus.present)
            before = divided(count)


async def test_nothing_fails_and_nothing_is_lost_while_shards_move(indexed, monkeypatch):
    corpus, divided = indexed
    async with serving(corpus, fold_at_passages=30) as server:
        await server.change(divided(2))
        forbid_the_table(monkeypatch)
        stop = asyncio.Event()
        searched = 0

        async def search():
            nonlocal searched
            while not stop.is_set():
                wanted = server.serving
                response = await server.search(corpus.vectors(4), wanted)
                assert all(state.ready for state in response.shards)
                searched += 1
                await asyncio.sleep(0.001)

        searching = asyncio.create_task(search())
        for step, count in enumerate((4, 3, 6, 1)):
            # Written while the new shards are being made, too.
            writing = asyncio.create_task(asyncio.to_thread(change_some, corpus, step))
            await server.change(divided(count))
            version = await writing
            await server.states(count, version)
        stop.set()
        await searching
        assert searched
        response = await server.search(corpus.vectors(30), divided(1), 30)
        names = {each.document_id for result in response.results for each in result.hits}
        assert names <= corpus.present.keys()
        (state,) = response.shards
        assert state.passage_count == corpus.passage_count
        assert state.document_count == len(corpus.present)


async def test_moved_shards_outlive_a_restart(indexed, monkeypatch, tmp_path):
    corpus, divided = indexed
    queries = corpus.vectors(20)
    own = {"snapshot_dir": tmp_path / "own", "snapshot_interval_s": 0}
    async with serving(corpus, **own) as server:
        await server.change(divided(2))
        await server.states(2, change_some(corpus, 0))
        await server.change(divided(3))
        expected = told(await server.search(queries, divided(3)))
        async with asyncio.timeout(PATIENCE_S):
            while len(list((tmp_path / "own").glob("*/*-of-3/shard-*/manifest.json"))) < 3:
                await asyncio.sleep(0.02)
    forbid_the_table(monkeypatch)
    async with serving(corpus, **own) as server:
        states = await server.change(divided(3), corpus.table.version)
        assert told(await server.search(queries, divided(3))) == expected
        assert sum(state.passage_count for state in states) == corpus.passage_count


async def test_what_others_have_stored_is_taken(indexed, monkeypatch, tmp_path):
    corpus, divided = indexed
    queries = corpus.vectors(20)
    shared = tmp_path / "shared"
    async with serving(corpus, snapshot_dir=shared / "a", snapshot_interval_s=0) as server:
        await server.change(divided(4))
        expected = told(await server.search(queries, divided(4)))
        async with asyncio.timeout(PATIENCE_S):
            while len(list((shared / "a").glob("*/*/shard-*/manifest.json"))) < 4:
                await asyncio.sleep(0.02)
    forbid_the_table(monkeypatch)
    for step, count in enumerate((4, 3)):
        own = {"snapshot_dir": shared / f"b{count}", "shared_snapshot_dir": shared}
        async with serving(corpus, **own) as server:
            await server.change(divided(count))
            if step == 0:
                assert told(await server.search(queries, divided(count))) == expected
            # What was stored is not the latest: the rest comes from the table.
            states = await server.states(count, change_some(corpus, step))
            assert sum(state.passage_count for state in states) == corpus.passage_count
            assert sum(state.document_count for state in states) == len(corpus.present)


async def test_a_full_disk_leaves_searches_alone_and_is_said(
    indexed, monkeypatch, tmp_path, caplog
):
    corpus, divided = indexed

    def write(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HashedFile, "write", write)
    own = {"snapshot_dir": tmp_path / "own", "snapshot_interval_s": 0}
    async with serving(corpus, **own) as server:
        await server.change(divided(2))

        async def told_so(expected):
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    states = await server.states(2)
                    if all(("No space left" in state.message) == expected for state in states):
                        return states
                    await asyncio.sleep(0.02)

        states = await told_so(expected=True)
        assert "shard 1 cannot be stored" in states[1].message
        assert "cannot be stored: [Errno 28] No space left on device" in caplog.text
        response = await server.search(corpus.vectors(3), divided(2))
        assert all(state.ready for state in response.shards)
        assert not list((tmp_path / "own").glob("*/*/shard-*/*.npy"))
        monkeypatch.undo()
        await told_so(expected=False)
        assert list((tmp_path / "own").glob("*/*/shard-*/*.npy"))


async def test_only_the_slots_that_nobody_has_are_encoded(indexed, monkeypatch):
    corpus, divided = indexed
    queries = corpus.vectors(20)
    async with serving(corpus) as server:
        await server.change(divided(1))
        expected = told(await server.search(queries, divided(1)))
    built = []
    original = origin.build_runs

    def build(table, codebook, runs):
        built.extend(runs)
        return original(table, codebook, runs)

    monkeypatch.setattr(origin, "build_runs", build)
    async with serving(corpus) as server:
        half = divided(2)
        del half.placements[0].shards[1]
        await server.publish(half)
        async with asyncio.timeout(PATIENCE_S):
            while not [
                state
                for state in (await server.stub.DescribeShards(pb.DescribeShardsRequest())).shards
                if state.ready
            ]:
                await asyncio.sleep(0.02)
        await server.publish(half, divided(3))
        await server.states(3)
        assert built == [(0, 512), (512, 683), (683, 1024)]
        assert told(await server.search(queries, divided(3))) == expected
