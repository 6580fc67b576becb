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
from shoal.shard.codes import Codebook, OperatingPoint
from shoal.shard.kernel import faiss
from shoal.shard.kind import Filling, Kind, Trial
from shoal.shard.kind_sq8 import use_wide
from shoal.shard.merge import MISSING_SCORE
from shoal.shard.segment import CodedSegment, Found, MemoryUse, Vectors
from shoal.shard.segment_folder import FolderReader, FolderWriter
from shoal.shard.tombstones import Live
from shoal.shard.wide_code import WideCode

# Edges of a passage on the upper levels; twice as many on the lowest, which has all passages.
EDGES: Final = 16
# Passages that are kept in view while an edge is looked for: recall hardly grows beyond it.
_EF_CONSTRUCTION: Final = 100
EF_SEARCHES: Final = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
# What a passage in view costs, in nanoseconds: its edges are compared.
VIEW_NS: Final = 3_000.0
# A walk through a larger graph is longer by a step for each doubling: part of the view to add.
_GROWTH_PART: Final = 0.125
_GRAPH: Final = "graph.faiss"
_BLOCK_ROWS: Final = 8_192


@dataclass(frozen=True)
class Walk:
    """How far to look: passages that are kept in view."""

    ef_search: int


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
        ef_search = max(probe.ef_search, count)
        if live.selector is None:
            parameters = faiss.SearchParametersHNSW(efSearch=ef_search)
        else:
            parameters = faiss.SearchParametersHNSW(efSearch=ef_search, sel=live.selector)
        scores, positions = self.graph.search(queries, count, params=parameters)
        scores[positions < 0] = MISSING_SCORE
        return scores, positions

    def folded(self, live: Live, added: Vectors) -> GraphSegment:
        """Make a segment of the live vectors and then the added ones.

        Without dead the graph is copied and grows; else it is made again of the live codes.
        """
        if live.dead_count:
            graph = _graph_of(self.codebook, [self.wide[live.mask()]])
        else:
            graph = faiss.deserialize_index(faiss.serialize_index(self.graph))
        for start in range(0, len(added), _BLOCK_ROWS):
            graph.add(np.ascontiguousarray(added[start : start + _BLOCK_ROWS]))
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
    graph = _empty_graph(codebook.manifest.dimension, codebook.wide)
    for each in codes:
        for start in range(0, len(each), _BLOCK_ROWS):
            graph.add(codebook.wide.decode(each[start : start + _BLOCK_ROWS]))
    return graph


def _segment(codebook: Codebook, graph: Any) -> GraphSegment:
    storage = faiss.downcast_index(graph.storage)
    shape = int(graph.ntotal), int(graph.d)
    if graph.ntotal:
        codes = faiss.rev_swig_ptr(storage.codes.data(), shape[0] * shape[1])
    else:
        codes = np.empty(0, dtype=np.uint8)
    return GraphSegment(codebook, graph, codes.reshape(shape))
