"""How is the storage of an index kept clean while writes go on?

    expired documents ─> tombstones ─> rows that nobody needs are removed ─> old tombstones, once it
    is recorded that they go ─> files with much removed are written again ─> old versions

All but the tombstones is done in the one thread for maintenance, so that it never meets a
compaction. A kill at any point loses nothing: what was not done is done the next time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from shoal.table import (
    PassageTable,
    Retention,
    TableNotFoundError,
    TrimPlan,
    plan_trim,
    slot_range,
    table_schema,
)
from shoal.table.catalogue import VECTORS
from shoal.table.durability import local_path
from shoal.table.removal import StoredOperation
from shoal.table.schema import ROW_ID
from shoal.table.trimming import COLUMNS
from shoal.table.vector_blocks import drop_outdated_blocks
from shoal.writer.adoption import Adoption
from shoal.writer.config import WriterSettings

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# Expired documents that are deleted in one commit.
EXPIRED_IN_COMMIT: Final = 10_000
_MAX_TURNS: Final = 1024


@dataclass
class Cleaned:
    """What a cleaning removed."""

    rows: int = 0
    tombstones: int = 0
    expired: int = 0
    bytes: int = 0
    versions: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Purged:
    """What a purge removed."""

    rows: int
    # By which the table's files became smaller through all purges that were done together.
    bytes: int
    # Ids that the table had nothing of.
    unknown: list[str]
    # Ids that were written again after their deletion.
    rewritten: list[str]
    # True if a version of before is pinned: its files keep what was purged until it is let go.
    pinned: bool


@dataclass
class _Pending:
    """A purge that somebody waits for."""

    document_ids: Sequence[str]
    done: asyncio.Future[Purged]


class Deleter(Protocol):
    """What deletes expired documents, and never one that was written meanwhile."""

    def watch(self) -> None:
        """From now on, heed what is written."""

    def unwatch(self) -> None:
        """Heed it no more."""

    async def delete_unwritten(self, document_ids: Sequence[str]) -> None:
        """Delete documents, but those that were written since `watch`."""


class Cleaner:
    """Cleans one table."""

    def __init__(
        self,
        table: PassageTable,
        settings: WriterSettings,
        executor: Executor,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """executor: its one thread does all maintenance. wall_clock: seconds since 1970."""
        self._table, self._settings, self._executor = table, settings, executor
        self._wall_clock = wall_clock
        # One at a time: each goes on from what the one before has left.
        self._cleaning = asyncio.Lock()
        self._purges: list[_Pending] = []
        self._purging: asyncio.Task[None] | None = None
        self._closed = False
        # True if a purge left files that a pinned version needs.
        self._history_kept = False

    async def close(self) -> None:
        """Refuse what is asked for from now on, and finish what is under way."""
        self._closed = True
        if self._purging is not None:
            await self._purging
        async with self._cleaning:
            # Whoever was cancelled while its thread worked has let the lock go before.
            await self._in_thread(_nothing)

    async def clean(self, deleter: Deleter, *, thorough: bool = False) -> Cleaned:
        """Remove what the settings allow to remove.

        thorough: write every file again that has removed rows, however few.
        Raises StorageFullError.
        """
        cleaned = Cleaned()
        async with self._cleaning:
            self._require_open()
            turns = min(_MAX_TURNS, 1 + self._table.row_count // self._settings.trim_rows)
            for turn in range(turns):
                await self._turn(slot_range(turn, turns), deleter, cleaned)
            await self._in_thread(self._finish, cleaned, thorough)
        if cleaned.rows or cleaned.tombstones:
            _log.info("cleaned %s: %s", self._table.uri, cleaned)
        return cleaned

    async def _turn(self, slots: tuple[int, int], deleter: Deleter, cleaned: Cleaned) -> None:
        deleter.watch()
        try:
            plan = await self._in_thread(self._plan, slots)
            for first in range(0, len(plan.expired), EXPIRED_IN_COMMIT):
                await deleter.delete_unwritten(plan.expired[first : first + EXPIRED_IN_COMMIT])
        finally:
            # Within the lock: whoever waits for it, or leaves meanwhile, changes nothing here.
            deleter.unwatch()
        cleaned.expired += len(plan.expired)
        if plan.expired:
            # What they left can go with the rest.
            plan = await self._in_thread(self._plan, slots)
        await self._in_thread(self._remove, plan, cleaned)

    def _plan(self, slots: tuple[int, int]) -> TrimPlan:
        self._table.refresh()
        settings = self._settings
        retention = Retention(
            superseded_us=int(settings.keep_versions_s * 1e6),
            tombstones_us=int(max(settings.keep_tombstones_s, settings.keep_versions_s) * 1e6),
        )
        now_us = int(self._wall_clock() * 1e6)
        rows = pa.Table.from_batches(list(self._table.scan(COLUMNS, slots=slots)), _columns())
        return plan_trim(rows, retention, now_us)

    def _remove(self, plan: TrimPlan, cleaned: Cleaned) -> None:
        cleaned.rows += self._table.remove(plan.superseded)
        if len(plan.tombstones):
            # First the record: a tombstone that went unnoticed would bring its document back.
            self._table.forget(self._table.trimmed.everywhere(int(plan.tombstones[-1])))
            cleaned.tombstones += self._table.remove(plan.tombstones)

    def _finish(self, cleaned: Cleaned, thorough: bool) -> None:
        if thorough:
            self._table.rewrite(0.0)
        else:
            self._table.rewrite()
        cleaned.bytes += self._table.clean(self._settings.keep_versions_s)
        self._drop_outdated_blocks()

    def _drop_outdated_blocks(self) -> None:
        """Remove what models have left of rows that are gone, and the table has yet to take."""
        if (root := local_path(self._table.uri)) is not None:
            drop_outdated_blocks(root.parent / VECTORS, self._table)

    async def purge(self, document_ids: Sequence[str]) -> Purged:
        """Take deleted documents out of all files of the table.

        Purges that are asked for while another one runs, or waits, are done together: files are
        written again once, and readers lose the version that they stand at once. Raises
        StorageFullError, TableNotFoundError.
        """
        self._require_open()
        purge = _Pending(document_ids, asyncio.get_running_loop().create_future())
        self._purges.append(purge)
        if self._purging is None or self._purging.done():
            self._purging = asyncio.create_task(self._purge_all())
        return await purge.done

    async def _purge_all(self) -> None:
        while self._purges:
            async with self._cleaning:
                # Those whose caller has left are left out.
                group = [each for each in self._purges if not each.done.done()]
                self._purges.clear()
                try:
                    purged = await self._in_thread(
                        self._purge, [each.document_ids for each in group]
                    )
                except Exception as error:  # noqa: BLE001  # goes to everyone who waits for it
                    for each in group:
                        if not each.done.done():
                            each.done.set_exception(error)
                    continue
            for each, result in zip(group, purged, strict=True):
                if not each.done.done():
                    each.done.set_result(result)

    def _purge(self, groups: Sequence[Sequence[str]]) -> list[Purged]:
        """Purge the documents of several callers at once; says what was removed for each."""
        if not groups:
            return []
        table = self._table
        table.refresh()
        root = local_path(table.uri)
        before_bytes = folder_bytes(root)
        found = table.operations_on([each for group in groups for each in group])
        gone = {key: _purgeable(operations) for key, operations in found.items()}
        slots: dict[int, int] = {}
        for each in (operation for operations in gone.values() for operation in operations):
            slots[each.slot] = max(slots.get(each.slot, -1), each.sequence)
        if slots:
            table.forget(table.trimmed.within(slots))
        sequences = [each.sequence for operations in gone.values() for each in operations]
        table.remove(np.unique(np.array(sequences, np.int64)))
        table.rewrite(0.0)
        table.drop_history()
        self._drop_outdated_blocks()
        pinned = bool(table.pins())
        self._history_kept |= pinned
        freed_bytes = max(0, before_bytes - folder_bytes(root))
        return [_purged(group, found, gone, freed_bytes, pinned=pinned) for group in groups]

    async def adopt(self, model: str, folder: Path) -> tuple[int, int]:
        """Take the vectors that a model has left in a folder into the table, and remove them there.

        In turns, between which others have the thread, and this table's purges their turn. Returns
        how many rows got theirs, and how many passages have none yet. Raises StorageFullError,
        TableNotFoundError.
        """
        adoption: Adoption | None = None
        more = True
        while more:
            async with self._cleaning:
                self._require_open()
                if adoption is None:
                    adoption = await self._in_thread(Adoption, self._table, model, folder)
                more = await self._in_thread(adoption.turn)
        assert adoption is not None
        async with self._cleaning:
            self._require_open()
            return adoption.adopted, await self._in_thread(adoption.missing)

    async def pin(self, name: str) -> PassageTable:
        """Keep the table's version of now until `unpin`; return the table at it.

        Among compactions and cleanings, one at a time: one of them may have looked for pins.
        Raises TableNotFoundError.
        """
        self._require_open()
        return await self._in_thread(self._table.pin, name)

    async def unpin(self, name: str) -> None:
        """Let a pinned version go, and with it what purges had to leave because of it.

        Raises TableNotFoundError.
        """
        self._require_open()
        await self._in_thread(self._unpin, name)

    def _unpin(self, name: str) -> None:
        self._table.unpin(name)
        if self._history_kept:
            self._table.drop_history()
            self._history_kept = bool(self._table.pins())

    def _require_open(self) -> None:
        if self._closed:
            raise TableNotFoundError(self._table.uri)

    async def _in_thread(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)


def _nothing() -> None:
    """What is done once everything before it is."""


def _purgeable(operations: Mapping[StoredOperation, int]) -> list[StoredOperation]:
    """Operations on a document up to its last deletion."""
    deleted = max((each.sequence for each in operations if each.tombstone), default=-1)
    return [each for each in operations if each.sequence <= deleted]


def _purged(
    document_ids: Sequence[str],
    found: Mapping[str, Mapping[StoredOperation, int]],
    gone: Mapping[str, Sequence[StoredOperation]],
    freed_bytes: int,
    *,
    pinned: bool,
) -> Purged:
    """What was removed of some of the documents that were purged together."""
    ids = list(dict.fromkeys(document_ids))
    had = [key for key in ids if not all(each.tombstone for each in found.get(key, ()))]
    return Purged(
        rows=sum(found[key][each] for key in ids for each in gone.get(key, ())),
        bytes=freed_bytes,
        unknown=[key for key in ids if key not in had],
        rewritten=[key for key in had if len(gone[key]) < len(found[key])],
        pinned=pinned,
    )


def folder_bytes(folder: Path | None) -> int:
    """Bytes of all files below a folder; 0 for one that is not there, or not on this machine."""
    if folder is None:
        return 0
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                total += path.stat().st_size
        except OSError:
            continue  # It has gone meanwhile.
    return total


def _columns() -> pa.Schema:
    layout = table_schema(1)
    fields = [layout.field(name) for name in COLUMNS]
    return pa.schema([*fields, pa.field(ROW_ID, pa.uint64())])
