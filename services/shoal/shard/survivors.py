"""What does a filter leave of a shard's codes, and how are queries compared with all of it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from shoal.shard.codes import Codebook
from shoal.shard.field_columns import FieldColumns, Matches
from shoal.shard.merge import likeliest
from shoal.shard.segment import CodedSegment, Found, search_exact
from shoal.shard.tombstones import Live

# Matches, for each one wanted, from which their density is known well enough to go by.
KNOWN: Final = 2
_BLOCK_ROWS: Final = 4096


@dataclass(frozen=True)
class Part:
    """What a filter leaves of one shard's codes."""

    segment: CodedSegment
    fields: FieldColumns
    matches: Matches
    live: Live

    def positions(self) -> NDArray[np.int64]:
        """What is live and matches, ascending."""
        positions = self.matches.positions()
        return positions[self.live.contains(positions)]


def count_of(parts: Sequence[Part]) -> int:
    """How much is live and matches, of all parts."""
    return sum(part.live.live_count for part in parts)


def depth_of(top_k: int, parts: Sequence[Part]) -> float:
    """How many of the nearest of all hold so many matches, if these lie anywhere."""
    return top_k * sum(part.live.count for part in parts) / max(1, count_of(parts))


def compare(
    codebook: Codebook,
    wide: Any,
    positions: NDArray[np.int64],
    queries: NDArray[np.float32],
    k: int,
) -> Found:
    """Compare queries with the wide codes at some positions: the best k of each.

    wide: codes by position.
    """
    scaled, offsets = codebook.wide.scaled(queries)
    best_scores = np.empty((len(queries), 0), dtype=np.float32)
    best_positions = np.empty((len(queries), 0), dtype=np.int64)
    for first in range(0, len(positions), _BLOCK_ROWS):
        block = positions[first : first + _BLOCK_ROWS]
        # Not by a product of matrices in NumPy: its threads wait for each other on a busy machine.
        codes = wide.take(block, axis=0).astype(np.float32)
        scores, places = search_exact(codes, scaled, k, Live(len(block)))
        scores = np.hstack([best_scores, scores])
        here = np.hstack([best_positions, block[places]])
        columns = likeliest(scores, k)
        best_scores = np.take_along_axis(scores, columns, axis=1)
        best_positions = np.take_along_axis(here, columns, axis=1)
    return (best_scores + offsets).astype(np.float32, copy=False), best_positions
