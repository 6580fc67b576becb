"""What is done for a shard in the background: load, fold, save.

A shard is searched and followed meanwhile. Each job works on shards that are marked busy for it,
and frees them at its end, whatever happens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from shoal.rpc.errors import ServiceError
from shoal.shard import gpu
from shoal.shard.codes import Codebook, load_codebook
from shoal.shard.config import ShardSettings
from shoal.shard.held import HeldLayout, HeldShard
from shoal.shard.kernel import faiss
from shoal.shard.load import build_shards
from shoal.shard.published import load_published
from shoal.shard.shard import Main, Shard
from shoal.shard.snapshot import SnapshotFolder
from shoal.table.durability import local_path
from shoal.table.errors import TableNotFoundError
from shoal.table.table import PassageTable
from shoal.v1.errors_pb2 import Reason

_log = logging.getLogger(__name__)

# After a failed load. Short, as a table may be made, or a folder restored, at any time.
RETRY_S: Final = 2.0
# Times that the table's versions may be cleaned under a load before it is given up for a while.
_ATTEMPTS: Final = 3
# A snapshot that lacks as many rows is not worth catching up from: they come at once.
_MAX_CATCH_UP_ROWS: Final = 100_000


class Upkeep:
    """Does the background's work. Its methods block."""

    def __init__(
        self, settings: ShardSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Clock: monotonic, in seconds."""
        self._settings = settings
        self.clock = clock

    def snapshots(self, layout: HeldLayout) -> SnapshotFolder | None:
        """Where a layout's snapshots are; None if none are kept."""
        root = self._settings.snapshot_dir
        key = layout.id
        if root is None:
            return None
        return SnapshotFolder(root, key.index_uid, key.index_version, key.shard_count)

    def load(self, layout: HeldLayout, table_uri: str, wanted: Sequence[HeldShard]) -> None:
        """Load shards from their snapshots or published segments, the rest from the table."""
        started_s = self.clock()
        try:
            faiss.omp_set_num_threads(self._settings.threads)
            for held, main in self._mains(layout, table_uri, wanted):
                held.shard = Shard(main, layout.dimension, self._settings.fold_at_passages)
                held.message = "it is catching up with the table"
            _log.info("loaded %s in %.1f s", layout.id, self.clock() - started_s)
        except Exception as error:  # noqa: BLE001  # stands in the shard's state
            retry_s = self.clock() + RETRY_S
            known = isinstance(error, (ServiceError, OSError))
            _log.warning("cannot load %s: %s", layout.id, error, exc_info=not known)
            for held in wanted:
                held.fail(str(error), retry_s)
        finally:
            for held in wanted:
                held.busy = False

    def _mains(
        self, layout: HeldLayout, table_uri: str, wanted: Sequence[HeldShard]
    ) -> list[tuple[HeldShard, Main]]:
        if not layout.exact and layout.codebook is None:
            layout.codebook = self._codebook(layout)
        table = PassageTable.open(table_uri)
        if table.dimension != layout.dimension:
            raise ServiceError(
                Reason.REASON_DIMENSION_MISMATCH,
                f"the table {table_uri} has {table.dimension} numbers a vector, but the topology "
                f"says {layout.dimension}: publish what the table has",
            )
        loaded: list[tuple[HeldShard, Main]] = []
        missing: list[HeldShard] = []
        for held in wanted:
            main = self._from_snapshot(layout, held.number, table)
            if main is None:
                main = self._from_published(layout, held.number, table)
            if main is None:
                missing.append(held)
            else:
                held.saved, held.saved_s = main, self.clock()
                loaded.append((held, main))
        if missing:
            built = _build(table, layout, [held.number for held in missing])
            loaded += [(held, built[held.number]) for held in missing]
        return [(held, self._placed(main)) for held, main in loaded]

    def _codebook(self, layout: HeldLayout) -> Codebook:
        folder = local_path(layout.codebook_uri)
        if folder is None:
            raise ServiceError(
                Reason.REASON_INTERNAL,
                f"the codebook {layout.codebook_uri} is not in a folder: mount the store "
                "that holds the data root, and name it by its path",
            )
        return load_codebook(Path(folder), layout.dimension)

    def _from_snapshot(self, layout: HeldLayout, shard: int, table: PassageTable) -> Main | None:
        folder = self.snapshots(layout)
        if folder is None:
            return None
        main = folder.load(shard, layout.codebook, layout.dimension)
        return self._if_it_suits(main, layout, shard, table)

    def _from_published(self, layout: HeldLayout, shard: int, table: PassageTable) -> Main | None:
        main = load_published(layout, shard, layout.codebook)
        return self._if_it_suits(main, layout, shard, table)

    def _if_it_suits(
        self, main: Main | None, layout: HeldLayout, shard: int, table: PassageTable
    ) -> Main | None:
        if main is None:
            return None
        expected_rows = 2 * main.directory.count * layout.id.shard_count + _MAX_CATCH_UP_ROWS
        if main.cursor.version > table.version or table.row_count > expected_rows:
            _log.info("the segment of shard %d does not suit the table: building it", shard)
            return None
        return main

    def _placed(self, main: Main) -> Main:
        return gpu.placed(main) if self._settings.device == "cuda" else main

    def fold(self, layout: HeldLayout, held: HeldShard) -> None:
        """Fold the tail into the main segment."""
        started_s = self.clock()
        try:
            faiss.omp_set_num_threads(1)  # Searches go first.
            shard = held.shard
            if shard is None:
                return
            tail_count = shard.view.tail_live.count
            main = shard.fold(self._placed)
            _log.info(
                "folded %d passages of %s, shard %d, into %d in %.2f s",
                tail_count,
                layout.id,
                held.number,
                main.segment.count,
                self.clock() - started_s,
            )
        except Exception:  # noqa: BLE001  # the shard is built again
            _log.exception("cannot fold %s, shard %d: building it", layout.id, held.number)
            held.fail("a fold failed", self.clock() + RETRY_S)
        finally:
            held.busy = False

    def save_due(self, held: HeldShard) -> bool:
        """True if there is a main segment to save, and the last snapshot is old enough."""
        if self._settings.snapshot_dir is None or held.shard is None:
            return False
        fresh = held.shard.view.main is not held.saved
        return fresh and self.clock() - held.saved_s >= self._settings.snapshot_interval_s

    def save(self, layout: HeldLayout, held: HeldShard) -> None:
        """Save the main segment."""
        try:
            folder, shard = self.snapshots(layout), held.shard
            if folder is not None and shard is not None:
                main = shard.view.main
                folder.save(held.number, main)
                held.saved = main
        except Exception as error:  # noqa: BLE001  # it only saves time
            _log.warning("cannot save a snapshot: %s", error)
        finally:
            held.saved_s = self.clock()
            held.busy = False


def _build(table: PassageTable, layout: HeldLayout, shards: Sequence[int]) -> dict[int, Main]:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return build_shards(table, layout.codebook, shards, layout.id.shard_count)
        except TableNotFoundError:
            if attempt == _ATTEMPTS:
                raise
            table.refresh()
    raise AssertionError("the last attempt returns or raises")
