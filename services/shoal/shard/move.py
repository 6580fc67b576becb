"""How are the shards of another division made without encoding anything again?

A shard owns a run of slots, so a new one is put together of runs of old ones: their codes, wide
codes and directories are gathered, their live tails carried along (a graph is made again of the
stored codes). The dead stay behind. What the
old shards have applied of the table may differ a little: the new one starts where the least of them
stands, and takes what came since again, which changes nothing for those who have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from shoal.shard import directory, filling, postings
from shoal.shard.kind_lists import ListSegment
from shoal.shard.live_tail import LiveTail
from shoal.shard.pace import pause
from shoal.shard.segment import Segment
from shoal.shard.shard import Main, Shard, View
from shoal.shard.tombstones import Live
from shoal.table.cursor import Cursor
from shoal.table.slots import slots_of


@dataclass(frozen=True)
class Source:
    """What holds the passages of some slots."""

    # First slot, and one past the last.
    slots: tuple[int, int]
    main: Main
    # None: all of it is live, and there is no tail.
    view: View | None = None

    @property
    def cursor(self) -> Cursor:
        """What it has applied."""
        return self.main.cursor if self.view is None else self.view.cursor


@dataclass(frozen=True)
class Piece:
    """A run of slots that is taken from a source."""

    slots: tuple[int, int]
    source: Source


def cover(
    wanted: tuple[int, int], sources: Sequence[Source]
) -> tuple[list[Piece], list[tuple[int, int]]]:
    """Say which run of which source is taken, and what none of them has. Earlier sources first."""
    pieces: list[Piece] = []
    missing = [wanted]
    for source in sources:
        left: list[tuple[int, int]] = []
        for first, end in missing:
            start, stop = max(first, source.slots[0]), min(end, source.slots[1])
            if start >= stop:
                left.append((first, end))
                continue
            pieces.append(Piece((start, stop), source))
            left += [run for run in ((first, start), (stop, end)) if run[0] < run[1]]
        missing = left
    return sorted(pieces, key=lambda piece: piece.slots), sorted(missing)


def assembled(pieces: Sequence[Piece], dimension: int, fold_at_passages: int) -> Shard:
    """Put a shard together. Takes the memory of its codes; the sources stay as they are."""
    mains = [(piece.source.main, _wanted(piece)) for piece in pieces]
    pause()
    segment = filling.gathered([(_on_cpu(each.segment), mask) for each, mask in mains])
    gathered = directory.gathered([(each.directory, mask) for each, mask in mains])
    pause()
    main = Main(segment, gathered, _least([each.cursor for each, _ in mains]), _postings_of(mains))
    pause()
    tail = LiveTail(dimension)
    for piece in pieces:
        if piece.source.view is not None:
            _carry(piece, piece.source.view, tail)
    cursor = _least([piece.source.cursor for piece in pieces])
    return Shard(main, dimension, fold_at_passages, (tail, cursor))


def _postings_of(mains: Sequence[tuple[Main, NDArray[np.bool_]]]) -> postings.Postings | None:
    """The terms of them all; None if there is one whose terms are not known."""
    parts = [(each.postings, mask) for each, mask in mains if each.postings is not None]
    return postings.gathered(parts) if len(parts) == len(mains) else None


def _wanted(piece: Piece) -> NDArray[np.bool_]:
    """Mark the positions of the main segment that are live and in the piece's slots."""
    main, view = piece.source.main, piece.source.view
    live = (Live(main.segment.count) if view is None else view.main_live).mask()
    if piece.slots == piece.source.slots:
        return live
    return live & _within(main.directory.slots().astype(np.int64), piece.slots)


def _within(slots: NDArray[np.int64], run: tuple[int, int]) -> NDArray[np.bool_]:
    return (slots >= run[0]) & (slots < run[1])


def _on_cpu(each: Segment) -> Segment:
    """Without what a GPU has of it: that is made of the new segment anew."""
    if isinstance(each, ListSegment) and each.gpu is not None:
        return replace(each, gpu=None)
    return each


def _carry(piece: Piece, view: View, tail: LiveTail) -> None:
    """Take along the live passages of a tail, as they are: the same scores come of them."""
    count, old = view.tail_live.count, view.tail.directory
    slots = slots_of(old.ids[:count]).astype(np.int64)
    chosen = np.flatnonzero(view.tail_live.mask() & _within(slots, piece.slots))
    vectors = view.tail.vectors(count)[chosen]
    fields = old.fields.take(chosen)
    counted = view.tail.postings.first(count).counted(np.isin(np.arange(count), chosen))
    tail.append(vectors, old.records[chosen], old.ids_at(chosen), fields, counted)


def _least(cursors: Sequence[Cursor]) -> Cursor:
    return min(cursors, key=lambda cursor: (cursor.sequence, cursor.version))
