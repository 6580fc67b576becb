"""Which positions of a segment can be found?

A passage that was replaced or deleted stays where it is until its segment is folded, and is left
out inside the search. A `Live` never changes: a search that has one sees one state of the shard.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from shoal.shard.kernel import faiss


class Live:
    """Which of the positions 0 to count - 1 are live."""

    def __init__(
        self,
        count: int,
        bits: NDArray[np.uint8] | None = None,
        dead_count: int = 0,
        *,
        filtered: bool = False,
    ) -> None:
        """bits: one a position, lowest first; None if all are live. Not to be written any more.

        filtered: what a filter leaves out counts as dead here.
        """
        self.count = count
        self.filtered = filtered
        self.dead_count = dead_count
        self._bits = bits if dead_count else None
        # FAISS does not own the bits that a selector looks at: the two live as long as each other.
        self.selector: Any = None if self._bits is None else faiss.IDSelectorBitmap(self._bits)

    @property
    def live_count(self) -> int:
        """Positions that can be found."""
        return self.count - self.dead_count

    def contains(self, positions: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Tell for each position whether it is live."""
        if self._bits is None:
            return np.ones(len(positions), dtype=bool)
        found: NDArray[np.bool_] = (self._bits[positions >> 3] >> (positions & 7) & 1).astype(bool)
        return found

    def mask(self) -> NDArray[np.bool_]:
        """All of them as an array."""
        if self._bits is None:
            return np.ones(self.count, dtype=bool)
        return np.unpackbits(self._bits, count=self.count, bitorder="little").astype(bool)

    def changed(self, count: int, killed: NDArray[np.int64]) -> Live:
        """Give the state with `count` positions, new ones live, without those that are killed.

        killed: live positions, each once.
        """
        assert count >= self.count
        dead_count = self.dead_count + len(killed)
        if dead_count == 0:
            return Live(count)
        bits = np.full((count + 7) // 8, 0xFF, dtype=np.uint8)
        if self._bits is not None:
            bits[: len(self._bits)] = self._bits
        np.bitwise_and.at(bits, killed >> 3, ~(1 << (killed & 7)).astype(np.uint8))
        return Live(count, bits, dead_count)

    def intersected(self, bits: NDArray[np.uint8]) -> Live:
        """Give what is live and marked, for one search.

        bits: one a position, lowest first; those past the last are zero.
        """
        kept = bits if self._bits is None else bits & self._bits[: len(bits)]
        dead_count = self.count - int(np.bitwise_count(kept).sum())
        return Live(self.count, kept, dead_count, filtered=True)
