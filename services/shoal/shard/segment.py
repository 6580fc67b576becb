"""How are the vectors of a segment searched?

Two kinds: every vector compared, or inverted lists of product-quantised codes whose candidates are
scored again by a wider code. A segment never changes; a fold makes another one of it. Results are
positions in the segment; those that are not live are left out inside the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from shoal.shard.codes import CoarseAssignment, Codebook
from shoal.shard.kernel import faiss
from shoal.shard.lists import join, keep
from shoal.shard.merge import MISSING_SCORE
from shoal.shard.tombstones import Live
from shoal.v1.search_pb2 import SearchKind

Vectors = NDArray[np.float32]
# Scores [n, k] and positions [n, k]; -inf and -1 where there are fewer than k.
Found = tuple[NDArray[np.float32], NDArray[np.int64]]

# Rows that are copied at once in a fold.
_BLOCK_ROWS: Final = 16_384


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


class ListsOnGpu(Protocol):
    """What `shoal.shard.gpu` makes of a segment's lists."""

    def candidates(
        self, queries: Vectors, assignment: CoarseAssignment, count: int, live: Live
    ) -> Found:
        """Find candidates of each query."""
        ...


@dataclass(frozen=True)
class ExactSegment:
    """Vectors as they are."""

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


@dataclass(frozen=True)
class IvfPqSegment:
    """Codes in inverted lists, and a wide code of each vector."""

    codebook: Codebook
    # A FAISS IVF index whose ids are positions.
    lists: Any
    # By position.
    wide: NDArray[Any]
    # The lists on a GPU, which then are what is searched.
    gpu: ListsOnGpu | None = None

    @property
    def kind(self) -> SearchKind.ValueType:
        """How it is searched."""
        return SearchKind.SEARCH_KIND_IVF_PQ

    @property
    def count(self) -> int:
        """Vectors."""
        return len(self.wide)

    @property
    def memory_bytes(self) -> int:
        """Bytes that it takes: codes, ids of eight bytes, wide codes."""
        code_bytes: int = self.lists.code_size
        return self.count * (code_bytes + 8) + self.wide.nbytes

    def candidates(
        self, queries: Vectors, assignment: CoarseAssignment, count: int, live: Live
    ) -> Found:
        """Find candidates of each query by their codes; their scores are only good to choose."""
        assert live.count == self.count
        # A GPU's lists know no bitmaps: of what a filter leaves, they would find too little.
        if self.gpu is not None and not live.filtered:
            return self.gpu.candidates(queries, assignment, count, live)
        scores = np.full((len(queries), count), MISSING_SCORE, dtype=np.float32)
        positions = np.full((len(queries), count), -1, dtype=np.int64)
        if live.live_count:
            self.lists.search_preassigned_c(
                len(queries),
                faiss.swig_ptr(queries),
                count,
                faiss.swig_ptr(assignment.lists),
                faiss.swig_ptr(assignment.scores),
                faiss.swig_ptr(scores),
                faiss.swig_ptr(positions),
                False,
                _parameters(assignment.lists.shape[1], live),
            )
            scores[positions < 0] = MISSING_SCORE
        return scores, positions

    def folded(self, live: Live, added: Vectors) -> IvfPqSegment:
        """Make a segment of the live vectors and then the added ones. A second copy meanwhile."""
        lists = self.codebook.copy_of(self.lists)
        wide = self.wide
        if live.dead_count:
            mask = live.mask()
            keep(lists, mask)
            wide = wide[mask]
        if len(added):
            _add(lists, added, live.live_count)
            wide = np.concatenate([wide, self.codebook.wide.encode(added)])
        return IvfPqSegment(self.codebook, lists, wide)


def _parameters(nprobe: int, live: Live) -> Any:
    # Naming a selector, even None, takes ten times as long as not to.
    if live.selector is None:
        return faiss.SearchParametersIVF(nprobe=nprobe)
    return faiss.SearchParametersIVF(nprobe=nprobe, sel=live.selector)


def _add(lists: Any, vectors: Vectors, first: int) -> None:
    ids = np.arange(first, first + len(vectors), dtype=np.int64)
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        lists.add_with_ids(vectors[block], ids[block])


Segment = ExactSegment | IvfPqSegment


def gathered(parts: Sequence[tuple[Segment, NDArray[np.bool_]]]) -> Segment:
    """Make a segment of the marked positions of others, one after another, without encoding.

    All are of one kind and of one codebook; there is at least one.
    """
    first = parts[0][0]
    if isinstance(first, ExactSegment):
        rows = [
            segment.vectors[mask] for segment, mask in parts if isinstance(segment, type(first))
        ]
        assert len(rows) == len(parts)
        return ExactSegment(np.concatenate(rows))
    coded = [(segment, mask) for segment, mask in parts if isinstance(segment, type(first))]
    assert len(coded) == len(parts)
    # The bytes of a codebook, not the object: each layout may have read its own.
    assert len({segment.codebook.manifest.sha256 for segment, _ in coded}) == 1
    moved = []
    for segment, mask in coded:
        lists = first.codebook.copy_of(segment.lists)
        keep(lists, mask)
        moved.append(lists)
    join(moved[0], moved[1:])
    wide = np.empty((moved[0].ntotal, first.wide.shape[1]), first.wide.dtype)
    end = 0
    for segment, mask in coded:
        start, end = end, end + int(mask.sum())
        np.compress(mask, segment.wide, axis=0, out=wide[start:end])
    return IvfPqSegment(first.codebook, moved[0], wide)


class SegmentBuilder:
    """Makes a segment of vectors that come in pieces; the number of all is known before."""

    def __init__(self, codebook: Codebook | None, dimension: int, capacity: int) -> None:
        """codebook: None for an exact segment."""
        self._codebook = codebook
        self._count = 0
        if codebook is None:
            self._rows: NDArray[Any] = np.empty((capacity, dimension), dtype=np.float32)
            return
        self._rows = np.empty((capacity, dimension), dtype=codebook.wide.dtype)
        self._lists = codebook.new_lists()
        # FAISS adds large blocks faster than small ones.
        self._pending: list[Vectors] = []
        self._pending_count = 0

    def add(self, vectors: Vectors) -> None:
        """Add vectors at the end."""
        end = self._count + len(vectors)
        if self._codebook is None:
            self._rows[self._count : end] = vectors
        else:
            self._rows[self._count : end] = self._codebook.wide.encode(vectors)
            self._pending.append(vectors)
            self._pending_count += len(vectors)
            if self._pending_count >= _BLOCK_ROWS:
                self._flush(end)
        self._count = end

    def finish(self) -> Segment:
        """Give the segment."""
        assert self._count == len(self._rows)
        if self._codebook is None:
            return ExactSegment(self._rows)
        self._flush(self._count)
        return IvfPqSegment(self._codebook, self._lists, self._rows)

    def _flush(self, end: int) -> None:
        if self._pending:
            vectors = np.ascontiguousarray(np.concatenate(self._pending))
            _add(self._lists, vectors, end - len(vectors))
            self._pending, self._pending_count = [], 0
