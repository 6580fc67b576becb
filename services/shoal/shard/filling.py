"""How is a segment made of vectors that come in pieces, or of parts of other segments?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from shoal.shard.codes import Codebook
from shoal.shard.kind import Filling
from shoal.shard.kinds import kind_of
from shoal.shard.segment import CodedSegment, ExactSegment, Segment, Vectors


def gathered(parts: Sequence[tuple[Segment, NDArray[np.bool_]]]) -> Segment:
    """Make a segment of the marked positions of others, one after another, without encoding.

    All are of one kind and of one codebook; there is at least one.
    """
    exact = [(each, mask) for each, mask in parts if isinstance(each, ExactSegment)]
    if exact:
        assert len(exact) == len(parts)
        return ExactSegment(np.concatenate([each.vectors[mask] for each, mask in exact]))
    coded = [(each, mask) for each, mask in parts if isinstance(each, CodedSegment)]
    assert len(coded) == len(parts)
    # The bytes of a codebook, not the object: each layout may have read its own.
    assert len({each.codebook.manifest.sha256 for each, _ in coded}) == 1
    return kind_of(coded[0][0].codebook).gathered(coded)


class SegmentBuilder:
    """Makes a segment of vectors that come in pieces; the number of all is known before."""

    def __init__(self, codebook: Codebook | None, dimension: int, capacity: int) -> None:
        """codebook: None for an exact segment."""
        self._capacity, self._count = capacity, 0
        self._filling: Filling | None = None
        if codebook is None:
            self._rows = np.empty((capacity, dimension), dtype=np.float32)
        else:
            self._filling = kind_of(codebook).filling(codebook, capacity)

    def add(self, vectors: Vectors) -> None:
        """Add vectors at the end."""
        end = self._count + len(vectors)
        if self._filling is None:
            self._rows[self._count : end] = vectors
        else:
            self._filling.add(vectors)
        self._count = end

    def finish(self) -> Segment:
        """Give the segment."""
        assert self._count == self._capacity
        return ExactSegment(self._rows) if self._filling is None else self._filling.finish()
