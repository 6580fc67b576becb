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
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from shoal.table import (
    PassageTable,
    Retention,
    TrimPlan,
    plan_trim,
    slot_range,
    table_schema,
)
from shoal.table.durability import local_path
from shoal.table.schema import ROW_ID
from shoal.table.trimming import COLUMNS
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
    bytes: int
    # Ids that the table had nothing of.
    unknown: list[str]
    # Ids that were written again after their deletion.
    rewritten: list[str]
    # Slots of the documents, and the highest sequence that went from each.
    slots: dict[int, int]


class Deleter(Protocol):
    """What deletes expired documents, and never one that was written meanwhile."""

    def watch(self) -> None:
        """From now on, heed what is written."""

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

    async def clean(self, deleter: Deleter, *, thorough: bool = False) -> Cleaned:
        """Remove what the settings allow to remove.

        thorough: write every file again that has removed rows, however few.
        Raises StorageFullError.
        """
        cleaned = Cleaned()
        async with self._cleaning:
            turns = min(_MAX_TURNS, 1 + self._table.row_count // self._settings.trim_rows)
            for turn in range(turns):
                await self._turn(slot_range(turn, turns), deleter, cleaned)
            await self._in_thread(self._finish, cleaned, thorough)
        if cleaned.rows or cleaned.tombstones:
            _log.info("cleaned %s: %s", self._table.uri, cleaned)
        return cleaned

    async def _turn(self, slots: tuple[int, int], deleter: Deleter, cleaned: Cleaned) -> None:
        deleter.watch()
        plan = await self._in_thread(self._plan, slots)
        for first in range(0, len(plan.expired), EXPIRED_IN_COMMIT):
            await deleter.delete_unwritten(plan.expired[first : first + EXPIRED_IN_COMMIT])
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

    async def purge(self, document_ids: Sequence[str]) -> Purged:
        """Take deleted documents out of all files of the table. Raises StorageFullError."""
        async with self._cleaning:
            return await self._in_thread(self._purge, document_ids)

    def _purge(self, document_ids: Sequence[str]) -> Purged:
        table = self._table
        table.refresh()
        root = local_path(table.uri)
        before_bytes = folder_bytes(root)
        found = table.operations_on(document_ids)
        gone: list[int] = []
        slots: dict[int, int] = {}
        rewritten = []
        for document_id, operations in found.items():
            deleted = max((each.sequence for each in operations if each.tombstone), default=-1)
            if any(each.sequence > deleted for each in operations):
                rewritten.append(document_id)
            for each in operations:
                if each.sequence <= deleted:
                    gone.append(each.sequence)
                    slots[each.slot] = max(slots.get(each.slot, -1), each.sequence)
        if gone:
            table.forget(table.trimmed.within(slots))
        rows = table.remove(np.unique(np.array(gone, np.int64)))
        table.rewrite(0.0)
        table.drop_history()
        had = {key for key, each in found.items() if not all(op.tombstone for op in each)}
        return Purged(
            rows=rows,
            bytes=max(0, before_bytes - folder_bytes(root)),
            unknown=[each for each in dict.fromkeys(document_ids) if each not in had],
            rewritten=rewritten,
            slots=slots,
        )

    async def _in_thread(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)


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
