"""Is a snapshot, or what is made of one, there as a whole or not at all, whatever happens?

| what happens                             | what is promised                               |
| ---------------------------------------- | ---------------------------------------------- |
| the writer is killed while it takes one  | none, or a whole one; the next one succeeds    |
| the writer is killed while it restores   | no index and no files, or a whole index        |
| the caller leaves in mid-copy            | nothing is left behind                         |
| the writer stops in mid-copy             | the same, and the caller is told               |
| the index is dropped while it is copied  | the copy fails by name, and leaves nothing     |
| its version is dropped meanwhile         | the same                                       |
| a copy hangs                             | writes and searches go on                      |
| a full disk, a damaged file, a power cut | tests/unit/test_table_snapshots.py, contract   |
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from shoal.client import (
    AbortedError,
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    IndexNotFoundError,
    OverloadedError,
    UnavailableError,
)
from shoal.internal.v1 import writer_pb2 as pb
from shoal.internal.v1.writer_pb2_grpc import WriterServiceStub
from shoal.rpc.arrays import pack_vectors
from shoal.rpc.channels import open_channel
from shoal.rpc.errors import service_error_of
from shoal.table import PassageTable, stores
from shoal.v1.documents_pb2 import Document, UpsertDocumentsRequest
from shoal.v1.errors_pb2 import Reason

from tests.faults.test_writer_kill import writer_process
from tests.harness.controlled import DIMENSION, clustered, controlled, ended, fill, ids, until

VECTORS = clustered(700)
WIDE = 256
DOCUMENTS = 6_000


class Gate:
    """Holds copies at their first block, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        blocks = stores.Store.blocks

        def held(store: Any, name: str, missing: Exception) -> Iterator[bytes]:
            self.begun.set()
            assert self.go_on.wait(60)
            yield from blocks(store, name, missing)  # type: ignore[arg-type]

        monkeypatch.setattr(stores.Store, "blocks", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.go_on.set()


async def test_a_caller_that_leaves_ends_the_copy_and_work_goes_on_meanwhile(
    tmp_path: Path, gate: Gate
) -> None:
    kept = tmp_path / "kept"
    async with controlled(tmp_path / "home") as (cluster, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", VECTORS)
        with pytest.raises(DeadlineExceededError):
            await client.snapshot_index("docs", str(kept), timeout_s=1.0)
        assert gate.begun.is_set()
        # The copy hangs at its first block; nobody else does.
        version = await fill(client, "docs", clustered(10, seed=1), first=700)
        await client.search("docs", VECTORS[7], min_table_version=version)
        assert await ids(client, "docs", VECTORS[7], 1) == ["d7"]
        gate.go_on.set()
        await until(lambda: not kept.exists())
        writer: Any = cluster.platform.hosts["writer-0"].service
        table = writer.indexes.get("docs").table
        await until(lambda: table.pins() == [])

        await client.snapshot_index("docs", str(kept))
        folders = len(list((tmp_path / "home" / "data" / "indexes").iterdir()))
        gate.go_on.clear()
        with pytest.raises(DeadlineExceededError):
            await client.restore_index(str(kept), name="again", timeout_s=1.0)
        gate.go_on.set()
        indexes = tmp_path / "home" / "data" / "indexes"
        await until(lambda: len(list(indexes.iterdir())) == folders)
        index = await client.restore_index(str(kept), name="again")
        assert index.document_count == 710


async def test_more_copies_than_are_done_at_a_time_are_refused(tmp_path: Path, gate: Gate) -> None:
    async with controlled(tmp_path / "home") as (_, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", VECTORS[:20])
        copies = [
            asyncio.create_task(client.snapshot_index("docs", str(tmp_path / f"kept-{number}")))
            for number in range(2)
        ]
        await until(lambda: all((tmp_path / f"kept-{n}").exists() for n in range(2)))
        with pytest.raises(OverloadedError) as refused:
            await client.snapshot_index("docs", str(tmp_path / "kept-2"))
        assert refused.value.retry_delay_s
        gate.go_on.set()
        for copy in copies:
            assert (await copy).document_count == 20


async def test_two_snapshots_to_one_place(tmp_path: Path, gate: Gate) -> None:
    kept = tmp_path / "kept"
    async with controlled(tmp_path / "home") as (_, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", VECTORS[:20])
        taking = asyncio.create_task(client.snapshot_index("docs", str(kept)))
        await until(gate.begun.is_set)
        with pytest.raises(AlreadyExistsError, match="is being taken"):
            await client.snapshot_index("docs", f"{kept}/")
        gate.go_on.set()
        assert (await taking).document_count == 20
        assert (await client.restore_index(str(kept), name="again")).document_count == 20


async def test_a_writer_that_stops_ends_its_copies(tmp_path: Path, gate: Gate) -> None:
    kept = tmp_path / "kept"
    async with controlled(tmp_path / "home") as (cluster, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", VECTORS[:20])
        taking = asyncio.create_task(client.snapshot_index("docs", str(kept)))
        await until(gate.begun.is_set)
        stopping = asyncio.create_task(cluster.platform.hosts["writer-0"].stop(5.0))
        await asyncio.sleep(0)
        gate.go_on.set()
        with pytest.raises(UnavailableError):
            await taking
        await stopping
        assert not kept.exists()
        await cluster.platform.start_again("writer-0")
        assert (await client.snapshot_index("docs", str(kept))).document_count == 20


@pytest.mark.parametrize("what", ["index", "version"])
async def test_what_is_dropped_while_it_is_copied(tmp_path: Path, gate: Gate, what: str) -> None:
    kept = tmp_path / "kept"
    async with controlled(tmp_path / "home", standby_s=0) as (cluster, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", VECTORS)
        await client.build_index_version("docs", promote=True)
        await ended(client, "docs", 1)
        await client.promote_index_version("docs", 1)
        taking = asyncio.create_task(client.snapshot_index("docs", str(kept)))
        await until(gate.begun.is_set)
        if what == "index":
            await client.drop_index("docs")
        else:
            await client.promote_index_version("docs", 0)
            await until(lambda: cluster.serving().serving.index_version == 0)

            async def dropped() -> bool:
                try:
                    await client.drop_index_version("docs", 1)
                except FailedPreconditionError:
                    return False  # The writer has not heard of the promotion yet.
                return True

            await until(dropped)
        gate.go_on.set()
        with pytest.raises((IndexNotFoundError, AbortedError)) as failed:
            await taking
        if what == "version":
            assert failed.value.reason == "VERSION_CONFLICT"
        assert not kept.exists()
        if what == "version":
            taken = await client.snapshot_index("docs", str(kept))
            assert (taken.index_version, taken.document_count) == (0, 700)


class Writer:
    """A writer in a process of its own, and calls to it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub = WriterServiceStub(channel)

    async def fill(self) -> None:
        await self.stub.CreateTable(pb.CreateTableRequest(name="docs", dimension=WIDE))
        vectors = np.random.default_rng(5).standard_normal((DOCUMENTS, WIDE), dtype=np.float32)
        requests = [
            pb.WriteDocumentsRequest(
                upsert=UpsertDocumentsRequest(
                    index="docs",
                    number=number,
                    document=Document(
                        id=f"d{number}", text=f"d{number}", vector=pack_vectors(row[None])
                    ),
                )
            )
            for number, row in enumerate(vectors, start=1)
        ]
        last = 0
        async for response in self.stub.WriteDocuments(iter(requests)):
            last = response.acknowledgement.durable_number
        assert last == DOCUMENTS

    async def take(self, uri: Path) -> int:
        call = self.stub.SnapshotTable(pb.SnapshotTableRequest(name="docs", uri=str(uri)))
        last = [response async for response in call][-1]
        return int(last.snapshot.document_count)

    async def restore(self, uri: Path, name: str) -> pb.CatalogEntry:
        call = self.stub.RestoreTable(pb.RestoreTableRequest(uri=str(uri), name=name))
        entry: pb.CatalogEntry = [response async for response in call][-1].entry
        return entry

    async def snapshots(self, uri: Path) -> list[str]:
        request = pb.FindSnapshotsRequest(uri=str(uri), count=10)
        return [each.uri for each in (await self.stub.FindSnapshots(request)).snapshots]


@contextlib.asynccontextmanager
async def running(data: Path) -> Any:
    with writer_process(data) as (process, address):
        channel = open_channel(address)
        try:
            yield process, Writer(channel)
        finally:
            await channel.close()


async def _killed(process: Any, work: Any, moment: Any) -> None:
    """Kill the writer at a moment of some work."""
    working = asyncio.create_task(work)
    async with asyncio.timeout(60):
        while not moment() and not working.done():
            await asyncio.sleep(0)
    process.send_signal(signal.SIGKILL)
    with contextlib.suppress(grpc.aio.AioRpcError):
        await working


async def test_a_writer_that_is_killed_while_it_copies(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    data, kept, whole = tmp_path / "data", tmp_path / "kept", tmp_path / "whole"
    async with running(data) as (_, writer):
        await writer.fill()
        assert await writer.take(whole) == DOCUMENTS
    total = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    for attempt in range(4):
        # From the first byte on: the marker is there before anything else.
        enough = rng.randrange(total) if attempt else 1
        async with running(data) as (process, writer):
            await _killed(process, writer.take(kept), lambda enough=enough: _size(kept) >= enough)
        async with running(data) as (_, writer):
            found = await writer.snapshots(tmp_path)
            assert str(whole) in found
            if str(kept) in found:  # It was finished when the writer died.
                await writer.restore(kept, f"whole-{attempt}")
                shutil.rmtree(kept)
            else:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await writer.restore(kept, "never")
                reason = service_error_of(refused.value).reason
                assert reason == Reason.REASON_SNAPSHOT_NOT_FOUND
            listed = (await writer.stub.ListTables(pb.ListTablesRequest())).entries
            (uri,) = [each.table_uri for each in listed if each.name == "docs"]
            assert PassageTable.open(uri).pins() == []
            # Another one in its place succeeds, and so does what is made of it.
            assert await writer.take(kept) == DOCUMENTS
            assert (await writer.restore(kept, f"again-{attempt}")).row_count == DOCUMENTS
        shutil.rmtree(kept)


async def test_a_writer_that_is_killed_while_it_restores(tmp_path: Path) -> None:
    data, kept = tmp_path / "data", tmp_path / "kept"
    indexes = data / "indexes"
    async with running(data) as (_, writer):
        await writer.fill()
        await writer.take(kept)
    for attempt in range(3):
        name = f"again-{attempt}"
        async with running(data) as (process, writer):
            await _killed(
                process,
                writer.restore(kept, name),
                lambda name=name: any(indexes.glob(f"{name}-*/table.lance/data/*")),
            )
        async with running(data) as (_, writer):
            listed = (await writer.stub.ListTables(pb.ListTablesRequest())).entries
            there = {each.name: each.row_count for each in listed}
            assert len(list(indexes.iterdir())) == len(there)
            assert there.get(name, DOCUMENTS) == DOCUMENTS
            if name not in there:
                assert (await writer.restore(kept, name)).row_count == DOCUMENTS


def _size(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return 0
