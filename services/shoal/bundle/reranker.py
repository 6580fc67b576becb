"""How does a reranker bundle score pairs of question and passage?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.bundle.errors import BundleInvalidError
from shoal.bundle.loading import Bundle
from shoal.bundle.session import Device, OnnxSession, batches

DEFAULT_BATCH_TOKENS: Final = 2048


class RerankerModel:
    """A cross-encoder, loaded. Thread-safe."""

    def __init__(
        self,
        bundle: Bundle,
        threads: int = 1,
        device: Device = "cpu",
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
    ) -> None:
        """threads: of one run. batch_tokens: most tokens in one run, padding included."""
        if bundle.card.kind != "reranker" or bundle.card.blend is None:
            raise BundleInvalidError(f"{bundle.folder} is a {bundle.card.kind}, not a reranker")
        self.bundle = bundle
        self._weight = bundle.card.blend.weight
        self._batch_tokens = batch_tokens
        self._tokenizer = bundle.tokenizer()
        self._session = OnnxSession(bundle.model_path, threads=threads, device=device)

    def count_tokens(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        """Tokens that the model reads of each pair, special ones included."""
        return [len(each.ids) for each in self._tokenizer.encode_pairs(pairs)]

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """Score pairs of question and passage: float32 [count], logits, higher is better."""
        encodings = self._tokenizer.encode_pairs(pairs)
        scores = np.empty(len(pairs), dtype=np.float32)
        for batch in batches([len(each.ids) for each in encodings], self._batch_tokens):
            output, _ = self._session.run([encodings[position] for position in batch])
            scores[batch] = output.reshape(len(batch))
        return scores

    def blend(
        self, rerank_scores: NDArray[np.float32], dense_scores: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """What to order the passages of a question by, as the card says: float32 [count]."""
        return np.asarray(dense_scores + self._weight * rerank_scores, dtype=np.float32)
