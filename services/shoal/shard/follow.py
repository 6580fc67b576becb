"""How do shards keep up with their table?

One thread for each index looks at the table and hands new rows to all shards of all layouts that
the server holds; shards that stand at the same place share one reading. It also sees what the
background has to do. When shards have moved on, those who wait for a version are told.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Final

import pyarrow as pa
from shoal.shard.changes import apply_changes, read_changes
from shoal.shard.held import HeldLayout, HeldShard, IndexPlan, LayoutId
from shoal.shard.recall_watch import RecallWatch
from shoal.shard.shard import Main, Shard
from shoal.shard.upkeep import RETRY_S, Upkeep
from shoal.table.cursor import Cursor
from shoal.table.errors import TableNotFoundError
from shoal.table.slots import slot_range
from shoal.table.table import PassageTable

_log = logging.getLogger(__name__)

_JOIN_TIMEOUT_S: Final = 10.0
# Looks at a table that has lost the version that was read, one after another, before there is a
# rest: a purge takes old versions away, and the next one is there already.
_LOST_LOOKS: Final = 5

_Member = tuple[HeldLayout, HeldShard, Shard]


class IndexFollower:
    """Follows one table for all shards of its index on this server."""

    def __init__(
        self,
        plan: IndexPlan,
        *,
        upkeep: Upkeep,
        recall_watch: RecallWatch,
        background: Executor,
        patient: Executor,
        checking: Executor,
        interval_s: float,
        on_progress: Callable[[], None],
        now_us: Callable[[], int],
        serves: Callable[[], bool] | None = None,
    ) -> None:
        """Start following.

        background: for what has to be done before anything can be searched. patient: for what is
        done beside searches. checking: for checks of recall. on_progress: called in the follower's
        thread after each step. now_us: microseconds since 1970, for what expires. serves: True once
        anything on the server is searched; None: nothing but this index is.
        """
        self.table_uri = plan.table_uri
        self.dimension, self.model = plan.dimension, plan.model
        self._others = plan.others
        self.layouts: dict[LayoutId, HeldLayout] = {}
        # Opened by the follower's thread; reading from it is safe in any.
        self.table: PassageTable | None = None
        self._upkeep, self._recall_watch = upkeep, recall_watch
        self._background, self._patient, self._checking = background, patient, checking
        self._interval_s, self._on_progress = interval_s, on_progress
        self._now_us = now_us
        self._serves = serves or self.serves
        self._stopping = False
        self._swept = False
        self._poked = threading.Event()
        self.follow(plan)
        self._thread = threading.Thread(
            target=self._run, name=f"follow-{next(iter(plan.layouts)).index_uid}", daemon=True
        )
        self._thread.start()

    def serves(self) -> bool:
        """True if a shard of it can be searched."""
        return any(held.ready for _, held in self._held())

    @property
    def table_version(self) -> int:
        """The latest version of the table that was seen."""
        return 0 if self.table is None else self.table.version

    def follow(self, plan: IndexPlan) -> None:
        """Hold what the plan says; what is new is loaded, what is not in it is let go."""
        self._others = plan.others
        layouts = {}
        for key, wanted in plan.layouts.items():
            before = self.layouts.get(key)
            held = before or HeldLayout(key, wanted.codebook_uri, plan.dimension, model=plan.model)
            if before is None:
                held.live = self._recall_watch.begin(held, list(self.layouts.values()))
            held.shards = {
                number: held.shards.get(number) or HeldShard(number)
                for number in sorted(wanted.shards)
            }
            layouts[key] = held
        dropped = [layout for key, layout in self.layouts.items() if key not in layouts]
        self.layouts = layouts
        for layout in dropped:
            if (folder := self._upkeep.snapshots(layout)) is not None:
                self._patient.submit(folder.drop)
        self.poke()

    def poke(self) -> None:
        """Look at the table now."""
        self._poked.set()

    def close(self) -> None:
        """Stop following. Blocks until the step under way is done."""
        self._stopping = True
        self.poke()
        self._thread.join(_JOIN_TIMEOUT_S)

    def _run(self) -> None:
        lost_count = 0
        while not self._stopping:
            self._poked.clear()
            try:
                if self.table is None:
                    self.table = PassageTable.open(self.table_uri, model=self.model)
                self._step(self.table)
                lost_count = 0
            except Exception as error:  # noqa: BLE001  # a follower never ends by itself
                known = isinstance(error, TableNotFoundError)
                lost_count += known
                if not known or lost_count > _LOST_LOOKS:
                    _log.warning("cannot follow %s: %s", self.table_uri, error, exc_info=not known)
                    self._poked.wait(RETRY_S)
            if self._stopping:
                return
            self._schedule()
            self._on_progress()
            self._poked.wait(self._interval_s)

    def _step(self, table: PassageTable) -> None:
        """Bring every loaded shard to the table's latest version."""
        table.refresh()
        now_us = self._now_us()
        groups: dict[Cursor, list[_Member]] = {}
        for layout, held in self._held():
            if (shard := held.shard) is not None:
                # So that counts are right where nobody searches.
                cursor = shard.present(now_us).cursor
                groups.setdefault(cursor, []).append((layout, held, shard))
        # Whoever waits for a version waits for shards that are searched: they go first.
        for cursor, each in sorted(groups.items(), key=lambda group: not _any_ready(group[1])):
            members = self._not_left_behind(table, cursor, each)
            if not members or cursor.version == table.version:
                _mark_ready(members, self._now_us())
                continue
            shards = [(held.number, layout.id.shard_count) for layout, held, _ in members]
            rows, reached = read_changes(table, cursor, shards)
            for layout, held, shard in members:
                self._apply(layout, held, shard, rows, reached)
            _mark_ready(members, self._now_us())

    def _not_left_behind(
        self, table: PassageTable, cursor: Cursor, members: Sequence[_Member]
    ) -> list[_Member]:
        """Have those made anew that may lack deletions which the table has forgotten."""
        trimmed = table.trimmed
        kept = []
        for layout, held, shard in members:
            if trimmed.passed(cursor.sequence, slot_range(held.number, layout.id.shard_count)):
                _log.info("%s, shard %d is behind what is trimmed", layout.id, held.number)
                held.fail("the table has forgotten deletions that it lacks", float("-inf"))
            else:
                kept.append((layout, held, shard))
        return kept

    def _apply(
        self,
        layout: HeldLayout,
        held: HeldShard,
        shard: Shard,
        rows: pa.Table | None,
        reached: Cursor,
    ) -> None:
        try:
            apply_changes(shard, held.number, layout.id.shard_count, rows, reached)
        except Exception as error:  # noqa: BLE001  # the other shards go on
            _log.exception("cannot follow with %s, shard %d", layout.id, held.number)
            held.fail(f"it cannot follow the table: {error}", self._upkeep.clock() + RETRY_S)

    def _held(self) -> Iterator[tuple[HeldLayout, HeldShard]]:
        for layout in self.layouts.values():
            for held in layout.shards.values():
                yield layout, held

    def _schedule(self) -> None:
        """Give the background what it has to do; each shard has one thing done at a time."""
        now_s = self._upkeep.clock()
        if not self._swept and all(held.ready for _, held in self._held()):
            # Once: what is let go later is removed then. Until now it might have been of use.
            self._swept = True
            self._patient.submit(self._upkeep.sweep, [*self.layouts, *self._others])
        for layout in self.layouts.values():
            if self._recall_watch.due(layout) and layout.live is not None:
                layout.live.busy = True
                self._checking.submit(self._check_recall, layout)
            idle = [held for held in layout.shards.values() if not held.busy]
            missing = [held for held in idle if held.shard is None and held.retry_s <= now_s]
            if missing:
                for held in missing:
                    held.busy = True
                pool = self._patient if self._serves() else self._background
                pool.submit(self._load, layout, missing)
            for held in idle:
                if held.shard is None:
                    continue
                outdated = self._outdated(layout, held, held.shard.view.main)
                if held.shard.fold_due(outdated=outdated):
                    held.busy = True
                    self._patient.submit(self._upkeep.fold, layout, held)
                elif self._upkeep.save_due(held, at_once=self._outdated(layout, held, held.saved)):
                    held.busy = True
                    self._patient.submit(self._upkeep.save, layout, held)

    def _outdated(self, layout: HeldLayout, held: HeldShard, main: Main | None) -> bool:
        """True if a main segment, stored, would be refused: deletions that it lacks are trimmed.

        What is purged is among them, so that it has to leave the disk.
        """
        if main is None or self.table is None or self._upkeep.snapshots(layout) is None:
            return False
        slots = slot_range(held.number, layout.id.shard_count)
        return self.table.trimmed.passed(main.cursor.sequence, slots)

    def _load(self, layout: HeldLayout, missing: Sequence[HeldShard]) -> None:
        # It may have waited in the queue for so long that it is not wanted any more.
        if not self._stopping and self.layouts.get(layout.id) is layout:
            siblings = [
                each
                for each in self.layouts.values()
                if each is not layout and any(held.ready for held in each.shards.values())
            ]
            self._upkeep.load(layout, self.table_uri, missing, siblings, beside=self._serves())
            self.poke()

    def _check_recall(self, layout: HeldLayout) -> None:
        def wanted() -> bool:
            return not self._stopping and self.layouts.get(layout.id) is layout

        # There is a table, as shards that were searched were loaded from it.
        assert self.table is not None
        self._recall_watch.check(layout, self.table, wanted)


def _any_ready(members: Sequence[_Member]) -> bool:
    return any(held.ready for _, held, _ in members)


def _mark_ready(members: Sequence[_Member], now_us: int) -> None:
    for _, held, shard in members:
        if held.shard is shard:
            # What expired while nobody held it is not to be counted either.
            shard.present(now_us)
            held.ready = True
