"""Which vectors is the recall of an index version measured with, and what is the truth for them?

Some passages are held out of training and of every measurement's corpus: what is found for them is
compared with an exact search among all other passages.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.shard.codes import write_synced
from shoal.shard.kernel import faiss
from shoal.table.manifest import HELD_OUT

FILE_NAME: Final = HELD_OUT
# Neighbours that are kept of each query: more than are asked for, as copies of a document tie.
_KEPT: Final = 64
# Rows that are compared at once: FAISS compares blocks faster than single batches, and four times
# as many no faster than so many.
_BLOCK_ROWS: Final = 4096
# Scores closer than this are the same: which of two equal neighbours is found does not matter.
SAME_SCORE: Final = 1e-6
# Exact neighbours to keep beyond those wanted: copies of a passage tie with the last one.
TIES: Final = 28


@dataclass(frozen=True)
class HeldOut:
    """What is searched for: passages that were held out, or questions."""

    # float32 [n, dimension], unit length.
    vectors: NDArray[np.float32]
    # Rows of the passages, uint64 [n]; [0] if they are questions, which are in no table.
    row_ids: NDArray[np.uint64]

    def save(self, folder: Path) -> None:
        """Write them. Raises OSError."""
        buffer = io.BytesIO()
        np.savez(buffer, vectors=self.vectors, row_ids=self.row_ids)
        write_synced(folder / FILE_NAME, buffer.getvalue())

    @classmethod
    def load(cls, folder: Path) -> HeldOut:
        """Read them. Raises OSError, ValueError, KeyError."""
        with np.load(folder / FILE_NAME) as stored:
            return cls(stored["vectors"], stored["row_ids"])


class Neighbours:
    """The exact neighbours of held-out vectors, among passages that come in pieces."""

    def __init__(self, held_out: HeldOut, kept: int = _KEPT) -> None:
        """None found yet. kept: neighbours that are kept of each vector."""
        self._held_out, self._kept = held_out, kept
        count = len(held_out.vectors)
        # [n, kept], best first; -inf where there are fewer.
        self.scores = np.full((count, kept), -np.inf, np.float32)
        self.row_ids = np.zeros((count, kept), np.uint64)
        self._pending: list[tuple[NDArray[np.uint64], NDArray[np.float32]]] = []
        self._pending_count = 0

    def add(self, row_ids: NDArray[np.uint64], vectors: NDArray[np.float32]) -> None:
        """Compare with further passages; those held out themselves are left out."""
        kept = ~np.isin(row_ids, self._held_out.row_ids)
        self._pending.append((row_ids[kept], vectors[kept]))
        self._pending_count += int(kept.sum())
        if self._pending_count >= _BLOCK_ROWS:
            self.flush()

    def flush(self) -> None:
        """Compare with what was added and not compared yet."""
        if self._pending_count:
            rows = np.concatenate([each for each, _ in self._pending])
            vectors = np.concatenate([each for _, each in self._pending])
            scores, places = faiss.knn(
                self._held_out.vectors,
                vectors,
                min(self._kept, len(rows)),
                metric=faiss.METRIC_INNER_PRODUCT,
            )
            self.take(scores, rows[places])
        self._pending, self._pending_count = [], 0

    def take(self, scores: NDArray[np.float32], row_ids: NDArray[np.uint64]) -> None:
        """Take neighbours that were found elsewhere: [n, k]."""
        all_scores = np.concatenate([self.scores, scores], axis=1)
        all_rows = np.concatenate([self.row_ids, row_ids], axis=1)
        best = np.argsort(-all_scores, axis=1, kind="stable")[:, : self._kept]
        self.scores = np.take_along_axis(all_scores, best, axis=1)
        self.row_ids = np.take_along_axis(all_rows, best, axis=1)

    def recall(self, found: NDArray[np.uint64]) -> float:
        """Part of the true neighbours that is among those found, [n, k] row ids, 0 to 1."""
        top_k = found.shape[1]
        same = found[:, :, None] == self.row_ids[:, None, :]
        true = np.where(same, self.scores[:, None, :], -np.inf).max(axis=2)
        worst = self.scores[:, top_k - 1, None]
        return float((true >= worst - SAME_SCORE).mean())
