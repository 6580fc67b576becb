"""How are codes searched for what a filter leaves?

Recall must not depend on the filter. A filter that lets one in a hundred through makes the ten
nearest that match as rare as the thousand nearest of all, so that as many lists must be looked into
as for a thousand. How many do match around a query is not the filter's share of the whole: filters
go with topics, and so do queries. Therefore it is counted: how many matches each list has is known,
and along the lists in the order of their nearness the least density of matches so far says how
deep the search must go; it ends where it has gone so deep. A query that lies where next to nothing
matches never gets there: it looks into all lists that have a match. And more candidates are scored
again: what is far is all about as far, so that codes tell less of it apart.

A graph has no lists to count in: its walk keeps as much more in view as the filter is selective,
and a query that finds too few that way is compared with all that matches.

Where few match, comparing the query with all of those is cheaper, and exact up to the wide code.
What is cheaper is decided by counting nanoseconds, with the prices that search parameters are
chosen by (`shoal.shard.codebook`): looking into a list, scanning a code, reading a survivor's wide
code once for the queries of a block, and multiplying it with each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from shoal.shard.codes import MAX_CANDIDATES, CoarseAssignment, Codebook, Manifest
from shoal.shard.field_columns import FieldColumns, Matches
from shoal.shard.kernel import faiss
from shoal.shard.kind import Kind
from shoal.shard.kind_hnsw import VIEW_NS, Walk
from shoal.shard.kind_lists import ListKind
from shoal.shard.lists import sizes_of
from shoal.shard.merge import likeliest
from shoal.shard.segment import CodedSegment, Found, search_exact
from shoal.shard.tombstones import Live

# Measured at 384 numbers on one core.
_LIST_NS: Final = 300.0
_REFINED_NS: Final = 150.0
_READ_NS: Final = 60.0
_COMPARED_NS: Final = 25.0

# So many times as many lists as are expected to be needed are ranked for each query.
_MARGIN: Final = 4
# So many times as many lists as the measured ones: they were measured with queries from among the
# vectors, and a query need not be from among those that match. A list costs little.
_WIDER: Final = 3
# Matches, for each one wanted, from which their density is known well enough to go by.
_KNOWN: Final = 2
# So many times the candidates, measured with the nearest of all: what matches may be farther.
_FARTHER: Final = 4
_BLOCK_ROWS: Final = 4096


@dataclass(frozen=True)
class Part:
    """What a filter leaves of one shard's codes."""

    segment: CodedSegment
    fields: FieldColumns
    matches: Matches
    live: Live

    @property
    def lists(self) -> Any:
        """Of a kind that has lists."""
        return getattr(self.segment, "lists")  # noqa: B009  # of a ListSegment, as its kind says

    def sizes(self) -> NDArray[np.int64]:
        """Vectors in each list, dead ones among them."""
        return np.bincount(self._numbers(), minlength=self.lists.nlist)

    def counts(self) -> NDArray[np.int64]:
        """Matches in each list, dead ones among them."""
        if self.matches.list_counts is None:
            marked = self._numbers()[self.matches.marks(len(self.fields))]
            self.matches.list_counts = np.bincount(marked, minlength=self.lists.nlist)
        return self.matches.list_counts

    def _numbers(self) -> NDArray[Any]:
        if self.fields.list_numbers is None:
            self.fields.list_numbers = _list_numbers(self.lists, len(self.fields))
        return self.fields.list_numbers


def _list_numbers(lists: Any, count: int) -> NDArray[Any]:
    """The list of each position: two bytes a passage, where there are no more lists."""
    numbers = np.zeros(count, dtype=np.uint16 if lists.nlist <= 1 << 16 else np.uint32)
    sizes = sizes_of(lists)
    for number in np.flatnonzero(sizes).tolist():
        ids = faiss.rev_swig_ptr(lists.invlists.get_ids(number), int(sizes[number]))
        numbers[ids] = number
    return numbers


def is_narrow(
    kind: Kind, manifest: Manifest, top_k: int, query_count: int, parts: Sequence[Part]
) -> bool:
    """True if comparing each query with all that matches is cheaper than searching codes."""
    survivors = sum(part.live.live_count for part in parts)
    total = sum(part.live.count for part in parts)
    exact_ns = survivors * (_READ_NS / query_count + _COMPARED_NS)
    depth = top_k * total / max(1, survivors)
    if not isinstance(kind, ListKind):
        return exact_ns <= _view(manifest, top_k, depth) * VIEW_NS
    nprobe = int(_needed(manifest, np.array([depth]))[0])
    codes = nprobe * total / manifest.list_count
    coded_ns = nprobe * len(parts) * _LIST_NS + codes * kind.code_ns
    refined = _weighed(manifest.point_for(top_k).candidate_count()) if kind.refines else 0
    return exact_ns <= coded_ns + refined * _REFINED_NS


def widened(
    kind: Kind,
    codebook: Codebook,
    manifest: Manifest,
    queries: NDArray[np.float32],
    top_k: int,
    growth: float,
    parts: Sequence[Part],
) -> tuple[Any, int]:
    """Say where to look for each query among what matches, and how many candidates to weigh.

    manifest: the codebook's, with the search parameters that are in force.
    """
    count = manifest.point_for(top_k).candidate_count(growth)
    if isinstance(kind, ListKind):
        return _assign(codebook, manifest, queries, top_k, count, parts)
    survivors = sum(part.live.live_count for part in parts)
    depth = top_k * sum(part.live.count for part in parts) / max(1, survivors)
    return Walk(_view(manifest, top_k, depth)), count


def _weighed(candidate_count: int) -> int:
    """Candidates to score again, of as many without a filter."""
    return min(_FARTHER * candidate_count, max(candidate_count, MAX_CANDIDATES))


def _view(manifest: Manifest, top_k: int, depth: float) -> int:
    """Passages to keep in view so that as many match as are in view without a filter."""
    return math.ceil(manifest.point_for(top_k).ef_search * depth / top_k)


def _assign(
    codebook: Codebook,
    manifest: Manifest,
    queries: NDArray[np.float32],
    top_k: int,
    candidate_count: int,
    parts: Sequence[Part],
) -> tuple[CoarseAssignment, int]:
    """Choose the lists of each query, -1 where it has no more, and how many candidates to weigh."""
    counts = np.sum([part.counts() for part in parts], axis=0)
    sizes = np.sum([part.sizes() for part in parts], axis=0)
    depth = top_k * sizes.sum() / max(1, int(counts.sum()))
    nprobe = min(manifest.list_count, _MARGIN * int(_needed(manifest, np.array([depth]))[0]))
    assignment = codebook.assign(queries, nprobe)
    ends = _ends(manifest, top_k, counts[assignment.lists], sizes[assignment.lists])
    far = np.flatnonzero(ends < 0)
    lists = np.where(np.arange(nprobe) < ends[:, None], assignment.lists, -1)
    scores = assignment.scores
    if len(far):
        everywhere = codebook.assign(queries[far], manifest.list_count)
        lists = _widened(lists, manifest.list_count, -1)
        scores = _widened(scores, manifest.list_count, 0)
        lists[far], scores[far] = everywhere.lists, everywhere.scores
    lists[(lists >= 0) & (counts[lists] == 0)] = -1
    return CoarseAssignment(*_closed_up(lists, scores)), _weighed(candidate_count)


def _needed(manifest: Manifest, depths: NDArray[np.float64]) -> NDArray[np.int64]:
    """Lists to look into for so many results, as measured; in proportion beyond that."""
    points = manifest.operating_points
    tops = np.array([point.top_k for point in points], dtype=np.float64)
    probes = np.maximum.accumulate([point.nprobe for point in points])
    # Between two measurements the deeper one holds.
    within = probes[np.minimum(np.searchsorted(tops, depths), len(points) - 1)]
    beyond = np.maximum(1.0, np.minimum(depths, 1e9) / tops[-1])
    needed: NDArray[np.int64] = np.ceil(within * beyond).astype(np.int64)
    return np.minimum(needed, manifest.list_count)


def _ends(
    manifest: Manifest,
    top_k: int,
    counts: NDArray[np.int64],
    sizes: NDArray[np.int64],
) -> NDArray[np.int64]:
    """How many of its lists each query needs; -1 if they do not suffice.

    counts, sizes: matches and vectors in the lists of each query, nearest first, [n, nprobe].
    """
    matching, seen = counts.cumsum(axis=1), sizes.cumsum(axis=1)
    depths = top_k * seen / np.maximum(matching, 1)
    # By the least density from as many lists on as a search without a filter looks into: where
    # matches begin only further out, they are far, and the nearest of them not in the next lists.
    first = min(int(_needed(manifest, np.array([top_k]))[0]), counts.shape[1]) - 1
    depths[:, first:] = np.maximum.accumulate(depths[:, first:], axis=1)
    probed = np.arange(1, counts.shape[1] + 1)
    enough = (probed >= _needed(manifest, depths)) & (matching >= _KNOWN * top_k)
    ends: NDArray[np.int64] = np.where(enough.any(axis=1), enough.argmax(axis=1) + 1, -1)
    return np.where(ends < 0, -1, np.minimum(_WIDER * ends, counts.shape[1]))


def _widened(array: NDArray[Any], width: int, value: float) -> NDArray[Any]:
    wide = np.full((len(array), width), value, dtype=array.dtype)
    wide[:, : array.shape[1]] = array
    return wide


def _closed_up(
    lists: NDArray[np.int64], scores: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Put what is left of each row at its beginning, and cut off what no row has."""
    order = np.argsort(lists < 0, axis=1, kind="stable")
    width = max(1, int((lists >= 0).sum(axis=1).max(initial=0)))
    order = order[:, :width]
    return (
        np.ascontiguousarray(np.take_along_axis(lists, order, axis=1)),
        np.ascontiguousarray(np.take_along_axis(scores, order, axis=1)),
    )


def score_survivors(
    codebook: Codebook, wide: NDArray[Any], part: Part, queries: NDArray[np.float32], k: int
) -> Found:
    """Compare queries with the wide codes of all that is live and matches: the best k of each."""
    positions = part.matches.positions()
    positions = positions[part.live.contains(positions)]
    scaled, offsets = codebook.wide.scaled(queries)
    best_scores = np.empty((len(queries), 0), dtype=np.float32)
    best_positions = np.empty((len(queries), 0), dtype=np.int64)
    for first in range(0, len(positions), _BLOCK_ROWS):
        block = positions[first : first + _BLOCK_ROWS]
        # Not by a product of matrices in NumPy: its threads wait for each other on a busy machine.
        codes = wide.take(block, axis=0).astype(np.float32)
        scores, places = search_exact(codes, scaled, k, Live(len(block)))
        scores = np.hstack([best_scores, scores])
        here = np.hstack([best_positions, block[places]])
        columns = likeliest(scores, k)
        best_scores = np.take_along_axis(scores, columns, axis=1)
        best_positions = np.take_along_axis(here, columns, axis=1)
    return (best_scores + offsets).astype(np.float32, copy=False), best_positions
