"""Where does a shard that is to be served come from?

In this order, the cheapest first:

1. its own segment, in this instance's folder, or else the one that the version was published with;
2. shards of another division of the same version that this server holds: codes are moved;
3. segments of that version, of any division, in the index's storage or in other instances' folders;
4. the table, whose vectors are encoded: only the slots that nothing else has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from shoal.shard.config import ShardSettings
from shoal.shard.held import HeldLayout, HeldShard
from shoal.shard.load import build_runs
from shoal.shard.move import Piece, Source, assembled, cover
from shoal.shard.published import Published
from shoal.shard.shard import Main, Shard
from shoal.shard.snapshot import SnapshotFolder, layouts_of
from shoal.table.errors import TableNotFoundError
from shoal.table.slots import slot_range
from shoal.table.table import PassageTable

_log = logging.getLogger(__name__)

# Times that the table's versions may be cleaned under a load before it is given up for a while.
_ATTEMPTS: Final = 3
# A segment that lacks as many rows is not worth catching up from: they come at once.
_MAX_CATCH_UP_ROWS: Final = 100_000


def own_segments(settings: ShardSettings, layout: HeldLayout) -> SnapshotFolder | None:
    """Where this instance stores a layout's segments; None if it does not."""
    root, key = settings.snapshot_dir, layout.id
    if root is None:
        return None
    return SnapshotFolder(root, key.index_uid, key.index_version, key.shard_count)


def make_shards(
    settings: ShardSettings,
    layout: HeldLayout,
    table: PassageTable,
    wanted: Sequence[HeldShard],
    siblings: Sequence[HeldLayout],
) -> Iterator[tuple[HeldShard, Shard]]:
    """Make shards of a layout. Blocks.

    siblings: other layouts of this index on this server. Raises the table's errors.
    """
    maker = _Maker(settings, layout, table, siblings)
    plans = []
    for held in wanted:
        if (main := maker.stored(held)) is not None:
            held.saved = main
            yield held, maker.shard_of(main)
        else:
            plans.append((held, *maker.plan(held)))
    # The table is read once for all of them.
    runs = [run for _, _, missing in plans for run in missing]
    built = iter(_built(table, layout, runs))
    for held, pieces, missing in plans:
        pieces += [Piece(run, Source(run, next(built))) for run in missing]
        only = pieces[0].source
        if len(pieces) == 1 and only.slots == pieces[0].slots and only.view is None:
            yield held, maker.shard_of(only.main)
        else:
            pieces.sort(key=lambda piece: piece.slots)
            _log.info("shard %d of %s is put together of %s", held.number, layout.id, _told(pieces))
            yield held, assembled(pieces, layout.dimension, settings.fold_at_passages)


class _Maker:
    """Makes the shards of one layout."""

    def __init__(
        self,
        settings: ShardSettings,
        layout: HeldLayout,
        table: PassageTable,
        siblings: Sequence[HeldLayout],
    ) -> None:
        self._settings, self._layout, self._table = settings, layout, table
        self._siblings = [
            each
            for each in siblings
            if each is not layout
            and each.id.index_version == layout.id.index_version
            and each.codebook_uri == layout.codebook_uri
        ]
        self._published = Published.of(layout)

    def shard_of(self, main: Main) -> Shard:
        return Shard(main, self._layout.dimension, self._settings.fold_at_passages)

    def stored(self, held: HeldShard) -> Main | None:
        """The segment of exactly these slots that was stored or published, if it is good."""

        def refused(problem: str) -> None:
            held.note = f"{problem}; it is made anew"

        main, published = self._own(held, refused), self._published
        count = self._layout.id.shard_count
        if main is None and published is not None and published.shard_count == count:
            main = published.load(held.number, refused)
        return main if main is not None and self._suits(main, held.number, count) else None

    def _own(self, held: HeldShard, refused: Callable[[str], None]) -> Main | None:
        folder = own_segments(self._settings, self._layout)
        if folder is None:
            return None
        mapped = self._settings.map_segments
        return folder.load(
            held.number,
            self._layout.codebook,
            self._layout.dimension,
            mapped=mapped,
            on_refusal=refused,
        )

    def plan(self, held: HeldShard) -> tuple[list[Piece], list[tuple[int, int]]]:
        """What a shard can be put together of, and the slots that only the table has."""
        wanted = slot_range(held.number, self._layout.id.shard_count)
        pieces, missing = cover(wanted, list(self._local()))
        for run in missing:
            found, left = cover(run, list(self._remote(run)))
            pieces += found
            missing = [each for each in missing if each != run] + left
        return pieces, missing

    def _local(self) -> Iterator[Source]:
        for layout in self._siblings:
            for held in layout.shards.values():
                shard = held.shard
                if held.ready and shard is not None:
                    view = shard.view
                    slots = slot_range(held.number, layout.id.shard_count)
                    yield Source(slots, view.main, view)

    def _remote(self, run: tuple[int, int]) -> Iterator[Source]:
        """Stored segments that overlap with a run of slots, read as they are asked for."""
        yield from self._published_parts(run)
        key = self._layout.id
        for root in self._roots():
            for count, folder in layouts_of(root, key.index_uid, key.index_version).items():
                if root == self._settings.snapshot_dir and count == key.shard_count:
                    continue  # It was looked at before, and is not there or not good.
                for shard in sorted(folder.shards()):
                    slots = slot_range(shard, count) if shard < count else (0, 0)
                    if max(slots[0], run[0]) >= min(slots[1], run[1]):
                        continue
                    main = folder.load(
                        shard, self._layout.codebook, self._layout.dimension, mapped=False
                    )
                    if main is not None and self._suits(main, shard, count):
                        yield Source(slots, main)

    def _published_parts(self, run: tuple[int, int]) -> Iterator[Source]:
        published = self._published
        if published is None or published.shard_count == self._layout.id.shard_count:
            return  # That would be the very segment that was not there, or not good.
        for shard in range(published.shard_count):
            slots = slot_range(shard, published.shard_count)
            if max(slots[0], run[0]) >= min(slots[1], run[1]):
                continue
            main = published.load(shard, lambda problem: None)
            if main is not None and self._suits(main, shard, published.shard_count):
                yield Source(slots, main)

    def _roots(self) -> Iterator[Path]:
        own, shared = self._settings.snapshot_dir, self._settings.shared_snapshot_dir
        if own is not None:
            yield own  # Of a division that was served before.
        if shared is not None and shared.is_dir():
            yield from sorted(path for path in shared.iterdir() if path != own and path.is_dir())

    def _suits(self, main: Main, shard: int, shard_count: int) -> bool:
        """True if the table leads on from a segment, and not over too many rows."""
        if (main.postings is None) == bool(self._table.analyzer):
            _log.info("a stored segment of %s has no terms, or others", self._layout.id)
            return False
        expected_rows = 2 * main.directory.count * shard_count + _MAX_CATCH_UP_ROWS
        ahead = main.cursor.version > self._table.version
        slots = slot_range(shard, shard_count)
        left_behind = self._table.trimmed.passed(main.cursor.sequence, slots)
        if ahead or left_behind or self._table.row_count > expected_rows:
            _log.info("a stored segment of %s does not suit the table", self._layout.id)
            return False
        return True


def _told(pieces: Sequence[Piece]) -> str:
    return ", ".join(
        f"slots {piece.slots[0]}-{piece.slots[1] - 1} "
        + ("that are served" if piece.source.view is not None else "that were read")
        for piece in pieces
    )


def _built(
    table: PassageTable, layout: HeldLayout, runs: Sequence[tuple[int, int]]
) -> Sequence[Main]:
    if not runs:
        return []
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return build_runs(table, layout.codebook, runs)
        except TableNotFoundError:
            if attempt == _ATTEMPTS:
                raise
            table.refresh()
    raise AssertionError("the last attempt returns or raises")
