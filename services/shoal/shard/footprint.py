"""How many bytes does a passage take in an index of each kind?

Pure arithmetic, from how the kinds lay out what they hold; a test compares it with segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shoal.shard.directory import RECORD
from shoal.shard.kind_names import KindName

# A document's id, of about 15 bytes, and where it begins.
_DOCUMENT_ID_BYTES: Final = 15 + 8
# The id's hash, and the place of the passage among all hashes.
_HASH_BYTES: Final = 8 + 4
# The row id, which the record has too.
_ROW_ID_BYTES: Final = 8
# What `shoal.shard.directory` holds of a passage; four bytes more where rows are not in the order
# of their ids, and where it expires.
DIRECTORY_BYTES: Final = float(RECORD.itemsize + _ROW_ID_BYTES + _HASH_BYTES + _DOCUMENT_ID_BYTES)
# What `shoal.shard.postings` holds of a term in a passage, of each passage, and of each term.
_POSTING_BYTES: Final = 4 + 1
_LENGTH_BYTES: Final = 4
_TERM_BYTES: Final = 4 + 8
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
        return self.scanned + self.refined + self.links + self.directory

    @property
    def hot(self) -> float:
        """What must be in memory for searches not to wait for a disk."""
        # Of records, only those of passages in answers are looked at.
        return self.scanned + self.links + self.directory - RECORD.itemsize


def pq_bytes(dimension: int) -> float:
    """Bytes of a product-quantised code: four bits for four numbers, or as few as divide them."""
    width = next(width for width in (4, 3, 2, 1) if dimension % width == 0)
    # Sub-quantisers are laid out in pairs.
    return float(-(-(dimension // width) // 2))


def postings_bytes(postings: float, terms: float = 0.0) -> float:
    """Bytes of the words of a passage, where an index has any.

    postings: different terms that it has. terms: of those, what is in no other passage.
    """
    return _LENGTH_BYTES + _POSTING_BYTES * postings + _TERM_BYTES * terms


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
