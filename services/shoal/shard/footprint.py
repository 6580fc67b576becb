"""How many bytes does a passage take in an index of each kind?

Pure arithmetic, from how the kinds lay out what they hold; a test compares it with segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shoal.shard.kind_names import KindName

# What `shoal.shard.directory` holds of a passage: row, spans, hashes, and an id of about 15 bytes.
DIRECTORY_BYTES: Final = 90.0
_ID_BYTES: Final = 8
_FLOAT_BYTES: Final = 4
# Two numbers beside the bits of a code (FAISS's SignBitFactors).
_RABITQ_FACTORS_BYTES: Final = 8
# 32 edges of four bytes on the lowest level; a sixteenth of the passages has 16 on another one, and
# so on; eight bytes say where they begin, and four how many levels there are.
_LINKS_BYTES: Final = 4 * (32 + 16 / 15) + 8 + 4


@dataclass(frozen=True)
class Footprint:
    """Bytes of a passage."""

    # What finds candidates: read by every search.
    scanned: float
    # What ranks them: read for candidates alone, so that it may stay in mapped files. 0 if that is
    # what is scanned.
    refined: float
    # Positions of codes in lists, or edges of a graph.
    links: float
    # Document id, row id, span, slots.
    directory: float = DIRECTORY_BYTES

    @property
    def total(self) -> float:
        """All of them."""
        return self.hot + self.refined

    @property
    def hot(self) -> float:
        """What must be in memory for searches not to wait for a disk."""
        return self.scanned + self.links + self.directory


def pq_bytes(dimension: int) -> float:
    """Bytes of a product-quantised code: four bits for four numbers, or as few as divide them."""
    width = next(width for width in (4, 3, 2, 1) if dimension % width == 0)
    # Sub-quantisers are laid out in pairs.
    return float(-(-(dimension // width) // 2))


def exact(dimension: int) -> Footprint:
    """Of exact search."""
    return Footprint(_FLOAT_BYTES * dimension, 0.0, 0.0)


def footprint(kind: KindName, dimension: int) -> Footprint:
    """Of a kind that versions are built as. The wide code has one byte a number."""
    if kind == "ivf-sq8":
        return Footprint(dimension, 0.0, _ID_BYTES)
    if kind == "hnsw":
        return Footprint(dimension, 0.0, _LINKS_BYTES)
    if kind == "ivf-rabitq":
        code_bytes = -(-dimension // 8) + _RABITQ_FACTORS_BYTES
        return Footprint(code_bytes, dimension, _ID_BYTES)
    return Footprint(pq_bytes(dimension), dimension, _ID_BYTES)
