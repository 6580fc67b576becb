"""How are the vectors of a segment searched?

Every vector is compared, or codes are searched: lists or a graph of them, as `shoal.shard.kinds`
has them. A segment never changes; a fold makes another one of it. Results are positions in the
segment; those that are not live are left out inside the search.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from shoal.shard.codes import Codebook
from shoal.shard.kernel import faiss
from shoal.shard.kind_names import number_of
from shoal.shard.merge import MISSING_SCORE
from shoal.shard.tombstones import Live
from shoal.v1.search_pb2 import SearchKind

Vectors = NDArray[np.float32]
# Scores [n, k] and positions [n, k]; -inf and -1 where there are fewer than k.
Found = tuple[NDArray[np.float32], NDArray[np.int64]]


def search_exact(vectors: Vectors, queries: Vectors, k: int, live: Live) -> Found:
    """Compare queries with all live vectors. Looks into `vectors`, which must be contiguous."""
    count, dimension = vectors.shape
    assert live.count == count
    assert vectors.flags.c_contiguous
    assert queries.flags.c_contiguous
    k = min(k, live.live_count)
    scores = np.empty((len(queries), k), dtype=np.float32)
    positions = np.empty((len(queries), k), dtype=np.int64)
    if k:
        faiss.knn_inner_product(
            faiss.swig_ptr(queries),
            faiss.swig_ptr(vectors),
            dimension,
            len(queries),
            count,
            k,
            faiss.swig_ptr(scores),
            faiss.swig_ptr(positions),
            live.selector,
        )
        scores[positions < 0] = MISSING_SCORE
    return scores, positions


@dataclass(frozen=True)
class MemoryUse:
    """Bytes that a segment takes, by what for."""

    # What a search compares: vectors or codes, the wide ones too.
    codes: int
    # Position of each code of a list, eight bytes each.
    ids: int = 0
    # Edges of a graph.
    links: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.codes + self.ids + self.links


class WideRows(Protocol):
    """Wide codes by position: an array, or what reads them from where they are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Vectors, and numbers in each."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a code's numbers."""
        ...

    def __getitem__(self, positions: Any, /) -> NDArray[Any]:
        """Codes of positions, of any shape: [..., dimension]."""
        ...

    def take(self, positions: Any, /, axis: Any = ..., out: None = None, mode: Any = ...) -> Any:
        """As an array's: rows of positions, [n, dimension]."""
        ...


class CodedSegment(ABC):
    """A segment that is searched by its codes. Each kind has its own."""

    # Part of a segment that the tail reaches before it is folded in: a fold costs a copy.
    fold_part: ClassVar[int]

    codebook: Codebook
    # By position: what candidates, or whatever positions, are scored by (`Codebook.wide`).
    wide: Any

    @property
    def kind(self) -> SearchKind.ValueType:
        """How it is searched."""
        return number_of(self.codebook.manifest.kind)

    @property
    def count(self) -> int:
        """Vectors."""
        return int(self.wide.shape[0])

    @property
    def memory_bytes(self) -> int:
        """Bytes that it takes, the mapped ones too."""
        return self.memory.total

    @property
    @abstractmethod
    def memory(self) -> MemoryUse:
        """Bytes that it takes, by what for."""

    @abstractmethod
    def candidates(self, queries: Vectors, probe: Any, count: int, live: Live) -> Found:
        """Find candidates of each query where `probe`, of the segment's kind, says to look.

        Their scores are the final ones if the kind says that it does not refine; else they are only
        good to choose by.
        """

    @abstractmethod
    def folded(self, live: Live, added: Vectors) -> CodedSegment:
        """Make a segment of the live vectors and then the added ones. A second copy meanwhile."""


@dataclass(frozen=True)
class ExactSegment:
    """Vectors as they are."""

    # As quick to search in the tail as in the main segment.
    fold_part: ClassVar[int] = 4

    vectors: Vectors

    @property
    def kind(self) -> SearchKind.ValueType:
        """How it is searched."""
        return SearchKind.SEARCH_KIND_EXACT

    @property
    def count(self) -> int:
        """Vectors."""
        return len(self.vectors)

    @property
    def memory(self) -> MemoryUse:
        """Bytes that it takes, by what for."""
        return MemoryUse(self.vectors.nbytes)

    @property
    def memory_bytes(self) -> int:
        """Bytes that it takes."""
        return self.vectors.nbytes

    def search(self, queries: Vectors, k: int, live: Live) -> Found:
        """Find the best k of each query."""
        return search_exact(self.vectors, queries, k, live)

    def folded(self, live: Live, added: Vectors) -> ExactSegment:
        """Make a segment of the live vectors and then the added ones. A second copy meanwhile."""
        kept = live.live_count
        vectors = np.empty((kept + len(added), self.vectors.shape[1]), dtype=np.float32)
        if live.dead_count:
            np.compress(live.mask(), self.vectors, axis=0, out=vectors[:kept])
        else:
            vectors[:kept] = self.vectors
        vectors[kept:] = added
        return ExactSegment(vectors)


Segment = ExactSegment | CodedSegment
