"""What does an encoder ask of a model?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from shoal.internal.v1.encoder_pb2 import Purpose


class Backend(Protocol):
    """A model that encodes texts. Called by one thread only, but for its properties and costs."""

    @property
    def model(self) -> str:
        """`name@fingerprint` of its bundle."""
        ...

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        ...

    def costs(self, texts: Sequence[str]) -> list[int]:
        """Tokens that the model reads of each text, at least 1; an estimate will do."""
        ...

    def encode(self, texts: Sequence[str], purpose: Purpose.ValueType) -> NDArray[np.float32]:
        """Unit vectors of the texts: float32 [count, dimension]."""
        ...
