"""How are codes in inverted lists filled, searched, stored and moved?

All kinds with lists do it alike, and differ in the code: what FAISS keeps in a list, and whether
its scores are good enough to rank by.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from shoal.shard.centroids import place_centroids
from shoal.shard.codes import CoarseAssignment, Codebook, Manifest, OperatingPoint
from shoal.shard.kernel import faiss
from shoal.shard.kind import REFINED_NS, Filling, Kind, Trial
from shoal.shard.lists import copy_lists, map_lists, sizes_of, write_lists
from shoal.shard.matching_lists import chosen_lists, expected_lists, weighed
from shoal.shard.merge import MISSING_SCORE
from shoal.shard.pace import in_turns, pause
from shoal.shard.segment import CodedSegment, Found, MemoryUse, Vectors, WideRows
from shoal.shard.segment_folder import FolderReader, FolderWriter
from shoal.shard.survivors import Part
from shoal.shard.tombstones import Live
from shoal.shard.wide_code import WideCode, WideKind

NPROBES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
_ID_BYTES: Final = 8
_LISTS: Final = "lists.bin"
# Rows that are added at once: FAISS adds large blocks faster than small ones.
_BLOCK_ROWS: Final = 16_384
# Rows that are copied at once: some milliseconds.
_PIECE_ROWS: Final = 4096
# Vectors that are encoded at once beside searches: 50 ms with 4,096 lists of 384 numbers.
_PIECE_ADDED: Final = 1024
# What looking at a list costs on one core, in nanoseconds, measured on AVX-512.
_LIST_NS: Final = 300.0


class ListsOnGpu(Protocol):
    """What `shoal.shard.gpu` makes of a segment's lists."""

    # Lists that a query may look into at most.
    max_nprobe: int

    def candidates(
        self, queries: Vectors, assignment: CoarseAssignment, count: int, live: Live
    ) -> Found:
        """Find candidates of each query."""
        ...


@dataclass(frozen=True)
class ListSegment(CodedSegment):
    """Codes in inverted lists, and a wide code of each vector."""

    fold_part: ClassVar[int] = 64

    of: ListKind
    codebook: Codebook
    # A FAISS IVF index whose ids are positions.
    lists: Any
    # By position.
    wide: WideRows
    # The lists on a GPU, which then are what is searched.
    gpu: ListsOnGpu | None = None

    @property
    def memory(self) -> MemoryUse:
        """Bytes of codes, the wide ones too unless the lists hold them, and of ids."""
        wide_bytes = self.wide.nbytes if isinstance(self.wide, np.ndarray) else 0
        codes = self.count * int(self.lists.code_size)
        return MemoryUse(codes=codes + wide_bytes, ids=self.count * _ID_BYTES)

    def candidates(
        self, queries: Vectors, probe: CoarseAssignment, count: int, live: Live
    ) -> Found:
        """Find candidates of each query by the codes in its lists."""
        assert live.count == self.count
        # A GPU's lists know no bitmaps: of what a filter leaves, they would find too little.
        gpu = None if live.filtered else self.gpu
        if gpu is not None and probe.lists.shape[1] <= gpu.max_nprobe:
            return gpu.candidates(queries, probe, count, live)
        scores = np.full((len(queries), count), MISSING_SCORE, dtype=np.float32)
        positions = np.full((len(queries), count), -1, dtype=np.int64)
        if live.live_count:
            self.lists.search_preassigned_c(
                len(queries),
                faiss.swig_ptr(queries),
                count,
                faiss.swig_ptr(probe.lists),
                faiss.swig_ptr(probe.scores),
                faiss.swig_ptr(scores),
                faiss.swig_ptr(positions),
                False,
                _parameters(probe.lists.shape[1], live),
            )
            scores[positions < 0] = MISSING_SCORE
        return scores, positions

    def folded(self, live: Live, added: Vectors) -> ListSegment:
        """Make a segment of the live vectors and then the added ones. A second copy meanwhile."""
        mask = live.mask() if live.dead_count else None
        lists = self.of.copy_of(self.codebook, [(self.lists, mask)])
        if len(added):
            _add(lists, added, live.live_count, _PIECE_ADDED)
        return self.of.segment(self.codebook, lists, self.of.wide_folded(self, mask, added))


def _parameters(nprobe: int, live: Live) -> Any:
    # Naming a selector, even None, takes ten times as long as not to.
    if live.selector is None:
        return faiss.SearchParametersIVF(nprobe=nprobe)
    return faiss.SearchParametersIVF(nprobe=nprobe, sel=live.selector)


def _add(lists: Any, vectors: Vectors, first: int, at_once: int = _BLOCK_ROWS) -> None:
    ids = np.arange(first, first + len(vectors), dtype=np.int64)
    for start in range(0, len(vectors), at_once):
        block = slice(start, start + at_once)
        lists.add_with_ids(vectors[block], ids[block])
        pause()


class ListKind(Kind):
    """Codes in inverted lists. The wide codes are held beside the lists, by position."""

    has_lists = True
    measured_at_most = 1 << 62
    refines = True
    wides: ClassVar[tuple[WideKind, ...]] = ("sq8", "fp16")
    refine_factors: ClassVar[tuple[int, ...]] = (
        *(2, 3, 4, 6, 8, 12, 16, 24, 32),
        *(48, 64, 96, 128, 192, 256),
    )
    # What comparing a code costs on one core, in nanoseconds.
    code_ns: ClassVar[float]

    @abstractmethod
    def empty(self, template: Any, quantizer: Any) -> Any:
        """Lists like the template's, without vectors, that share its quantizer."""

    def train(self, sample: Vectors, list_count: int, wide: WideCode, seed: int) -> Any:
        """Train the coarse quantizer and the code."""
        del wide
        dimension = sample.shape[1]
        factory = self.factory(dimension, list_count)
        template = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        place_centroids(template, sample, seed)
        template.train(sample)
        return template

    def trials(self, list_count: int, count: int) -> Iterator[Trial]:
        """Every number of lists, up to all of them."""
        for nprobe in [*(each for each in NPROBES if each < list_count), list_count]:
            cost_ns = nprobe * (_LIST_NS + count / list_count * self.code_ns)
            yield Trial(cost_ns, nprobe=nprobe)

    def tried(
        self, index: Any, queries: Vectors, k: int, trial: Trial
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Search so many lists."""
        parameters = faiss.SearchParametersIVF(nprobe=trial.nprobe)
        scores, rows = index.search(queries, k, params=parameters)
        return scores, rows

    def probe(
        self, codebook: Codebook, queries: Vectors, point: OperatingPoint, growth: float
    ) -> CoarseAssignment:
        """Choose the lists."""
        del growth
        return codebook.assign(queries, point.nprobe)

    def narrowed_ns(self, manifest: Manifest, top_k: int, parts: Sequence[Part]) -> float:
        """Lists, their codes, and the candidates that are scored again."""
        lists = expected_lists(manifest, top_k, parts)
        codes = lists / manifest.list_count * sum(part.live.count for part in parts)
        count = manifest.point_for(top_k).candidate_count()
        refined = weighed(count) if self.refines else 0
        return lists * len(parts) * _LIST_NS + codes * self.code_ns + refined * REFINED_NS

    def narrowed_probe(
        self,
        codebook: Codebook,
        manifest: Manifest,
        queries: Vectors,
        top_k: int,
        growth: float,
        parts: Sequence[Part],
    ) -> tuple[CoarseAssignment, int]:
        """Choose the lists by how many matches each of them has."""
        count = manifest.point_for(top_k).candidate_count(growth)
        lists = chosen_lists(codebook, manifest, queries, top_k, parts)
        return lists, weighed(count) if self.refines else count

    def new_lists(self, codebook: Codebook) -> Any:
        """Empty lists to be filled.

        They use the codebook's quantizer, as one for each shard would be 6 MB at 4,096 lists of 384
        numbers: keep the codebook as long as them.
        """
        return self.empty(codebook.template, codebook.quantizer)

    def copy_of(
        self, codebook: Codebook, parts: Sequence[tuple[Any, NDArray[np.bool_] | None]]
    ) -> Any:
        """A copy, in memory, of the marked vectors of lists, mapped ones too. None marks all."""
        copy = self.new_lists(codebook)
        for lists, mask in parts:
            copy_lists(lists, copy, mask)
        return copy

    def segment(self, codebook: Codebook, lists: Any, wide: Any) -> ListSegment:
        """Make a segment of filled lists and their wide codes."""
        return ListSegment(self, codebook, lists, wide)

    def wide_rows(self, codebook: Codebook, capacity: int) -> NDArray[Any] | None:
        """Room for wide codes beside the lists; None if the lists hold them."""
        dimension = codebook.manifest.dimension
        return np.empty((capacity, dimension), dtype=codebook.wide.dtype)

    def wide_folded(self, old: ListSegment, mask: NDArray[np.bool_] | None, added: Vectors) -> Any:
        """Wide codes of the marked positions and then of added vectors. mask: None marks all."""
        if not isinstance(old.wide, np.ndarray):
            wide: Any = old.wide if mask is None else old.wide[mask]
            return np.concatenate([wide, old.codebook.wide.encode(added)]) if len(added) else wide
        if mask is None and not len(added):
            return old.wide
        kept = np.ones(len(old.wide), np.bool_) if mask is None else mask
        return _rows_of([(old.wide, kept)], old.codebook.wide.encode(added))

    def wide_gathered(self, parts: Sequence[tuple[ListSegment, NDArray[np.bool_]]]) -> Any:
        """Wide codes of the marked positions of segments."""
        rows = []
        for segment, mask in parts:
            assert isinstance(segment.wide, np.ndarray)
            rows.append((segment.wide, mask))
        return _rows_of(rows)

    def filling(self, codebook: Codebook, capacity: int) -> Filling:
        """Begin a segment."""
        return _ListFilling(self, codebook, capacity)

    def gathered(self, parts: Sequence[tuple[ListSegment, NDArray[np.bool_]]]) -> ListSegment:
        """Copy the codes of what is marked."""
        codebook = parts[0][0].codebook
        lists = self.copy_of(codebook, [(segment.lists, mask) for segment, mask in parts])
        return self.segment(codebook, lists, self.wide_gathered(parts))

    def write(self, segment: ListSegment, writer: FolderWriter) -> None:
        """Write packed codes and ids, and the wide codes unless the lists hold them."""
        with writer.file(_LISTS) as file:
            sizes = write_lists(segment.lists, file)
        writer.array("list_sizes", sizes.astype(np.uint32))
        if isinstance(segment.wide, np.ndarray):
            writer.array("wide", segment.wide)

    def read(self, reader: FolderReader, codebook: Codebook) -> ListSegment:
        """Map the lists, or copy them into memory."""
        lists = self.new_lists(codebook)
        map_lists(lists, reader.path(_LISTS), reader.array("list_sizes").astype(np.int64))
        if not reader.mapped:
            lists = self.copy_of(codebook, [(lists, None)])
        return self.segment(codebook, lists, self.wide_read(reader))

    def wide_read(self, reader: FolderReader) -> Any:
        """Read the wide codes; None if the lists hold them."""
        return reader.array("wide")


def _rows_of(
    parts: Sequence[tuple[NDArray[Any], NDArray[np.bool_]]], added: NDArray[Any] | None = None
) -> NDArray[Any]:
    """The marked rows of arrays, and then further ones: new memory, filled piece by piece."""
    first = parts[0][0]
    count = sum(int(mask.sum()) for _, mask in parts) + (0 if added is None else len(added))
    rows = np.empty((count, *first.shape[1:]), first.dtype)
    end = 0
    for array, mask in parts:
        for piece in range(0, len(array), _PIECE_ROWS):
            chosen = mask[piece : piece + _PIECE_ROWS]
            start, end = end, end + int(chosen.sum())
            np.compress(chosen, array[piece : piece + _PIECE_ROWS], axis=0, out=rows[start:end])
            pause()
    if added is not None:
        rows[end:] = added
    return rows


class _ListFilling:
    """Lists that are being filled."""

    def __init__(self, kind: ListKind, codebook: Codebook, capacity: int) -> None:
        self._kind, self._codebook = kind, codebook
        self._count = 0
        self._rows = kind.wide_rows(codebook, capacity)
        self._lists = kind.new_lists(codebook)
        self._pending: list[Vectors] = []
        self._pending_count = 0

    def add(self, vectors: Vectors) -> None:
        """Add vectors at the end."""
        end = self._count + len(vectors)
        if self._rows is not None:
            self._rows[self._count : end] = self._codebook.wide.encode(vectors)
        self._pending.append(vectors)
        self._pending_count += len(vectors)
        if self._pending_count >= _BLOCK_ROWS:
            self._flush(end)
        self._count = end

    def finish(self) -> ListSegment:
        """Give the segment."""
        self._flush(self._count)
        return self._kind.segment(self._codebook, self._lists, self._rows)

    def _flush(self, end: int) -> None:
        if self._pending:
            vectors = np.ascontiguousarray(np.concatenate(self._pending))
            at_once = _PIECE_ADDED if in_turns() else _BLOCK_ROWS
            _add(self._lists, vectors, end - len(vectors), at_once)
            self._pending, self._pending_count = [], 0


class CodesInLists:
    """Wide codes that are the lists' own, read by position.

    Where each position's code lies in memory is found out when it is first asked for, and holds as
    long as the lists, which never change: eight bytes a vector. Then codes are gathered by their
    addresses, in one go: list by list, a handful of positions in each of thousands of lists would
    take microseconds each.
    """

    def __init__(self, lists: Any) -> None:
        """lists: filled FAISS lists of one byte a number, whose ids are positions."""
        self._lists = lists
        self.shape: tuple[int, int] = int(lists.ntotal), int(lists.d)
        """Vectors, and numbers in each."""
        self._codes: _Memory | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a code's numbers."""
        return np.dtype(np.uint8)

    def __getitem__(self, positions: Any) -> NDArray[np.uint8]:
        """Codes of positions, of any shape, or of those marked by a mask."""
        if isinstance(positions, slice):
            positions = np.arange(self.shape[0])[positions]
        at = np.asarray(positions)
        if at.dtype == np.bool_:
            at = np.flatnonzero(at)
        shape = (*at.shape, self.shape[1])
        if at.size == 0:
            return np.empty(shape, dtype=np.uint8)
        if self._codes is None:
            self._codes = _Memory(self._lists, self.shape)
        return self._codes.take(at.reshape(-1)).reshape(shape)

    def take(self, positions: Any, axis: int = 0, out: None = None, mode: str = "clip") -> Any:
        """As an array's: positions that are out of range are clipped."""
        assert (axis, out, mode) == (0, None, "clip")
        return self[np.clip(positions, 0, max(0, self.shape[0] - 1))]


class _Span:
    """What NumPy reads an array's place from."""

    __array_interface__: dict[str, Any]


class _Memory:
    """All codes of filled lists, as rows of the memory between the first and the last of them.

    Of that memory only rows that hold a code are looked at: what lies between is not the lists'.
    """

    def __init__(self, lists: Any, shape: tuple[int, int]) -> None:
        count, dimension = shape
        inverted, sizes = lists.invlists, sizes_of(lists)
        addresses = np.empty(count, dtype=np.int64)
        for number in np.flatnonzero(sizes).tolist():
            size = int(sizes[number])
            ids = faiss.rev_swig_ptr(inverted.get_ids(number), size)
            codes = faiss.rev_swig_ptr(inverted.get_codes(number), size * dimension)
            addresses[ids] = codes.ctypes.data + dimension * np.arange(size)
        first = int(addresses.min())
        self._rows = addresses - first
        span = _Span()
        # A row begins at every byte.
        span.__array_interface__ = {
            "version": 3,
            "data": (first, True),
            "shape": (int(self._rows.max()) + 1,),
            "strides": (1,),
            "typestr": f"|V{dimension}",
        }
        self._memory: NDArray[np.void] = np.asarray(span)

    def take(self, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Codes of positions, flat."""
        return self._memory[self._rows[positions]].view(np.uint8)
