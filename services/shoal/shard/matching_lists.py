"""Which inverted lists are to be looked into for what a filter leaves?

A filter that lets one in a hundred through makes the ten nearest that match as rare as the thousand
nearest of all, so that as many lists must be looked into as for a thousand. How many do match
around a query is not the filter's share of the whole: filters go with topics, and so do queries.
Therefore it is counted: how many matches each list has is known, and along the lists in the order
of their nearness the least density of matches so far says how deep the search must go; it ends
where it has gone so deep. A query that lies where next to nothing matches never gets there: it
looks into all lists that have a match. And more candidates are scored again: what is far is all
about as far, so that codes tell less of it apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from shoal.shard.codes import MAX_CANDIDATES, CoarseAssignment, Codebook, Manifest
from shoal.shard.kernel import faiss
from shoal.shard.lists import sizes_of
from shoal.shard.survivors import KNOWN, Part, depth_of

# So many times as many lists as are expected to be needed are ranked for each query.
_MARGIN: Final = 4
# So many times as many lists as the measured ones: they were measured with queries from among the
# vectors, and a query need not be from among those that match. A list costs little.
_WIDER: Final = 3
# So many times the candidates, measured with the nearest of all: what matches may be farther.
_FARTHER: Final = 4


def list_sizes(part: Part) -> NDArray[np.int64]:
    """Vectors in each list, dead ones among them: counted once for all searches."""
    if part.fields.list_sizes is None:
        part.fields.list_sizes = sizes_of(_lists(part))
    return part.fields.list_sizes


def list_counts(part: Part) -> NDArray[np.int64]:
    """Matches in each list, dead ones among them: counted once for each filter."""
    if part.matches.list_counts is None:
        marked = _list_numbers(part)[part.matches.marks(len(part.fields))]
        part.matches.list_counts = np.bincount(marked, minlength=_lists(part).nlist)
    return part.matches.list_counts


def _lists(part: Part) -> Any:
    return getattr(part.segment, "lists")  # noqa: B009  # of a ListSegment, as its kind says


def _list_numbers(part: Part) -> NDArray[Any]:
    """The list of each position: two bytes a passage, where there are no more lists."""
    if part.fields.list_numbers is None:
        lists, sizes = _lists(part), list_sizes(part)
        type_ = np.uint16 if lists.nlist <= 1 << 16 else np.uint32
        numbers = np.zeros(len(part.fields), dtype=type_)
        for number in np.flatnonzero(sizes).tolist():
            ids = faiss.rev_swig_ptr(lists.invlists.get_ids(number), int(sizes[number]))
            numbers[ids] = number
        part.fields.list_numbers = numbers
    return part.fields.list_numbers


def weighed(candidate_count: int) -> int:
    """Candidates to score again, of as many without a filter."""
    return min(_FARTHER * candidate_count, max(candidate_count, MAX_CANDIDATES))


def expected_lists(manifest: Manifest, top_k: int, parts: Sequence[Part]) -> int:
    """Lists that a query is going to look into, if what matches lies anywhere."""
    needed = int(_needed(manifest, np.array([depth_of(top_k, parts)]))[0])
    return min(manifest.list_count, _WIDER * needed)


def chosen_lists(
    codebook: Codebook,
    manifest: Manifest,
    queries: NDArray[np.float32],
    top_k: int,
    parts: Sequence[Part],
) -> CoarseAssignment:
    """Choose the lists of each query; -1 where it has no more."""
    counts = np.sum([list_counts(part) for part in parts], axis=0)
    sizes = np.sum([list_sizes(part) for part in parts], axis=0)
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
    return CoarseAssignment(*_closed_up(lists, scores))


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
    enough = (probed >= _needed(manifest, depths)) & (matching >= KNOWN * top_k)
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
