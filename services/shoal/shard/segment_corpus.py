"""Which search parameters reach a version's recall target, in the segments that it has?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from shoal.shard.codes import Codebook, OperatingPoint
from shoal.shard.directory import Directory
from shoal.shard.held_out import TIES, HeldOut, Neighbours
from shoal.shard.kind import Trial
from shoal.shard.kinds import kind_of
from shoal.shard.merge import likeliest
from shoal.shard.operating_points import (
    TOP_KS,
    Measured,
    RecallUnreachableError,
    Truth,
    measure,
)
from shoal.shard.search import Target
from shoal.shard.segment import CodedSegment, Vectors
from shoal.shard.shard import Main, Shard
from shoal.shard.tombstones import Live

# Exact neighbours of each held-out vector that have to be known.
NEIGHBOURS: Final = max(TOP_KS) + TIES


def tuned(
    codebook: Codebook,
    targets: Sequence[Target],
    held_out: HeldOut,
    truth: Neighbours,
    recall_target: float,
) -> Codebook:
    """Give the same codebook with the cheapest search parameters that reach the target.

    targets: all shards, `without` what was held out. truth: `NEIGHBOURS` of each held-out vector.
    Raises RecallUnreachableError.
    """
    corpus = SegmentCorpus(codebook, targets)
    known = Truth(truth.scores, corpus.numbers_of(truth.row_ids))
    measured = Measured(kind_of(codebook), held_out.vectors, known)
    tried = measure(measured, corpus, codebook.wide, recall_target)
    reached = tried[0].point.recall
    if reached < recall_target:
        raise RecallUnreachableError(
            codebook.manifest.kind, reached, recall_target, len(held_out.vectors)
        )
    update = {
        "operating_points": tuple(each.point for each in tried),
        "sample_count": corpus.count,
        "query_count": len(held_out.vectors),
    }
    manifest = codebook.manifest.model_copy(update=update)
    return Codebook(manifest, codebook.template, codebook.wide)


def without(shard: int, main: Main, held_out: HeldOut) -> Target:
    """A shard to search in which no held-out passage can be found."""
    view = Shard(main, held_out.vectors.shape[1], fold_at_passages=1).view
    positions = main.directory.find_rows(held_out.row_ids)
    count = main.segment.count
    live = Live(count).changed(count, positions[positions >= 0])
    return Target(shard, replace(view, main_live=live))


class SegmentCorpus:
    """Segments of one codebook, searched as if they were one.

    A passage's number is its position, those of all shards in a row. Implements
    `shoal.shard.operating_points.Corpus`.
    """

    def __init__(self, codebook: Codebook, targets: Sequence[Target]) -> None:
        """targets: all shards, without tails; what is dead there cannot be found."""
        self._codebook, self._kind = codebook, kind_of(codebook)
        self._parts: list[tuple[CodedSegment, Any]] = []
        self._directories: list[Directory] = []
        for target in targets:
            segment = target.view.main.segment
            assert isinstance(segment, CodedSegment)
            self._parts.append((segment, target.view.main_live))
            self._directories.append(target.view.main.directory)
        counts = [segment.count for segment, _ in self._parts]
        self._firsts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.count = sum(live.live_count for _, live in self._parts)
        self.list_count = codebook.manifest.list_count

    def numbers_of(self, row_ids: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Numbers of rows of the table, of any shape; -1 for those that no segment has."""
        flat = row_ids.reshape(-1)
        numbers = np.full(len(flat), -1, dtype=np.int64)
        for directory, first in zip(self._directories, self._firsts[:-1], strict=True):
            positions = directory.find_rows(flat)
            held = positions >= 0
            numbers[held] = first + positions[held]
        return numbers.reshape(row_ids.shape)

    def found(self, queries: Vectors, k: int, trial: Trial) -> NDArray[np.int64]:
        """Search all segments, and put the best of them together."""
        point = OperatingPoint(top_k=k, nprobe=trial.nprobe, ef_search=trial.ef_search, recall=0.0)
        probe = self._kind.probe(self._codebook, queries, point, 1.0)
        scores, numbers = [], []
        for (segment, live), first in zip(self._parts, self._firsts[:-1], strict=True):
            near, positions = segment.candidates(queries, probe, k, live)
            scores.append(near)
            numbers.append(np.where(positions < 0, -1, positions + first))
        all_scores, all_numbers = np.concatenate(scores, axis=1), np.concatenate(numbers, axis=1)
        columns = likeliest(all_scores, k)
        best = np.take_along_axis(all_scores, columns, axis=1)
        columns = np.take_along_axis(columns, np.argsort(-best, axis=1, kind="stable"), axis=1)
        return np.take_along_axis(all_numbers, columns, axis=1)

    def codes(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Gather wide codes from the segments."""
        flat = numbers.reshape(-1)
        codes = np.zeros((len(flat), self._codebook.manifest.dimension), self._codebook.wide.dtype)
        parts = np.searchsorted(self._firsts, flat, side="right") - 1
        for at, (segment, _) in enumerate(self._parts):
            here = np.flatnonzero(parts == at)
            if len(here):
                positions = flat[here] - self._firsts[at]
                codes[here] = segment.wide.take(positions, axis=0, mode="clip")
        return codes.reshape(*numbers.shape, -1)
