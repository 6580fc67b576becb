"""What does a shard of the benchmark hold, for those who search it without Shoal's services?

The same index as Shoal's: Shoal's codebook, lists and wide codes, with the same search parameters,
so that the compositions differ in how they are composed and in nothing else. A shard's vectors are
kept in the cache folder, from which each replica fills its index when it starts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from shoal.shard.codes import Codebook, load_codebook
from shoal.shard.filling import SegmentBuilder
from shoal.shard.tombstones import Live

_Found = tuple[NDArray[np.float32], NDArray[np.int64]]


def write_shards(
    rows: NDArray[np.float32], shard_of_row: NDArray[np.integer[Any]], folder: Path
) -> None:
    """Write the row numbers of each shard into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    assert len(rows) == len(shard_of_row)
    for shard in range(int(shard_of_row.max()) + 1):
        np.save(folder / f"shard-{shard}.npy", np.flatnonzero(shard_of_row == shard))


class ShardIndex:
    """One shard's index."""

    def __init__(
        self, codebook: Codebook, rows: NDArray[np.float32], numbers: NDArray[np.int64]
    ) -> None:
        """rows: of the whole set. numbers: of those that are the shard's. Takes a few seconds."""
        self._codebook, self._numbers = codebook, numbers
        builder = SegmentBuilder(codebook, rows.shape[1], len(numbers))
        for part in np.array_split(numbers, -(-len(numbers) // 16_384)):
            builder.add(np.ascontiguousarray(rows[part]))
        self._segment: Any = builder.finish()
        self._live = Live(len(numbers))

    @classmethod
    def load(cls, folder: Path, codebook: Path, shard: int, *, threads: int) -> ShardIndex:
        """Fill the index of a shard. threads: that FAISS may use in this process."""
        faiss.omp_set_num_threads(threads)
        rows = np.load(folder.parent / "rows.npy", mmap_mode="r")
        return cls(load_codebook(codebook), rows, np.load(folder / f"shard-{shard}.npy"))

    def move_to_gpu(self) -> None:
        """Search the lists on the GPU from now on, as a shard of `device: cuda` does."""
        from shoal.shard.gpu import GpuLists

        lists = GpuLists(self._codebook, self._segment.wide)
        self._segment = replace(self._segment, gpu=lists)

    def search(self, queries: NDArray[np.float32], top_k: int) -> _Found:
        """Scores and row numbers of the best of each query, best first: [queries, top_k]."""
        point = self._codebook.manifest.point_for(top_k)
        assignment = self._codebook.assign(queries, point.nprobe)
        _, positions = self._segment.candidates(
            queries, assignment, top_k * point.refine_factor, self._live
        )
        scores = self._codebook.wide.scores(queries, self._segment.wide[positions])
        scores[positions < 0] = -np.inf
        order = np.argsort(-scores, axis=1)[:, :top_k]
        best = np.take_along_axis(positions, order, axis=1)
        return np.take_along_axis(scores, order, axis=1), self._numbers[best]
