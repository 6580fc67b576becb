"""What does a reranker ask of a model?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# A question, and a passage with its title in front.
Pair = tuple[str, str]


class Backend(Protocol):
    """A model that reads pairs. `score` is called by one thread only."""

    @property
    def model(self) -> str:
        """`name@fingerprint` of its bundle."""
        ...

    def costs(self, pairs: Sequence[Pair]) -> list[int]:
        """Tokens that the model reads of each pair, at least 1; an estimate will do."""
        ...

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """How well each passage answers its question: float32 [count], higher is better."""
        ...

    def readable(self, dense_scores: NDArray[np.float32]) -> NDArray[np.intp]:
        """Which passages of one question are worth reading: positions, ascending."""
        ...

    def blend(
        self,
        rerank_scores: NDArray[np.float32],
        dense_scores: NDArray[np.float32],
        similarities: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """What to order the passages of one question by: float32 [count], higher is better.

        rerank_scores: NaN for what was not read. similarities: of the passages with one another,
        float32 [count, count], if they are known.
        """
        ...
