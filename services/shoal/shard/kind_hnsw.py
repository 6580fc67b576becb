"""HNSW: how is a graph of neighbours over codes of one byte a number searched?

The code is the wide code itself, so nothing is stored twice and nothing is scored again. A graph
answers a lone query with few comparisons and needs no training, but it takes long to make and
cannot be taken apart: where codes of lists are moved, a graph is made again of the stored codes,
when its dead are folded out and when the number of shards changes. No text is encoded for that, and
nothing trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from shoal.shard.codes import Codebook, Manifest, OperatingPoint
from shoal.shard.kernel import faiss
from shoal.shard.kind import Filling, Kind, Trial
from shoal.shard.kind_sq8 import use_wide
from shoal.shard.merge import MISSING_SCORE
from shoal.shard.pace import in_turns, pause
from shoal.shard.segment import CodedSegment, Found, MemoryUse, Vectors
from shoal.shard.segment_folder import FolderReader, FolderWriter
from shoal.shard.survivors import KNOWN, Part, compare, depth_of
from shoal.shard.tombstones import Live
from shoal.shard.wide_code import WideCode

# Edges of a passage on the upper levels; twice as many on the lowest, which has all passages.
EDGES: Final = 16
# Passages that are kept in view while an edge is looked for: recall hardly grows beyond it.
_EF_CONSTRUCTION: Final = 100
EF_SEARCHES: Final = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
# What a passage in view costs, in nanoseconds: its edges are compared.
VIEW_NS: Final = 3_000.0
# And for each other one in view, as FAISS looks through all of them for the next: measured 555 ns
# each at 500 in view, 790 at 2,000 and 2,497 at 6,000, with 64 numbers.
_BROAD_NS: Final = 0.4
# Passages that a walk may see at most: beyond, comparing with all that matches is cheaper mostly.
_MAX_BREADTH: Final = 4_000
# A walk through a larger graph is longer by a step for each doubling: part of the view to add.
_GROWTH_PART: Final = 0.125
_GRAPH: Final = "graph.faiss"
_BLOCK_ROWS: Final = 8_192
# Beside searches: a tenth of a second.
_PIECE_ROWS: Final = 256
# Queries whose walks are kept at once: each takes 12 bytes for a passage that it sees.
_BLOCK_QUERIES: Final = 64


@dataclass(frozen=True)
class Walk:
    """How far to look: the walk's breadth, which is the passages that are kept in view."""

    ef_search: int
    # Matches that a query must find to be sure of the best of them; 0 if there is no filter.
    known: int = 0


@dataclass(frozen=True)
class GraphSegment(CodedSegment):
    """A graph, and the codes that are its nodes."""

    # A fold makes most of the graph again, and the tail is searched exactly meanwhile.
    fold_part: ClassVar[int] = 8

    codebook: Codebook
    # A FAISS IndexHNSWSQ whose rows are positions.
    graph: Any
    # By position: a look into the graph's own codes.
    wide: NDArray[np.uint8]

    @property
    def memory(self) -> MemoryUse:
        """Bytes of codes, and of edges with where they begin and how many levels there are."""
        hnsw = self.graph.hnsw
        links = 4 * hnsw.neighbors.size() + 8 * hnsw.offsets.size() + 4 * hnsw.levels.size()
        return MemoryUse(codes=self.wide.nbytes, links=links)

    def candidates(self, queries: Vectors, probe: Walk, count: int, live: Live) -> Found:
        """Walk to the neighbours of each query. The dead are walked through, and not returned."""
        assert live.count == self.count
        if not live.live_count:
            empty = np.full((len(queries), count), -1, dtype=np.int64)
            return np.full(empty.shape, MISSING_SCORE, dtype=np.float32), empty
        if probe.known:
            blocks = [
                self._matching(queries[first : first + _BLOCK_QUERIES], probe, count, live)
                for first in range(0, len(queries), _BLOCK_QUERIES)
            ]
            return (
                np.concatenate([scores for scores, _ in blocks]),
                np.concatenate([positions for _, positions in blocks]),
            )
        ef_search = max(probe.ef_search, count)
        if live.selector is None:
            parameters = faiss.SearchParametersHNSW(efSearch=ef_search)
        else:
            parameters = faiss.SearchParametersHNSW(efSearch=ef_search, sel=live.selector)
        scores, positions = self.graph.search(queries, count, params=parameters)
        scores[positions < 0] = MISSING_SCORE
        return scores, positions

    def _matching(self, queries: Vectors, probe: Walk, count: int, live: Live) -> Found:
        """Walk to the neighbours of each query, whatever they are, and keep what matches.

        How many match around a query is not the filter's share of the whole: filters go with
        topics, and so do queries. So a walk is believed only if enough of what it saw matches; else
        it is made again with twice the breadth, and at last the query is compared with all matches.
        """
        scores = np.full((len(queries), count), MISSING_SCORE, dtype=np.float32)
        positions = np.full((len(queries), count), -1, dtype=np.int64)
        left = np.arange(len(queries))
        breadth = max(probe.ef_search, probe.known)
        enough = min(probe.known, live.live_count)
        while len(left) and breadth < min(self.count, _MAX_BREADTH + 1):
            parameters = faiss.SearchParametersHNSW(efSearch=breadth)
            near_scores, near = self.graph.search(queries[left], breadth, params=parameters)
            hits = near >= 0
            hits[hits] = live.contains(near[hits])
            near_scores[~hits], near[~hits] = MISSING_SCORE, -1
            known = hits.sum(axis=1) >= enough
            columns = np.argsort(~hits[known], axis=1, kind="stable")[:, :count]
            width = columns.shape[1]
            scores[left[known], :width] = np.take_along_axis(near_scores[known], columns, axis=1)
            positions[left[known], :width] = np.take_along_axis(near[known], columns, axis=1)
            left, breadth = left[~known], 2 * breadth
        if len(left):
            survivors = np.flatnonzero(live.mask())
            found, places = compare(self.codebook, self.wide, survivors, queries[left], count)
            scores[left, : found.shape[1]], positions[left, : found.shape[1]] = found, places
        return scores, positions

    def folded(self, live: Live, added: Vectors) -> GraphSegment:
        """Make a segment of the live vectors and then the added ones.

        Without dead the graph is copied and grows; else it is made again of the live codes.
        """
        if live.dead_count:
            graph = _graph_of(self.codebook, [self.wide[live.mask()]])
        else:
            graph = faiss.deserialize_index(faiss.serialize_index(self.graph))
        at_once = _at_once()
        for start in range(0, len(added), at_once):
            graph.add(np.ascontiguousarray(added[start : start + at_once]))
            pause()
        return _segment(self.codebook, graph)


class HnswKind(Kind):
    """A graph over the wide code."""

    name = "hnsw"
    refines = False
    wides = ("sq8",)
    refine_factors = (1,)
    has_lists = False
    # A graph of as many takes a quarter of a minute; a larger one has its view widened.
    measured_at_most = 60_000

    def factory(self, dimension: int, list_count: int) -> str:
        """Name it in FAISS's words."""
        del dimension, list_count
        return f"HNSW{EDGES}_SQ8"

    def train(self, sample: Vectors, list_count: int, wide: WideCode, seed: int) -> Any:
        """There is nothing to train: the code is the wide one."""
        del list_count, seed
        return _empty_graph(sample.shape[1], wide)

    def trials(self, list_count: int, count: int) -> Iterator[Trial]:
        """Every width of view."""
        del list_count
        for ef_search in EF_SEARCHES:
            yield Trial(VIEW_NS * ef_search + 1_000 * math.log2(count), ef_search=ef_search)

    def wanting(self, trial: Trial, top_k: int) -> Trial:
        """Keep no less in view than is wanted: FAISS returns no more than that."""
        ef_search = max(trial.ef_search, top_k)
        more_ns = VIEW_NS * (ef_search - trial.ef_search)
        return replace(trial, cost_ns=trial.cost_ns + more_ns, ef_search=ef_search)

    def tried(
        self, index: Any, queries: Vectors, k: int, trial: Trial
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Walk with that view."""
        scores, rows = index.search(
            queries, k, params=faiss.SearchParametersHNSW(efSearch=trial.ef_search)
        )
        return scores, rows

    def probe(
        self, codebook: Codebook, queries: Vectors, point: OperatingPoint, growth: float
    ) -> Walk:
        """Look as far as was measured, and further in a larger index."""
        del codebook, queries
        wider = 1 + _GROWTH_PART * math.log2(max(1.0, growth))
        return Walk(math.ceil(point.ef_search * wider))

    def narrowed_ns(self, manifest: Manifest, top_k: int, parts: Sequence[Part]) -> float:
        """What is walked in each shard; more than a walk may see is never cheap."""
        breadth = _breadth(manifest, top_k, parts)
        if breadth > _MAX_BREADTH:
            return math.inf
        return len(parts) * breadth * (VIEW_NS + _BROAD_NS * breadth)

    def narrowed_probe(
        self,
        codebook: Codebook,
        manifest: Manifest,
        queries: Vectors,
        top_k: int,
        growth: float,
        parts: Sequence[Part],
    ) -> tuple[Walk, int]:
        """Begin with as much more in view as the filter is selective."""
        point = manifest.point_for(top_k)
        broader = point.model_copy(update={"ef_search": _breadth(manifest, top_k, parts)})
        walk = self.probe(codebook, queries, broader, growth)
        return replace(walk, known=KNOWN * top_k), point.candidate_count(growth)

    def filling(self, codebook: Codebook, capacity: int) -> Filling:
        """Begin a segment."""
        del capacity
        return _GraphFilling(codebook)

    def gathered(self, parts: Sequence[tuple[GraphSegment, NDArray[np.bool_]]]) -> GraphSegment:
        """Make a graph of the stored codes."""
        codebook = parts[0][0].codebook
        graph = _graph_of(codebook, [segment.wide[mask] for segment, mask in parts])
        return _segment(codebook, graph)

    def write(self, segment: GraphSegment, writer: FolderWriter) -> None:
        """Write the graph with its codes."""
        with writer.file(_GRAPH) as file:
            file.write(faiss.serialize_index(segment.graph))

    def read(self, reader: FolderReader, codebook: Codebook) -> GraphSegment:
        """Map the graph, or read it into memory."""
        flags = faiss.IO_FLAG_MMAP_IFC if reader.mapped else 0
        graph = faiss.read_index(str(reader.path(_GRAPH)), flags)
        if graph.d != codebook.manifest.dimension:
            raise ValueError(f"{reader.path(_GRAPH)} is for {graph.d} numbers a vector")
        return _segment(codebook, graph)


def _breadth(manifest: Manifest, top_k: int, parts: Sequence[Part]) -> int:
    """Passages to keep in view so that as many match as are in view without a filter."""
    in_view = max(manifest.point_for(top_k).ef_search, KNOWN * top_k)
    return math.ceil(in_view * depth_of(1, parts))


class _GraphFilling:
    """A graph that grows."""

    def __init__(self, codebook: Codebook) -> None:
        self._codebook = codebook
        self._graph = _empty_graph(codebook.manifest.dimension, codebook.wide)

    def add(self, vectors: Vectors) -> None:
        """Add vectors at the end."""
        self._graph.add(np.ascontiguousarray(vectors))

    def finish(self) -> GraphSegment:
        """Give the segment."""
        return _segment(self._codebook, self._graph)


def _empty_graph(dimension: int, wide: WideCode) -> Any:
    graph = faiss.IndexHNSWSQ(
        dimension, faiss.ScalarQuantizer.QT_8bit, EDGES, faiss.METRIC_INNER_PRODUCT
    )
    graph.hnsw.efConstruction = _EF_CONSTRUCTION
    storage = faiss.downcast_index(graph.storage)
    use_wide(storage.sq, wide)
    graph.is_trained = storage.is_trained = True
    return graph


def _graph_of(codebook: Codebook, codes: Sequence[NDArray[np.uint8]]) -> Any:
    """Make a graph of codes: read back, they are encoded to the same codes."""
    graph, at_once = _empty_graph(codebook.manifest.dimension, codebook.wide), _at_once()
    for each in codes:
        for start in range(0, len(each), at_once):
            graph.add(codebook.wide.decode(each[start : start + at_once]))
            pause()
    return graph


def _at_once() -> int:
    return _PIECE_ROWS if in_turns() else _BLOCK_ROWS


def _segment(codebook: Codebook, graph: Any) -> GraphSegment:
    storage = faiss.downcast_index(graph.storage)
    shape = int(graph.ntotal), int(graph.d)
    if graph.ntotal:
        codes = faiss.rev_swig_ptr(storage.codes.data(), shape[0] * shape[1])
    else:
        codes = np.empty(0, dtype=np.uint8)
    return GraphSegment(codebook, graph, codes.reshape(shape))
