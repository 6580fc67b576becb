"""How does a reranker bundle score pairs of question and passage?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from shoal.bundle.blend import blend_scores
from shoal.bundle.errors import BundleInvalidError
from shoal.bundle.loading import Bundle
from shoal.bundle.pairs import PairReader
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
        self._blend = bundle.card.blend
        self._batch_tokens = batch_tokens
        self._tokenizer = bundle.tokenizer()
        window = bundle.card.passage_tokens
        self._reader = None if window is None else PairReader(self._tokenizer, window)
        self._session = OnnxSession(bundle.model_path, threads=threads, device=device)

    def count_tokens(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        """Tokens that the model reads of each pair, special ones included."""
        if self._reader is not None:
            return self._reader.lengths(pairs)
        return [len(each.ids) for each in self._read(pairs)]

    def score(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """Score pairs of question and passage: float32 [count], logits, higher is better."""
        encodings = self._read(pairs)
        scores = np.empty(len(pairs), dtype=np.float32)
        for batch in batches([len(each.ids) for each in encodings], self._batch_tokens):
            output, _ = self._session.run([encodings[position] for position in batch])
            scores[batch] = output.reshape(len(batch))
        return scores

    def blend(
        self,
        rerank_scores: NDArray[np.float32],
        dense_scores: NDArray[np.float32],
        similarities: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """What to order the passages of a question by, as the card says: float32 [count].

        dense_scores: what they were ordered by before. similarities: of the passages' vectors with
        one another, float32 [count, count]; None if they are not known. A passage that was not
        read has NaN in `rerank_scores`.
        """
        return blend_scores(self._blend, rerank_scores, dense_scores, similarities)

    def readable(self, dense_scores: NDArray[np.float32]) -> NDArray[np.intp]:
        """Which passages of a question to read, as the card says: positions, ascending."""
        count = self._blend.read or len(dense_scores)
        return np.sort(np.argsort(-dense_scores, kind="stable")[:count])

    def _read(self, pairs: Sequence[tuple[str, str]]) -> Sequence[Any]:
        if self._reader is None:
            return self._tokenizer.encode_pairs(pairs)
        return self._reader.read(pairs)
