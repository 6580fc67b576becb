"""How are passages of earlier batches negatives of this one?

Momentum contrast: a queue holds the vectors of the last passages, made by a second encoder that
follows the trained one slowly, so that old and new vectors still compare. He and others 2020,
https://arxiv.org/abs/1911.05722; for retrieval, Izacard and others 2022 (Contriever),
https://arxiv.org/abs/2112.09118. As there, the right passage that stands against the queue is the
momentum encoder's too: if it were the trained one's, to tell the encoders apart would be enough to
tell right from wrong. Unlike there, the loss over the batch stays, whose passages get a gradient.
"""

from __future__ import annotations

import copy
from typing import Any, Final

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

# Of what the tokeniser gives, what a transformer reads.
_READ: Final[tuple[str, ...]] = ("input_ids", "attention_mask", "token_type_ids")


class MomentumQueue(nn.Module):  # type: ignore[misc]
    """The last `size` passages' vectors by the momentum encoder, the oldest leaving first."""

    def __init__(self, model: SentenceTransformer, size: int, momentum: float) -> None:
        """momentum: share of itself that the momentum encoder keeps in a step, below 1."""
        super().__init__()
        self.size, self._momentum = size, momentum
        self.encoder = copy.deepcopy(model).requires_grad_(requires_grad=False)
        # Without dropout: a key is to be what the encoder says.
        self.encoder.eval()
        dimension = model.get_embedding_dimension()
        self._keys = torch.zeros((0, dimension))
        self._passages: list[str] = []
        self._batches: list[tuple[dict[str, Tensor], Tensor]] = []

    def keys(self) -> Tensor:
        """Vectors of the queue that are wrong for all of the batch: float32 [count, dimension].

        A passage of the batch that is in the queue too is left out: it is right for its question.
        """
        current = {key for batch, _ in self._batches for key in _fingerprints(batch)}
        kept = [at for at, key in enumerate(self._passages) if key not in current]
        return self._keys if len(kept) == len(self._keys) else self._keys[kept]

    def remember(self, features: dict[str, Tensor]) -> Tensor:
        """Note a batch of passages, tokenised, for the queue. Returns their vectors."""
        batch = {key: features[key] for key in _READ if key in features}
        # A loss that is computed for several dimensions sees the same batch several times.
        for seen, vectors in self._batches:
            if seen["input_ids"] is batch["input_ids"]:
                return vectors
        with torch.no_grad():
            made: Tensor = self.encoder(dict(batch))["sentence_embedding"].float()
        self._batches.append((batch, made))
        return made

    def follow(self, model: Any) -> None:
        """Let the momentum encoder follow `model` a step, then take in what was noted."""
        plain = getattr(model, "module", model)
        with torch.no_grad():
            for own, trained in zip(self.encoder.parameters(), plain.parameters(), strict=True):
                own.lerp_(trained.to(own.dtype), 1.0 - self._momentum)
            for batch, vectors in self._batches:
                self._keys = torch.cat([self._keys.to(vectors.device), vectors])[-self.size :]
                self._passages = (self._passages + _fingerprints(batch))[-self.size :]
        self._batches = []

    def train(self, mode: bool = True) -> MomentumQueue:
        """Stay without dropout whatever the mode of the training."""
        super().train(mode)
        self.encoder.eval()
        return self

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "encoder": self.encoder.state_dict(),
            "keys": self._keys,
            "passages": self._passages,
        }

    def load_state(self, stored: dict[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        self.encoder.load_state_dict(stored["encoder"])
        self._keys, self._passages = stored["keys"], list(stored["passages"])


def _fingerprints(batch: dict[str, Tensor]) -> list[str]:
    """Name each passage of a batch by its tokens, whatever it was padded to."""
    ids, mask = batch["input_ids"].tolist(), batch["attention_mask"].tolist()
    return [
        ",".join(str(token) for token, real in zip(row, kept, strict=True) if real)
        for row, kept in zip(ids, mask, strict=True)
    ]
