"""What should live queries have found, and what do they find?

The truth is read from the table: the vectors as they were written, of the passages that are live in
the views. The wide codes in memory would be read faster, but they are what a search scores its
candidates with, so that their own errors would never be seen: measured on 20,000 x 384 clustered
vectors, the exact best 10 by codes of one byte a number hold 0.990 of the true ones (two: 1.000).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from shoal.shard.codes import Codebook
from shoal.shard.held_out import SAME_SCORE, TIES, HeldOut, Neighbours
from shoal.shard.live_recall import Outcome, SampledQuery
from shoal.shard.pace import pause, waiting
from shoal.shard.search import Target, search
from shoal.table import schema
from shoal.table.scanning import SPARING
from shoal.table.slots import slot_range
from shoal.table.table import PassageTable, vectors_of

# Queries that are searched at once as they are served: bounds the candidates in memory.
_BLOCK_QUERIES: Final = 8
_NOWHERE: Final = -1


class SearchFailedError(RuntimeError):
    """A shard that cannot be searched: nothing is learnt of recall."""


@dataclass(frozen=True)
class Sample:
    """Queries, in the shards that a server holds of a layout: each in one state."""

    queries: Sequence[SampledQuery]
    targets: Sequence[Target]
    shard_count: int

    @property
    def vectors(self) -> NDArray[np.float32]:
        """All of them: float32 [n, dimension]."""
        return np.stack([each.vector for each in self.queries])


def true_neighbours(
    table: PassageTable, sample: Sample, goes_on: Callable[[], bool]
) -> Neighbours | None:
    """Search all live passages exactly. Blocks: about 10 s of a core for a million and 256 queries.

    goes_on: asked every few milliseconds; None is returned once it says no. Takes about 50 MB.
    """
    bounds = [slot_range(each.shard, sample.shard_count) for each in sample.targets]
    slots = (min(first for first, _ in bounds), max(end for _, end in bounds))
    nobody = np.empty(0, dtype=np.uint64)
    kept = max(each.top_k for each in sample.queries) + TIES
    truth = Neighbours(HeldOut(sample.vectors, nobody), kept=kept)
    batches = iter(table.scan((), slots=slots, with_vectors=True, reading=SPARING))
    while True:
        with waiting():
            batch = next(batches, None)
        if batch is None:
            break
        if not goes_on():
            return None
        row_ids = batch.column(schema.ROW_ID).to_numpy()
        live = _homes(sample.targets, row_ids) != _NOWHERE
        vectors = batch.column(schema.VECTOR).filter(pa.array(live))
        truth.add(row_ids[live], vectors_of(vectors, table.dimension))
    truth.flush()
    return truth


def _homes(targets: Sequence[Target], row_ids: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The index of the target in which each row is live; -1 where it is in none."""
    homes = np.full(len(row_ids), _NOWHERE, dtype=np.int64)
    for at, target in enumerate(targets):
        for indexes, _, _ in target.view.find_rows(row_ids):
            homes[indexes] = at
    return homes


def served(sample: Sample, codebook: Codebook, effort: float) -> list[NDArray[np.uint64]]:
    """Search as live queries are searched: the row ids that each finds. Blocks.

    Raises SearchFailedError.
    """
    found: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)] * len(sample.queries)
    vectors, top_ks = sample.vectors, np.array([each.top_k for each in sample.queries])
    for top_k in np.unique(top_ks).tolist():
        members = np.flatnonzero(top_ks == top_k)
        for first in range(0, len(members), _BLOCK_QUERIES):
            block = members[first : first + _BLOCK_QUERIES]
            pause()
            ranking, failures = search(
                sample.targets,
                codebook,
                vectors[block],
                top_k,
                shard_count=sample.shard_count,
                effort=effort,
            )
            if failures:
                raise SearchFailedError(str(failures))
            for at, row_ids, positions in zip(
                block.tolist(), ranking.row_ids, ranking.positions, strict=True
            ):
                found[at] = row_ids[positions >= 0]
    return found


def compare(sample: Sample, truth: Neighbours, found: Sequence[NDArray[np.uint64]]) -> Outcome:
    """Count, of the true neighbours in each shard, those that were found."""
    shape = (len(sample.queries), len(sample.targets))
    expected, reached = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    homes = _homes(sample.targets, truth.row_ids.reshape(-1)).reshape(truth.row_ids.shape)
    for at, query in enumerate(sample.queries):
        here = np.isfinite(truth.scores[at])
        rows, scores = truth.row_ids[at][here], truth.scores[at][here]
        hit = _found(rows, scores, query.top_k, found[at])
        first = homes[at][here][: query.top_k]
        expected[at] = np.bincount(first, minlength=shape[1])
        reached[at] = np.bincount(first[hit], minlength=shape[1])
    return Outcome(expected, reached)


def _found(
    rows: NDArray[np.uint64],
    scores: NDArray[np.float32],
    top_k: int,
    found: NDArray[np.uint64],
) -> NDArray[np.bool_]:
    """Say for each of the first `top_k` true neighbours whether it, or its equal, was found.

    rows, scores: of the true neighbours, best first, and of those that tie with the last one.
    """
    hit = np.isin(rows, found)
    first, worst = hit[:top_k], scores[:top_k][-1:]
    spare = int((hit[top_k:] & (scores[top_k:] >= worst - SAME_SCORE)).sum())
    if spare:
        missed = np.flatnonzero(~first & (scores[:top_k] <= worst + SAME_SCORE))
        first[missed[:spare]] = True
    return first
