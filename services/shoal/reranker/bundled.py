"""How does a reranker bundle serve as a backend?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from shoal.bundle import RerankerModel, load_bundle
from shoal.reranker.backend import Backend, Pair
from shoal.reranker.config import RerankerSettings


class BundledReranker:
    """A reranker bundle, loaded."""

    def __init__(self, loaded: RerankerModel) -> None:
        """Takes over the model."""
        self._loaded = loaded
        self.model: str = loaded.bundle.model

    def costs(self, pairs: Sequence[Pair]) -> list[int]:
        """Tokens of each pair."""
        return [max(1, count) for count in self._loaded.count_tokens(pairs)]

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """How well each passage answers its question."""
        return self._loaded.score(pairs)

    def readable(self, dense_scores: NDArray[np.float32]) -> NDArray[np.intp]:
        """Those that the bundle's card says."""
        return self._loaded.readable(dense_scores)

    def blend(
        self,
        rerank_scores: NDArray[np.float32],
        dense_scores: NDArray[np.float32],
        similarities: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """All of it, blended as the bundle's card says."""
        return self._loaded.blend(rerank_scores, dense_scores, similarities)


def load_backend(settings: RerankerSettings) -> Backend:
    """Load the bundle of the settings. Raises BundleError."""
    return BundledReranker(
        RerankerModel(
            load_bundle(settings.bundle),
            threads=settings.threads,
            device=settings.device,
            # Batches come with their bounds kept; the model is not to divide them again.
            batch_tokens=2 * settings.batch_tokens,
        )
    )
