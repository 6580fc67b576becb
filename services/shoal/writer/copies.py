"""How are indexes copied out of the writer and back into it, while it goes on with its work?

Each copy is a task of the writer's own, whose work is done by threads that give way to everything
else. Its caller looks on: it is told now and then how far the copy is, and if it leaves the copy is
ended, and cleans up behind itself, whether anybody waits for that or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, Generic, TypeVar

from shoal.rpc.errors import ServiceError
from shoal.table import IndexExistsError, IndexNotFoundError
from shoal.table.copying import Copying, give_way
from shoal.table.restoring import restore_index, stored_entry
from shoal.table.snapshot_errors import SnapshotExistsError
from shoal.table.snapshots import Taken, find_snapshots, read_snapshot, take_snapshot
from shoal.table.stores import Store, open_store
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import CopyProgress
from shoal.writer.indexes import Indexes, OpenIndex
from shoal.writer.validation import check_index_name

_log = logging.getLogger(__name__)

R = TypeVar("R")

# Copies at a time; more are refused. Each has a few threads, and a few blocks in memory.
MAX_COPIES: Final = 2
# Between two messages that say how far a copy is.
PROGRESS_S: Final = 0.5
_RETRY_DELAY_S: Final = 10.0


class Running(Generic[R]):
    """A copy that runs."""

    def __init__(self, task: asyncio.Task[R], copying: Copying) -> None:
        """task: does it. copying: says how far it is."""
        self._task, self._copying = task, copying

    async def progress(self) -> AsyncIterator[CopyProgress]:
        """Say how far it is, now and then, until it has ended."""
        while not self._task.done():
            copying = self._copying
            yield CopyProgress(
                stage=copying.stage,
                done_bytes=copying.done_bytes,
                total_bytes=copying.total_bytes,
            )
            await asyncio.wait([self._task], timeout=PROGRESS_S)

    async def result(self) -> R:
        """What came of it. Raises what it failed with."""
        return await asyncio.shield(self._task)

    def leave(self) -> None:
        """Nobody looks on any more: end it, unless it has ended."""
        self._copying.end()


class Copies:
    """The copies of a writer. Used on the event loop."""

    def __init__(self, indexes: Indexes) -> None:
        """None runs yet."""
        self._indexes = indexes
        self._executor = ThreadPoolExecutor(
            MAX_COPIES + 1, thread_name_prefix="copies", initializer=give_way
        )
        self._running: dict[asyncio.Task[Any], Copying] = {}
        # Where snapshots are being put.
        self._places: set[str] = set()

    async def close(self) -> None:
        """End all copies, and wait until they have cleaned up."""
        for copying in self._running.values():
            copying.end()
        if self._running:
            await asyncio.wait(list(self._running))
        self._executor.shutdown()

    def snapshot(self, name: str, uri: str) -> Running[Taken]:
        """Begin to copy an index to a place. Raises IndexNotFoundError, OVERLOADED."""
        index = self._indexes.get(name)
        return self._start(partial(self._snapshot, index, uri))

    def restore(self, uri: str, name: str) -> Running[OpenIndex]:
        """Begin to make an index from a snapshot. name: empty for that of the snapshot."""
        if name:
            self._require_free(name)
        return self._start(partial(self._restore, uri, name))

    async def find(self, uri: str, count: int, after: str) -> tuple[list[Taken], str]:
        """Some of the snapshots at a place, and what to give as `after` for the next ones."""
        return await self._in_thread(find_snapshots, await self._store(uri), count, after)

    async def _store(self, uri: str) -> Store:
        # In a thread: it may import what reaches an object store, which takes seconds.
        return await self._in_thread(partial(open_store, uri, outside=self._indexes.root))

    def _require_free(self, name: str) -> None:
        with contextlib.suppress(IndexNotFoundError):
            self._indexes.get(name)
            raise IndexExistsError(name)

    def _start(self, work: Callable[[Copying], Coroutine[Any, Any, R]]) -> Running[R]:
        if len(self._running) >= MAX_COPIES:
            raise ServiceError(
                Reason.REASON_OVERLOADED,
                f"{len(self._running)} snapshots are being taken or restored, as many as the "
                "writer does at a time: come back later",
                retry_delay_s=_RETRY_DELAY_S,
            )
        copying = Copying()
        task = asyncio.create_task(work(copying))
        self._running[task] = copying
        task.add_done_callback(self._ended)
        return Running(task, copying)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self._running[task]
        # Looked at here, as nobody else may: its caller may have left.
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.info("a copy has failed: %s", error)

    async def _snapshot(self, index: OpenIndex, uri: str, copying: Copying) -> Taken:
        store = await self._store(uri)
        if store.uri in self._places:
            raise SnapshotExistsError(store.uri, "a snapshot that is being taken")
        self._places.add(store.uri)
        try:
            return await self._take(index, store, copying)
        finally:
            self._places.remove(store.uri)

    async def _take(self, index: OpenIndex, store: Store, copying: Copying) -> Taken:
        # Before the table's version is chosen: segments are never ahead of it then.
        entry, pin = index.entry, uuid.uuid4().hex
        table = await self._indexes.pin(index, pin)
        try:
            manifest = await self._in_thread(take_snapshot, entry, table, store, copying)
        finally:
            # The index may have been dropped meanwhile; what is left is let go of at a start.
            with contextlib.suppress(ServiceError):
                await self._indexes.unpin(index, pin)
        _log.info("index %s is in %s at table version %d", entry.name, store.uri, table.version)
        return Taken(uri=store.uri, manifest=manifest)

    async def _restore(self, uri: str, name: str, copying: Copying) -> OpenIndex:
        copying.begin("looking for the snapshot")
        store = await self._store(uri)
        manifest = await self._in_thread(read_snapshot, store)
        name = name or stored_entry(store, manifest).name
        check_index_name(name, "name")
        self._require_free(name)
        place = await self._indexes.reserve(name)
        try:
            entry = await self._in_thread(restore_index, store, manifest, place, copying)
            copying.check()
            index = await self._indexes.enter(entry)
        except BaseException:
            await self._indexes.release(place)
            raise
        _log.info("index %s was restored from %s", name, store.uri)
        return index

    async def _in_thread(self, function: Callable[..., R], *args: Any) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)


def stopping() -> ServiceError:
    """What a caller who is still there is told of a copy that was ended."""
    return ServiceError(
        Reason.REASON_DRAINING, "the writer is stopping, and has left nothing behind: try again"
    )
