"""How does an encoder bundle turn text into unit vectors?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from shoal.bundle.errors import BundleInvalidError
from shoal.bundle.loading import Bundle
from shoal.bundle.session import Device, OnnxSession, batches

Purpose = Literal["query", "passage"]

DEFAULT_BATCH_TOKENS: Final = 2048


class EncoderModel:
    """An encoder, loaded. Thread-safe."""

    def __init__(
        self,
        bundle: Bundle,
        threads: int = 1,
        device: Device = "cpu",
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
    ) -> None:
        """threads: of one run. batch_tokens: most tokens in one run, padding included."""
        if bundle.card.kind != "encoder" or bundle.card.dimension is None:
            raise BundleInvalidError(f"{bundle.folder} is a {bundle.card.kind}, not an encoder")
        self.bundle = bundle
        self.dimension: int = bundle.card.dimension
        self._batch_tokens = batch_tokens
        self._tokenizer = bundle.tokenizer()
        self._session = OnnxSession(bundle.model_path, threads=threads, device=device)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens that the model reads of each text, special ones included."""
        return [len(each.ids) for each in self._tokenizer.encode(texts)]

    def encode(self, texts: Sequence[str], purpose: Purpose) -> NDArray[np.float32]:
        """Encode texts: float32 [count, dimension], unit length.

        A text's vector depends a little on its batch, as int8 activations are scaled by batch.
        """
        card = self.bundle.card
        prefix = card.query_prefix if purpose == "query" else card.passage_prefix
        encodings = self._tokenizer.encode([prefix + text for text in texts])
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for batch in batches([len(each.ids) for each in encodings], self._batch_tokens):
            vectors[batch] = self._run([encodings[position] for position in batch])
        return vectors

    def _run(self, encodings: Sequence[Any]) -> NDArray[np.float32]:
        output, mask = self._session.run(encodings)
        pooled: NDArray[np.float32]
        match self.bundle.card.pooling:
            case "mean":
                weights = mask[:, :, None].astype(np.float32)
                pooled = (output * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1.0)
            case "cls":
                pooled = output[:, 0]
            case _:
                pooled = output
        norms = np.linalg.norm(pooled, axis=1, keepdims=True)
        return np.asarray(pooled / np.maximum(norms, 1e-12), dtype=np.float32)
