"""How do writes of many callers share a commit?

While a commit is under way the next one gathers; it starts the moment the first is done. So a lone
write is committed at once, and a thousand at a time cost one sync of the disk. Commits of an index
follow one another, and operations keep the order in which they were handed in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from shoal.rpc.errors import ServiceError
from shoal.table import (
    DocumentRows,
    Operation,
    PassageTable,
    TableNotFoundError,
    Tombstone,
    build_batch,
)
from shoal.writer.cleaning import Cleaned, Cleaner
from shoal.writer.config import WriterSettings

_log = logging.getLogger(__name__)

# Bytes of text at which a commit is full, beside its rows: long documents have few.
MAX_COMMIT_BYTES: Final = 64 << 20


@dataclass
class _Pending:
    operations: Sequence[Operation]
    done: asyncio.Future[int]


class Committer:
    """Commits the operations on one index."""

    def __init__(
        self,
        table: PassageTable,
        *,
        next_sequence: int,
        settings: WriterSettings,
        executor: Executor,
        maintenance_executor: Executor,
    ) -> None:
        """executor: its threads commit, one at a time for this table."""
        self.table = table
        self._next_sequence = next_sequence
        self._settings = settings
        self._executor = executor
        self._maintenance_executor = maintenance_executor
        self._pending: deque[_Pending] = deque()
        self._commits: asyncio.Task[None] | None = None
        self._maintenance: asyncio.Task[None] | None = None
        self._cleaned_at_s = time.monotonic()
        self._closed = False
        self._in_flight: Sequence[_Pending] = ()
        # Ids that were handed in since `watch`; None while nobody watches.
        self._watched: set[str] | None = None
        self.cleaner = Cleaner(table, settings, maintenance_executor)
        # For tests and metrics: commits made, and operations in them.
        self.commit_count = 0
        self.operation_count = 0

    def submit(self, operations: Sequence[Operation]) -> asyncio.Future[int]:
        """Hand in operations, one or more. The future gives the table version that holds them.

        The future fails with StorageFullError, or with TableNotFoundError if the index was dropped.
        """
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self._closed:
            done.set_exception(TableNotFoundError(self.table.uri))
            return done
        if self._watched is not None:
            self._watched.update(each.document_id for each in operations)
        self._pending.append(_Pending(operations, done))
        if self._commits is None or self._commits.done():
            self._commits = asyncio.create_task(self._commit_all())
        return done

    async def settled(self) -> None:
        """Wait until what was handed in before is in the table, or has failed."""
        waiting = [each.done for each in (*self._in_flight, *self._pending)]
        if waiting:
            # Not `gather`: who is cancelled here must not cancel what others wait for.
            await asyncio.wait(waiting)

    def watch(self) -> None:
        """Remember which documents are written from now on, or are on their way to the table."""
        on_their_way = (*self._in_flight, *self._pending)
        self._watched = {each.document_id for group in on_their_way for each in group.operations}

    def unwatch(self) -> None:
        """Remember it no more."""
        self._watched = None

    async def delete_unwritten(self, document_ids: Sequence[str]) -> None:
        """Delete documents, but those that were written since `watch`.

        What is written from now on comes after the deletion, and so wins. Raises StorageFullError.
        """
        assert self._watched is not None
        chosen = [Tombstone(each) for each in document_ids if each not in self._watched]
        if chosen:
            await self.submit(chosen)

    async def clean(self, *, thorough: bool = False) -> Cleaned:
        """Remove rows that are not needed any more: see `Cleaner`. Raises StorageFullError."""
        return await self.cleaner.clean(self, thorough=thorough)

    async def close(self) -> None:
        """Refuse what is handed in from now on, and finish what was handed in before.

        On return no thread works on the table, and none will.
        """
        self._closed = True
        # One that wants to commit deletions is refused, and ends.
        await self.cleaner.close()
        if self._commits is not None:
            await self._commits
        if self._maintenance is not None:
            await self._maintenance

    async def _commit_all(self) -> None:
        while self._pending:
            group = self._take_group()
            await self._commit(group)
            if self._maintenance is None or self._maintenance.done():
                self._maintenance = asyncio.create_task(self._maintain())

    def _take_group(self) -> list[_Pending]:
        group: list[_Pending] = []
        row_count = size_bytes = 0
        while self._pending:
            rows, text_bytes = _cost(self._pending[0].operations)
            if group and (
                row_count + rows > self._settings.commit_rows
                or size_bytes + text_bytes > MAX_COMMIT_BYTES
            ):
                break
            group.append(self._pending.popleft())
            row_count += rows
            size_bytes += text_bytes
        return group

    async def _commit(self, group: Sequence[_Pending]) -> None:
        self._in_flight = group
        operations = [each for pending in group for each in pending.operations]
        first_sequence = self._next_sequence
        # A commit that fails may stand in the table nevertheless, so its numbers are never used
        # again.
        self._next_sequence += len(operations)
        loop = asyncio.get_running_loop()
        try:
            version = await loop.run_in_executor(
                self._executor, self._append, operations, first_sequence
            )
        except Exception as error:  # noqa: BLE001  # goes to everyone who waits for this commit
            for pending in group:
                if not pending.done.cancelled():
                    pending.done.set_exception(error)
            return
        finally:
            self._in_flight = ()
        self.commit_count += 1
        self.operation_count += len(operations)
        for pending in group:
            if not pending.done.cancelled():
                pending.done.set_result(version)

    def _append(self, operations: Sequence[Operation], first_sequence: int) -> int:
        rows = build_batch(
            operations,
            first_sequence=first_sequence,
            updated_at_us=time.time_ns() // 1000,
            dimension=self.table.dimension,
            fields=self.table.fields,
            models=self.table.models,
        )
        return self.table.append(rows)

    async def _maintain(self) -> None:
        """Keep the table quick. What fails is tried again after a later commit."""
        loop = asyncio.get_running_loop()
        try:
            while await loop.run_in_executor(self._maintenance_executor, self.table.compact):
                _log.debug("compacted %s", self.table.uri)
            now_s = time.monotonic()
            if now_s - self._cleaned_at_s >= self._settings.clean_interval_s:
                self._cleaned_at_s = now_s
                await loop.run_in_executor(
                    self._maintenance_executor, self.table.clean, self._settings.keep_versions_s
                )
        except ServiceError:
            _log.warning("maintenance of %s failed", self.table.uri, exc_info=True)


def _cost(operations: Sequence[Operation]) -> tuple[int, int]:
    """Rows of operations, and bytes of text at most."""
    documents = [each for each in operations if isinstance(each, DocumentRows)]
    row_count = len(operations) + sum(len(each.passages) - 1 for each in documents)
    size_bytes = sum(
        4 * each.passages[-1].end + len(each.passages) * (len(each.metadata) + len(each.title))
        for each in documents
    )
    return row_count, size_bytes
