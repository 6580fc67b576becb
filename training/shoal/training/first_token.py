"""How is a cross-encoder spared what nobody reads of its last layer?

Its score comes from the vector of the first token alone. So the last layer need not ask, mix and
transform for the others: only their keys and values are wanted. The scores stay what they are, and
of twelve layers the work of nearly one is saved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FirstTokenLayer(nn.Module):  # type: ignore[misc]
    """A layer of BERT that gives the first token's vector: float32 [pairs, 1, numbers]."""

    def __init__(self, layer: Any) -> None:
        """Takes over a BertLayer, whose weights it shares."""
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """hidden: float32 [pairs, tokens, numbers]. mask: what attention's logits are added."""
        attention = self.layer.attention.self
        first = hidden[:, :1]
        queries, keys, values = (
            linear(of).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
            for linear, of in (
                (attention.query, first),
                (attention.key, hidden),
                (attention.value, hidden),
            )
        )
        logits = queries @ keys.transpose(2, 3) * attention.scaling
        if mask is not None:
            logits = logits + mask[:, :, :1]
        mixed = (torch.softmax(logits, dim=-1) @ values).transpose(1, 2).flatten(2)
        attended = self.layer.attention.output(mixed, first)
        spread: Tensor = self.layer.output(self.layer.intermediate(attended), attended)
        return spread


def read_first_token_only(model: Any) -> bool:
    """Put FirstTokenLayer in place of a classifier's last layer. False if it is no BERT."""
    bert = getattr(model, "bert", None)
    if bert is None or getattr(bert, "pooler", None) is None:
        return False
    layers = bert.encoder.layer
    layers[-1] = FirstTokenLayer(layers[-1])
    return True
