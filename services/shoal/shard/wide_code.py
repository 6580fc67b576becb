"""How are the candidates of an inverted list scored again, closer to their vectors?

Product-quantised codes of a few bits find candidates; a wider code of each passage orders them. One
byte a number ("sq8") keeps inner products of unit vectors within about 0.001; where neighbours are
closer to each other than that, two bytes ("fp16") do better.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

WideKind = Literal["sq8", "fp16"]

_LEVELS: Final = 255
# Rows that are encoded at once: bounds the memory that goes beside the codes.
_BLOCK_ROWS: Final = 8192
# Queries whose candidates are scored at once: as quick as all of them, and what was once allocated
# stays with the thread, so that a batch of 32 would take 6 MB of each.
_BLOCK_QUERIES: Final = 8


class WideCode:
    """A code for vectors: one number after another."""

    def __init__(
        self,
        kind: WideKind,
        lowest: NDArray[np.float32],
        step: NDArray[np.float32],
    ) -> None:
        """lowest, step: float32 [dimension], for sq8: number = lowest + step * code."""
        self.kind: WideKind = kind
        self.lowest = lowest
        self.step = step

    @classmethod
    def train(cls, kind: WideKind, sample: NDArray[np.float32]) -> WideCode:
        """Fit the code to a sample; numbers outside of its range are clipped."""
        lowest = sample.min(axis=0)
        # A number that never varies still needs a step to divide by.
        step = np.maximum((sample.max(axis=0) - lowest) / _LEVELS, np.float32(1e-9))
        return cls(kind, lowest.astype(np.float32), step.astype(np.float32))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a code's numbers."""
        return np.dtype(np.uint8 if self.kind == "sq8" else np.float16)

    def encode(self, vectors: NDArray[np.float32]) -> NDArray[Any]:
        """Encode vectors: [n, dimension] of `dtype`."""
        codes = np.empty(vectors.shape, dtype=self.dtype)
        for first in range(0, len(vectors), _BLOCK_ROWS):
            block = vectors[first : first + _BLOCK_ROWS]
            if self.kind == "sq8":
                block = np.clip(np.rint((block - self.lowest) / self.step), 0, _LEVELS)
            codes[first : first + _BLOCK_ROWS] = block
        return codes

    def decode(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """Read vectors back."""
        decoded: NDArray[np.float32] = codes.astype(np.float32)
        if self.kind == "sq8":
            decoded *= self.step
            decoded += self.lowest
        return decoded

    def scaled(
        self, queries: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | float]:
        """Bring queries to the code's scale: their products with codes, plus offsets, are scores.

        Rather than every code to the queries' scale. The offsets are [n, 1].
        """
        if self.kind == "fp16":
            return queries, 0.0
        return queries * self.step, (queries @ self.lowest)[:, None]

    def scores(self, queries: NDArray[np.float32], codes: NDArray[Any]) -> NDArray[np.float32]:
        """Inner products of queries [n, dimension] and each one's codes [n, k, dimension].

        Returns [n, k].
        """
        queries, offsets = self.scaled(queries)
        scores = np.empty(codes.shape[:2], dtype=np.float32)
        for first in range(0, len(queries), _BLOCK_QUERIES):
            block = slice(first, first + _BLOCK_QUERIES)
            numbers = codes[block].astype(np.float32)
            scores[block] = np.matmul(numbers, queries[block, :, None])[:, :, 0]
        scores += offsets
        return scores
