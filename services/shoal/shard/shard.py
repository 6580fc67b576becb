"""What does a shard hold, and how does it change while searches run?

    rows of the table ──apply──> live tail ──fold──> main segment ──save──> snapshot
                          │                  │
                          └── supersede ─────┴──> dead positions, left out of searches

A search takes a `View`, which is one state of the shard and never changes. Rows are applied by one
thread; a fold builds the next main segment beside the present one, in another, and swaps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from shoal.shard.directory import (
    Directory,
    Positions,
    TailDirectory,
    gathered,
    hash_ids,
    records_of,
)
from shoal.shard.field_columns import field_rows
from shoal.shard.live_tail import LiveTail
from shoal.shard.postings import Postings, counted_of
from shoal.shard.postings import gathered as gathered_postings
from shoal.shard.segment import Segment
from shoal.shard.tombstones import Live
from shoal.table import schema
from shoal.table.cursor import Cursor
from shoal.table.scanning import texts_of, vectors_of
from shoal.table.trimming import NEVER_US

# Before anything can have expired.
_BEFORE_ALL_US: Final = -(2**63)
# Dead passages cost memory, and time in every search.
_MAX_DEAD_PART: Final = 5


@dataclass(frozen=True)
class Main:
    """A main segment and what is known of its passages. Never changes."""

    segment: Segment
    directory: Directory
    # Everything up to it is in here.
    cursor: Cursor
    # The terms of the passages; None if the table has none.
    postings: Postings | None = None


@dataclass(frozen=True)
class View:
    """One state of a shard."""

    main: Main
    main_live: Live
    tail: LiveTail
    # Its count is the part of the tail that belongs to this state.
    tail_live: Live
    cursor: Cursor
    document_count: int
    # When the next passage expires, in microseconds since 1970; NEVER_US if none will.
    next_expiry_us: int = NEVER_US
    # What the main segment has that expires up to then is dead already.
    expired_us: int = _BEFORE_ALL_US

    @property
    def passage_count(self) -> int:
        """Passages that can be found."""
        return self.main_live.live_count + self.tail_live.live_count

    @property
    def memory_bytes(self) -> int:
        """Bytes of vectors, codes and directory."""
        main = self.main.segment.memory_bytes + self.main.directory.memory_bytes
        postings = self.main.postings
        return main + self.tail.memory_bytes + (0 if postings is None else postings.memory_bytes)

    def find_documents(
        self, document_ids: Sequence[str]
    ) -> Iterator[tuple[str, Directory | TailDirectory, Positions]]:
        """Find the live passages of documents: at most one item for each document."""
        main, tail = self.main.directory, self.tail.directory
        for at, positions in main.documents(document_ids, hash_ids(document_ids)):
            live = positions[self.main_live.contains(positions)]
            if len(live):
                yield document_ids[at], main, live
        for at, positions in tail.documents(document_ids):
            known = positions[positions < self.tail_live.count]
            live = known[self.tail_live.contains(known)]
            if len(live):
                yield document_ids[at], tail, live

    def find_rows(
        self, row_ids: NDArray[np.uint64]
    ) -> Iterator[tuple[NDArray[np.int64], Directory | TailDirectory, Positions]]:
        """Find live passages by row id: indexes into `row_ids`, and their positions."""
        main, tail = self.main.directory, self.tail.directory
        found = main.find_rows(row_ids)
        yield from _live_rows(main, found, self.main_live)
        if self.tail_live.count:
            yield from _live_rows(
                tail, tail.find_rows(row_ids, self.tail_live.count), self.tail_live
            )


def _live_rows(
    directory: Directory | TailDirectory, found: Positions, live: Live
) -> Iterator[tuple[NDArray[np.int64], Directory | TailDirectory, Positions]]:
    indexes = np.flatnonzero(found >= 0)
    indexes = indexes[live.contains(found[indexes])]
    if len(indexes):
        yield indexes, directory, found[indexes]


class Shard:
    """A shard that can be searched."""

    def __init__(
        self,
        main: Main,
        dimension: int,
        fold_at_passages: int,
        tail: tuple[LiveTail, Cursor] | None = None,
    ) -> None:
        """Start with a main segment whose passages are all live.

        tail: one that is to be carried on, of documents that are not in the main segment, and what
        it reaches to.
        """
        self._dimension = dimension
        self._fold_at_passages = fold_at_passages
        # Held while the view is replaced: by the thread that applies, and by a fold's last step.
        self._lock = threading.Lock()
        carried, cursor = tail or (LiveTail(dimension), main.cursor)
        view = View(
            main=main,
            main_live=Live(main.segment.count),
            tail=carried,
            tail_live=Live(carried.count),
            cursor=cursor,
            document_count=main.directory.document_count() + len(set(carried.directory.ids)),
        )
        self.view = _with_next_expiry(view)

    def fold_due(self, *, outdated: bool = False) -> bool:
        """True if the tail, or the dead, are many enough for a fold to be worth its cost.

        outdated: the table has forgotten deletions that the main segment, as it was made, lacks: to
        be stored it must be made anew.
        """
        view = self.view
        if outdated and view.cursor.sequence > view.main.cursor.sequence:
            return True
        segment = view.main.segment
        # A fold copies the main segment: it waits for a tail of some part of it.
        longest = max(self._fold_at_passages, segment.count // segment.fold_part)
        dead = view.main_live.dead_count
        return view.tail_live.count >= longest or (
            dead >= self._fold_at_passages and dead * _MAX_DEAD_PART >= segment.count
        )

    def present(self, now_us: int) -> View:
        """The state without what has expired by now. A comparison, if nothing has since last time.

        now_us: microseconds since 1970. What was taken for expired once stays so, even if the clock
        goes back.
        """
        view = self.view
        if view.next_expiry_us > now_us:
            return view
        with self._lock:
            self.view = view = _expired(self.view, now_us)
        return view

    def apply(self, rows: pa.Table | None, cursor: Cursor) -> None:
        """Take the rows that lie between the view's cursor and this one.

        rows: of each document only its highest sequence; of this shard's slots only.
        """
        with self._lock:
            view = self.view
            if rows is None or rows.num_rows == 0:
                self.view = replace(view, cursor=cursor)
                return
            changed_ids = texts_of(rows.column(schema.DOCUMENT_ID).unique())
            killed_main: list[Positions] = []
            killed_tail: list[Positions] = []
            removed: set[str] = set()
            for document_id, directory, positions in view.find_documents(changed_ids):
                (killed_main if directory is view.main.directory else killed_tail).append(positions)
                removed.add(document_id)
            written = rows.filter(pa.array(~_tombstones(rows)))
            added_count = self._append(view.tail, written)
            changed = replace(
                view,
                main_live=view.main_live.changed(view.main_live.count, _joined(killed_main)),
                tail_live=view.tail_live.changed(view.tail.count, _joined(killed_tail)),
                cursor=cursor,
                document_count=view.document_count - len(removed) + added_count,
            )
            self.view = _with_next_expiry(changed)

    def _append(self, tail: LiveTail, rows: pa.Table) -> int:
        """Add rows to the tail, and return how many documents they are."""
        ids = rows.column(schema.DOCUMENT_ID)
        vectors = vectors_of(rows.column(schema.VECTOR), self._dimension)
        fields, counted = field_rows(rows), counted_of(rows)
        tail.append(vectors, records_of(rows), texts_of(ids), fields, counted)
        return len(ids.unique())

    def fold(self, place: Callable[[Main], Main] = lambda main: main) -> Main:
        """Make a main segment of all that is live, and put it in the place of the present one.

        Searches and `apply` go on meanwhile; one fold of a shard at a time. Takes the memory of a
        second main segment until the last search in the old one has ended.
        place: puts the new one where it is searched.
        """
        before = self.view
        tail_kept = np.flatnonzero(before.tail_live.mask())
        added = before.tail.vectors(before.tail_live.count)[tail_kept]
        folded = Main(
            before.main.segment.folded(before.main_live, added),
            gathered(
                [(before.main.directory, before.main_live.mask())],
                before.tail.directory.records[tail_kept],
                before.tail.directory.ids_at(tail_kept),
                before.tail.directory.fields.take(tail_kept),
            ),
            before.cursor,
            _folded_postings(before),
        )
        main = place(folded)
        with self._lock:
            self.view = self._after_fold(before, main, tail_kept)
        return main

    def exchange(self, before: Main, main: Main) -> bool:
        """Put an equal main segment, such as the one that was saved of it, in another's place.

        False if that is not the present one any more.
        """
        with self._lock:
            if self.view.main is not before:
                return False
            self.view = replace(self.view, main=main)
            return True

    def _after_fold(self, before: View, main: Main, tail_kept: Positions) -> View:
        """Carry over what changed since `before`: further dead, and a further tail."""
        now = self.view
        assert now.main is before.main
        was_live = np.concatenate(
            [
                now.main_live.mask()[before.main_live.mask()],
                now.tail_live.mask()[: before.tail_live.count][tail_kept],
            ]
        )
        main_live = Live(main.segment.count).changed(main.segment.count, np.flatnonzero(~was_live))
        first, end = before.tail_live.count, now.tail_live.count
        tail = LiveTail(self._dimension)
        directory = now.tail.directory
        tail.append(
            now.tail.vectors(end)[first:],
            directory.records[first:end],
            directory.ids[first:end],
            directory.fields.take(np.arange(first, end)),
            now.tail.postings.first(end).counted(np.arange(end) >= first),
        )
        dead = np.flatnonzero(~now.tail_live.mask()[first:])
        after = replace(
            now,
            main=main,
            main_live=main_live,
            tail=tail,
            tail_live=Live(0).changed(end - first, dead),
            # What came from the tail may have expired, and not be marked as dead yet.
            expired_us=_BEFORE_ALL_US,
        )
        return _with_next_expiry(after)


def _expired(view: View, now_us: int) -> View:
    """The view after all that has expired by now is dead."""
    main = view.main.directory.expiring(view.expired_us, now_us)
    main = main[view.main_live.contains(main)]
    times_us = view.tail.directory.records["expires_us"][: view.tail_live.count]
    tail = np.flatnonzero((times_us <= now_us) & view.tail_live.mask())
    gone = {*view.main.directory.ids_at(main), *view.tail.directory.ids_at(tail)}
    changed = replace(
        view,
        main_live=view.main_live.changed(view.main_live.count, main),
        tail_live=view.tail_live.changed(view.tail_live.count, tail),
        document_count=view.document_count - len(gone),
        expired_us=max(view.expired_us, now_us),
    )
    return _with_next_expiry(changed)


def _with_next_expiry(view: View) -> View:
    """The view, with the time looked up until which it holds."""
    next_us = view.main.directory.next_expiry_us(view.expired_us)
    times_us = view.tail.directory.records["expires_us"][: view.tail_live.count]
    # Compared first: mostly nothing expires, and then there is no more to do.
    if len(times_us) and times_us.min() < next_us:
        live = times_us[view.tail_live.mask()] if view.tail_live.dead_count else times_us
        next_us = min(next_us, int(live.min(initial=NEVER_US)))
    return view if next_us == view.next_expiry_us else replace(view, next_expiry_us=next_us)


def _folded_postings(view: View) -> Postings | None:
    if view.main.postings is None:
        return None
    tail = view.tail.postings.first(view.tail_live.count).sorted()
    return gathered_postings(
        [(view.main.postings, view.main_live.mask()), (tail, view.tail_live.mask())]
    )


def _tombstones(rows: pa.Table) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = rows.column(schema.TOMBSTONE).to_numpy()
    return flags


def _joined(parts: Iterable[Positions]) -> Positions:
    held = list(parts)
    return np.concatenate(held) if held else np.empty(0, dtype=np.int64)
