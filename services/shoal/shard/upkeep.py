"""What is done for a shard in the background: load, fold, save.

A shard is searched and followed meanwhile. Each job works on shards that are marked busy for it,
and frees them at its end, whatever happens.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Final

from shoal.rpc.errors import ServiceError
from shoal.shard import gpu
from shoal.shard.allocator import give_back
from shoal.shard.changes import catch_up
from shoal.shard.codes import Codebook, load_codebook
from shoal.shard.config import ShardSettings
from shoal.shard.held import HeldLayout, HeldShard, LayoutId
from shoal.shard.kernel import faiss
from shoal.shard.kind_lists import ListSegment
from shoal.shard.origin import make_shards, own_segments
from shoal.shard.pace import turns, waiting
from shoal.shard.shard import Main, Shard
from shoal.shard.snapshot import SnapshotFolder
from shoal.table.durability import local_path
from shoal.table.table import PassageTable
from shoal.v1.errors_pb2 import Reason

_log = logging.getLogger(__name__)

# After a failed load. Short, as a table may be made, or a folder restored, at any time.
RETRY_S: Final = 2.0


class Upkeep:
    """Does the background's work. Its methods block."""

    def __init__(
        self, settings: ShardSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Clock: monotonic, in seconds."""
        self._settings = settings
        self.clock = clock

    def snapshots(self, layout: HeldLayout) -> SnapshotFolder | None:
        """Where a layout's segments are stored; None if they are not."""
        return own_segments(self._settings, layout)

    def sweep(self, held: Sequence[LayoutId]) -> None:
        """Remove stored segments of divisions of an index that are not held any more.

        held: all layouts of the index that are, one or more.
        """
        root = self._settings.snapshot_dir
        if root is None or not held:
            return
        names = {f"v{each.index_version}-of-{each.shard_count}" for each in held}
        folder = root / held[0].index_uid
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in names:
                _log.info("removing %s, which is not held any more", path)
                shutil.rmtree(path, ignore_errors=True)

    def load(
        self,
        layout: HeldLayout,
        table_uri: str,
        wanted: Sequence[HeldShard],
        siblings: Sequence[HeldLayout] = (),
        *,
        beside: bool = False,
    ) -> None:
        """Load shards: see `shoal.shard.origin` for where they come from.

        siblings: other layouts of the index that this server holds. beside: something on this
        server is searched meanwhile.
        """
        started_s = self.clock()
        try:
            # Where others are searched already, they go first.
            faiss.omp_set_num_threads(1 if beside else self._settings.threads)
            with turns() if beside else nullcontext():
                for held, shard in self._shards(layout, table_uri, wanted, siblings):
                    held.shard = shard
                    held.message = "it is catching up with the table"
            _log.info("loaded %s in %.1f s", layout.id, self.clock() - started_s)
        except Exception as error:  # noqa: BLE001  # stands in the shard's state
            retry_s = self.clock() + RETRY_S
            known = isinstance(error, (ServiceError, OSError))
            _log.warning("cannot load %s: %s", layout.id, error, exc_info=not known)
            for held in wanted:
                if held.shard is None:
                    held.fail(str(error), retry_s)
        finally:
            for held in wanted:
                held.busy = False
            give_back()

    def _shards(
        self,
        layout: HeldLayout,
        table_uri: str,
        wanted: Sequence[HeldShard],
        siblings: Sequence[HeldLayout],
    ) -> Iterator[tuple[HeldShard, Shard]]:
        if not layout.exact and layout.codebook is None:
            layout.codebook = self._codebook_of(layout, siblings)
        with waiting():
            table = PassageTable.open(table_uri, model=layout.model)
        if table.dimension != layout.dimension:
            raise ServiceError(
                Reason.REASON_DIMENSION_MISMATCH,
                f"the table {table_uri} has {table.dimension} numbers a vector, but the topology "
                f"says {layout.dimension}: publish what the table has",
            )
        for held, shard in make_shards(self._settings, layout, table, wanted, siblings):
            main = shard.view.main
            if (placed := self._placed(main)) is not main:
                shard.exchange(main, placed)
                held.saved = placed if held.saved is main else held.saved
            if held.saved is shard.view.main:
                held.saved_s = self.clock()
            # Here, as what is searched already would wait while the follower does it.
            catch_up(table, shard, held.number, layout.id.shard_count)
            yield held, shard

    def _codebook_of(self, layout: HeldLayout, siblings: Sequence[HeldLayout]) -> Codebook:
        for each in siblings:
            if each.codebook_uri == layout.codebook_uri and each.codebook is not None:
                return each.codebook
        return self._codebook(layout)

    def _codebook(self, layout: HeldLayout) -> Codebook:
        folder = local_path(layout.codebook_uri)
        if folder is None:
            raise ServiceError(
                Reason.REASON_INTERNAL,
                f"the codebook {layout.codebook_uri} is not in a folder: mount the store "
                "that holds the data root, and name it by its path",
            )
        return load_codebook(Path(folder), layout.dimension)

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
            with turns():
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

    def save_due(self, held: HeldShard, *, at_once: bool = False) -> bool:
        """True if there is a main segment to save, and the last snapshot is old enough.

        at_once: however old that is.
        """
        if self._settings.snapshot_dir is None or held.shard is None:
            return False
        fresh = held.shard.view.main is not held.saved
        interval_s = 0.0 if at_once else self._settings.snapshot_interval_s
        return fresh and self.clock() - held.saved_s >= interval_s

    def save(self, layout: HeldLayout, held: HeldShard) -> None:
        """Save the main segment."""
        try:
            folder, shard = self.snapshots(layout), held.shard
            if folder is not None and shard is not None:
                with turns():
                    held.saved = self._stored(folder, layout, held.number, shard)
                held.note = ""
        except Exception as error:  # noqa: BLE001  # it only saves time
            held.note = (
                f"the segment of shard {held.number} cannot be stored: {error}; searches go on, "
                "and a restart takes longer"
            )
            _log.warning("%s: %s", layout.id, held.note)
        finally:
            held.saved_s = self.clock()
            held.busy = False

    def _stored(
        self, folder: SnapshotFolder, layout: HeldLayout, number: int, shard: Shard
    ) -> Main:
        """Store the main segment, and search it in its files from now on."""
        main = shard.view.main
        folder.save(number, main)
        if not self._settings.map_segments:
            return main
        # It was written a moment ago: to check it would be to read it from memory.
        mapped = folder.open(number, layout.codebook, layout.dimension, mapped=True, check=False)
        assert mapped is not None
        before, after = main.segment, mapped.segment
        if isinstance(before, ListSegment) and isinstance(after, ListSegment):
            mapped = replace(mapped, segment=replace(after, gpu=before.gpu))
        return mapped if shard.exchange(main, mapped) else main
