"""What do the controller and the steps that encode passages anew tell one another?

Imports nothing heavy, as the controller does not otherwise touch tables and models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True)
class BundleFacts:
    """What a bundle makes."""

    # `name@fingerprint`.
    model: str
    # Numbers in a vector.
    dimension: int


@dataclass(frozen=True)
class EncodingJob:
    """Passages to encode."""

    table_uri: str
    # Of the encoder, `name@fingerprint`.
    model: str
    # Where its bundle is.
    bundle: str
    # Where vectors are left, and where it is said how far the steps are.
    vectors_folder: str
    progress_folder: str
    # Bundle whose tokenizer measures titles when documents are written; empty: a rule of thumb.
    tokenizer: str
    # Most tokens, and most code points, of a title that are read.
    title_tokens: int
    title_chars: int
    # Processor threads of a step.
    threads: int = 1


@dataclass(frozen=True)
class RowRange:
    """Rows to encode: ids from the first to the last one, both included, and how many they are."""

    first: int
    last: int
    count: int


class EncodingProgress:
    """How far a step is, in a small file: steps run where nobody can be asked."""

    PREFIX: Final = "vectors-"

    def __init__(self, folder: Path, first: int) -> None:
        """first: id of the first row of the step."""
        self._path = folder / f"{self.PREFIX}{first:020}"

    def report(self, done: int, per_s: float) -> None:
        """Say how many rows are encoded, and how many in a second. A full disk stops nobody."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(f"{done} {per_s:.3f}", encoding="utf-8")
        except OSError:
            return

    @classmethod
    def read_all(cls, folder: Path) -> tuple[int, float]:
        """Rows that all steps together have encoded, and encode in a second now."""
        done, per_s = 0, 0.0
        for path in folder.glob(f"{cls.PREFIX}*"):
            try:
                count, rate = path.read_text(encoding="utf-8").split()
                done, per_s = done + int(count), per_s + float(rate)
            except (OSError, ValueError):
                continue
        return done, per_s
