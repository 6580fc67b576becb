"""How are many queries answered from many shards?

The lists to look in are chosen once for all shards. Each shard gives its candidates, by codes, and
its tail's, exactly; of the former the likeliest of all shards together are scored again. So it
costs what one segment would, recall does not depend on the number of shards, and the codebook's
measured parameters hold. A shard that fails is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from shoal.shard.codes import Codebook
from shoal.shard.directory import Directory, TailDirectory
from shoal.shard.merge import MISSING_SCORE, best, likeliest
from shoal.shard.segment import ExactSegment, IvfPqSegment, Vectors
from shoal.shard.shard import View

_log = logging.getLogger(__name__)

_NO_ROW: Final = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Target:
    """A shard to search, in one state."""

    shard: int
    view: View

    def directory(self, tail: bool) -> Directory | TailDirectory:
        """The directory of its main segment, or of its tail."""
        return self.view.tail.directory if tail else self.view.main.directory


@dataclass(frozen=True)
class Ranking:
    """The best candidates of each query, best first: arrays [n, k].

    Where there are fewer, the score is -inf.
    """

    scores: NDArray[np.float32]
    row_ids: NDArray[np.uint64]
    # 2 x the index of the target, and 1 more for its tail.
    parts: NDArray[np.int64]
    positions: NDArray[np.int64]


class _Search:
    """One search of a block of queries; collects what each target finds."""

    def __init__(
        self,
        targets: Sequence[Target],
        shard_count: int,
        queries: Vectors,
        top_k: int,
        effort: float,
    ) -> None:
        self.targets, self.shard_count = targets, shard_count
        self.queries = queries
        self.top_k, self.effort = top_k, effort
        self.failures: dict[int, str] = {}

    def guarded(self, target: Target, work: Callable[[], Any]) -> Any:
        """Do a part of the search in one target; None if that fails."""
        if target.shard in self.failures:
            return None
        try:
            return work()
        except Exception as error:  # noqa: BLE001  # the other shards answer
            _log.exception("shard %d cannot be searched", target.shard)
            self.failures[target.shard] = f"{type(error).__name__}: {error}"
            return None

    def exact(self) -> list[_Block]:
        """Search what is searched exactly: tails, and main segments of that kind."""
        blocks = []
        for at, target in enumerate(self.targets):
            view = target.view
            if isinstance(view.main.segment, ExactSegment) and view.main_live.live_count:
                segment = view.main.segment
                found = self.guarded(
                    target,
                    partial(segment.search, self.queries, self.top_k, view.main_live),
                )
                blocks += _block(found, 2 * at)
            if view.tail_live.live_count:
                found = self.guarded(
                    target, partial(view.tail.search, self.queries, self.top_k, view.tail_live)
                )
                blocks += _block(found, 2 * at + 1)
        return blocks

    def coded(self, codebook: Codebook) -> list[_Block]:
        """Search the inverted lists of all targets, and score the likeliest candidates again."""
        point = codebook.manifest.point_for(self.top_k).harder(
            self.effort, codebook.manifest.list_count
        )
        count = point.candidate_count(self._growth(codebook))
        assignment = codebook.assign(self.queries, point.nprobe)
        blocks = []
        for at, target in enumerate(self.targets):
            view, segment = target.view, target.view.main.segment
            if isinstance(segment, IvfPqSegment) and view.main_live.live_count:
                found = self.guarded(
                    target,
                    partial(segment.candidates, self.queries, assignment, count, view.main_live),
                )
                blocks += _block(found, 2 * at)
        if not blocks:
            return []
        candidates = _join(blocks)
        columns = likeliest(candidates.scores, count)
        return [self._refined(codebook, candidates.columns(columns))]

    def _growth(self, codebook: Codebook) -> float:
        """How many times as many passages there are as recall was measured among.

        Of all shards, by those that are here: slots divide an index evenly.
        """
        here = sum(target.view.passage_count for target in self.targets)
        total = here * self.shard_count / len(self.targets)
        return total / codebook.manifest.sample_count

    def _refined(self, codebook: Codebook, candidates: _Block) -> _Block:
        # Flat, as NumPy gathers rows of two-dimensional arrays twice as fast.
        parts, positions = candidates.parts.reshape(-1), candidates.positions.reshape(-1)
        wide = np.empty((len(parts), self.queries.shape[1]), codebook.wide.dtype)
        for at, target in enumerate(self.targets):
            segment = target.view.main.segment
            if isinstance(segment, IvfPqSegment):
                here = np.flatnonzero(parts == 2 * at)
                wide[here] = segment.wide.take(positions[here], axis=0, mode="clip")
        scores = codebook.wide.scores(
            self.queries, wide.reshape(*candidates.scores.shape, self.queries.shape[1])
        )
        # FAISS may give fewer than were asked for: what is missing was read as row 0.
        scores[candidates.positions < 0] = MISSING_SCORE
        return _Block(scores, candidates.positions, candidates.parts)


@dataclass(frozen=True)
class _Block:
    """Candidates of each query, in no order: arrays [n, m]."""

    scores: NDArray[np.float32]
    positions: NDArray[np.int64]
    parts: NDArray[np.int64]

    def columns(self, chosen: NDArray[np.int64]) -> _Block:
        """Those of the chosen columns, [n, k]."""
        return _Block(
            np.take_along_axis(self.scores, chosen, axis=1),
            np.take_along_axis(self.positions, chosen, axis=1),
            np.take_along_axis(self.parts, chosen, axis=1),
        )


def _block(found: Any, part: int) -> list[_Block]:
    if found is None:
        return []
    scores, positions = found
    return [_Block(scores, positions, np.full(positions.shape, part, dtype=np.int64))]


def _join(blocks: Sequence[_Block]) -> _Block:
    return _Block(
        np.concatenate([block.scores for block in blocks], axis=1),
        np.concatenate([block.positions for block in blocks], axis=1),
        np.concatenate([block.parts for block in blocks], axis=1),
    )


def search(
    targets: Sequence[Target],
    codebook: Codebook | None,
    queries: Vectors,
    top_k: int,
    *,
    shard_count: int,
    effort: float = 1.0,
) -> tuple[Ranking, dict[int, str]]:
    """Find the best `top_k` of each query, float32 [n, dimension], in all targets together.

    codebook: of the layout; None if it is searched exactly. shard_count: of the layout, of which
    the targets may be a part. effort: times as hard as the codebook's measured parameters. Returns
    also what failed, by shard.
    """
    running = _Search(targets, shard_count, queries, top_k, effort)
    blocks = running.exact()
    if codebook is not None:
        blocks += running.coded(codebook)
    found = _narrowed(_join([*blocks, _nothing(len(queries))]), top_k)
    row_ids = _row_ids(targets, found)
    columns = best(found.scores, row_ids, top_k)
    chosen = found.columns(columns)
    ranking = Ranking(
        chosen.scores,
        np.take_along_axis(row_ids, columns, axis=1),
        chosen.parts,
        chosen.positions,
    )
    return ranking, running.failures


def _narrowed(found: _Block, top_k: int) -> _Block:
    """Leave out candidates that cannot win: looking up a row id costs a cache miss each.

    Row ids decide between equal scores, so that all is kept where the cut would part equals.
    """
    count = 2 * top_k + 8
    if found.scores.shape[1] <= count:
        return found
    narrow = found.columns(likeliest(found.scores, count))
    last_winner = np.partition(narrow.scores, -top_k, axis=1)[:, -top_k]
    return narrow if (narrow.scores.min(axis=1) < last_winner).all() else found


def _nothing(query_count: int) -> _Block:
    empty = np.empty((query_count, 0), dtype=np.int64)
    return _Block(empty.astype(np.float32), empty, empty)


def _row_ids(targets: Sequence[Target], found: _Block) -> NDArray[np.uint64]:
    row_ids = np.full(found.positions.shape, _NO_ROW, dtype=np.uint64)
    for part in range(2 * len(targets)):
        here = (found.parts == part) & (found.positions >= 0)
        if here.any():
            directory = targets[part // 2].directory(part % 2 == 1)
            row_ids[here] = directory.records["row_id"][found.positions[here]]
    return row_ids
