"""How does an encoder bundle serve as a backend?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.bundle import EncoderModel, Purpose, load_bundle
from shoal.encoder.backend import Backend
from shoal.encoder.config import EncoderSettings
from shoal.internal.v1 import encoder_pb2

_PURPOSES: Final[dict[encoder_pb2.Purpose.ValueType, Purpose]] = {
    encoder_pb2.Purpose.PURPOSE_QUERY: "query",
    encoder_pb2.Purpose.PURPOSE_PASSAGE: "passage",
}


class BundledEncoder:
    """An encoder bundle, loaded."""

    def __init__(self, loaded: EncoderModel) -> None:
        """Takes over the model."""
        self._loaded = loaded
        self.model: str = loaded.bundle.model
        self.dimension: int = loaded.dimension

    def costs(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without the prefix of its purpose."""
        return [max(1, count) for count in self._loaded.count_tokens(texts)]

    def encode(
        self, texts: Sequence[str], purpose: encoder_pb2.Purpose.ValueType
    ) -> NDArray[np.float32]:
        """Unit vectors of the texts."""
        return self._loaded.encode(texts, _PURPOSES[purpose])


def load_backend(settings: EncoderSettings) -> Backend:
    """Load the bundle of the settings. Raises BundleError."""
    return BundledEncoder(
        EncoderModel(
            load_bundle(settings.bundle),
            threads=settings.threads,
            device=settings.device,
            # Batches come with their bounds kept; the model is not to divide them again.
            batch_tokens=2 * max(settings.query_batch_tokens, settings.passage_batch_tokens),
        )
    )
