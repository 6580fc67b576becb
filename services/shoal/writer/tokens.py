"""What measures the passages?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.drift.texts import Pieces
from shoal.rpc.tokens import rough_tokens
from shoal.writer.splitting import TokenOffsets

# What all-MiniLM-L6-v2 reads, and most of its kind.
DEFAULT_MODEL_TOKENS: Final = 256


@dataclass(frozen=True)
class Measure:
    """How the encoder sees texts."""

    # Offsets of a text's tokens, uncut. Thread-safe.
    tokens: TokenOffsets = rough_tokens
    # Tokens that the encoder reads; it cuts off the rest.
    model_tokens: int = DEFAULT_MODEL_TOKENS
    # Where the tokens of a text begin, and which are unknown; None without a tokenizer.
    pieces: Pieces | None = None


def load_measure(bundle: Path | None) -> Measure:
    """Take the measure of a bundle, or a rule of thumb if there is none. Raises BundleError."""
    if bundle is None:
        return Measure()
    # Here, as a bundle brings the machinery of models along, which no other part needs.
    from shoal.bundle import load_bundle

    tokenizer = load_bundle(bundle).tokenizer()
    return Measure(tokenizer.offsets, tokenizer.max_length, tokenizer.pieces)
