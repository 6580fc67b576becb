"""How are many queries answered from many shards?

Where to look is chosen once for all shards. Each shard gives its candidates, by codes, and its
tail's, exactly; of the former the likeliest of all shards together are scored again, unless the
codes' own scores are final. So it costs what one segment would, recall does not depend on the
number of shards, and the codebook's measured parameters hold. A shard that fails is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from shoal.shard.codes import Codebook
from shoal.shard.directory import Directory, TailDirectory
from shoal.shard.field_columns import Condition, Matches
from shoal.shard.kinds import kind_of
from shoal.shard.merge import MISSING_SCORE, best, likeliest
from shoal.shard.segment import CodedSegment, ExactSegment, Found, Vectors
from shoal.shard.selective import is_narrow
from shoal.shard.shard import View
from shoal.shard.survivors import Part, compare, count_of

_log = logging.getLogger(__name__)

_NO_ROW: Final = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Target:
    """A shard to search, in one state."""

    shard: int
    view: View
    # What a filter has left of the shard; None if there is no filter. Then the view's `Live` are
    # those that match.
    matches: Matches | None = None
    # Passages that can be found by one filter or another; None: those of the view.
    whole_count: int | None = None

    @property
    def passage_count(self) -> int:
        """Passages that can be found, whatever the filter."""
        return self.view.passage_count if self.whole_count is None else self.whole_count

    def matching(self, condition: Condition) -> Target:
        """The same, with what does not match a filter as good as dead."""
        view = self.view
        main, tail = view.main.directory, view.tail.directory
        if main.fields is None:
            assert main.count == 0
            matches = Matches(np.empty(0, dtype=bool))
        else:
            matches = main.fields.matches(condition)
        in_tail = tail.fields.matches(condition, view.tail_live.count)
        narrowed = replace(
            view,
            main_live=view.main_live.intersected(matches.bits),
            tail_live=view.tail_live.intersected(in_tail.bits),
        )
        return Target(self.shard, narrowed, matches, view.passage_count)

    def emptied(self) -> Target:
        """The same, with nothing in it that can be found."""
        view, nothing = self.view, Matches(np.zeros(self.view.main_live.count, dtype=bool))
        main_live = view.main_live.intersected(nothing.bits)
        tail_bits = np.zeros((view.tail_live.count + 7) // 8, dtype=np.uint8)
        tail_live = view.tail_live.intersected(tail_bits)
        narrowed = replace(view, main_live=main_live, tail_live=tail_live)
        return Target(self.shard, narrowed, nothing, view.passage_count)

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
    # Lexical scores of each query's candidates; None where it has no words, or none were looked at.
    lexical: Sequence[NDArray[np.float32] | None] = ()


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
        """Search the codes of all targets, and score the likeliest candidates again."""
        kind, growth = kind_of(codebook), self._growth(codebook)
        manifest = codebook.manifest.harder(self.effort)
        point = manifest.point_for(self.top_k)
        count = point.candidate_count(growth)
        parts = self._parts()
        if parts is None:
            probe = kind.probe(codebook, self.queries, point, growth)
        elif not parts:
            return []
        elif is_narrow(kind, manifest, self.top_k, len(self.queries), parts):
            return self._survivors(codebook, self.queries)
        else:
            probe, count = kind.narrowed_probe(
                codebook, manifest, self.queries, self.top_k, growth, parts
            )
        blocks = self._candidates(probe, count)
        if blocks and kind.refines:
            candidates = _join(blocks)
            columns = likeliest(candidates.scores, count)
            blocks = [self._refined(codebook, candidates.columns(columns))]
        return blocks if parts is None else self._completed(codebook, blocks)

    def _candidates(self, probe: Any, count: int) -> list[_Block]:
        blocks = []
        for at, target in enumerate(self.targets):
            view, segment = target.view, target.view.main.segment
            if isinstance(segment, CodedSegment) and view.main_live.live_count:
                found = self.guarded(
                    target,
                    partial(segment.candidates, self.queries, probe, count, view.main_live),
                )
                blocks += _block(found, 2 * at)
        return blocks

    def _parts(self) -> list[Part] | None:
        """What a filter leaves of the codes that can be searched; None if there is no filter."""
        if all(target.matches is None for target in self.targets):
            return None
        parts = (_part(each) for each in self.targets if each.shard not in self.failures)
        return [part for part in parts if part is not None and part.live.live_count]

    def _survivors(self, codebook: Codebook, queries: Vectors) -> list[_Block]:
        """Compare queries with all that matches a filter."""
        blocks = []
        for at, target in enumerate(self.targets):
            part = _part(target)
            if part is not None and part.live.live_count:
                score = partial(_survivors_of, part, codebook, queries, self.top_k)
                blocks += _block(self.guarded(target, score), 2 * at)
        return blocks

    def _completed(self, codebook: Codebook, blocks: list[_Block]) -> list[_Block]:
        """Where fewer were found than match, compare the query with all that matches instead.

        Only of what has not failed: the rest is missing anyway.
        """
        wanted = min(self.top_k, count_of(self._parts() or ()))
        found = sum((block.positions >= 0).sum(axis=1) for block in blocks)
        short = np.flatnonzero(np.broadcast_to(found, len(self.queries)) < wanted)
        if not len(short):
            return blocks
        survivors = self._survivors(codebook, self.queries[short])
        again = [_spread(each, short, len(self.queries)) for each in survivors]
        for block in blocks:
            block.scores[short], block.positions[short] = MISSING_SCORE, -1
        return blocks + again

    def _growth(self, codebook: Codebook) -> float:
        """How many times as many passages there are as recall was measured among.

        Of all shards, by those that are here: slots divide an index evenly.
        """
        here = sum(target.passage_count for target in self.targets)
        total = here * self.shard_count / len(self.targets)
        return total / codebook.manifest.sample_count

    def _refined(self, codebook: Codebook, candidates: _Block) -> _Block:
        # Flat, as NumPy gathers rows of two-dimensional arrays twice as fast.
        parts, positions = candidates.parts.reshape(-1), candidates.positions.reshape(-1)
        wide = np.empty((len(parts), self.queries.shape[1]), codebook.wide.dtype)
        for at, target in enumerate(self.targets):
            segment = target.view.main.segment
            if isinstance(segment, CodedSegment):
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


def _part(target: Target) -> Part | None:
    view, fields = target.view, target.view.main.directory.fields
    segment = view.main.segment
    if target.matches is None or fields is None or not isinstance(segment, CodedSegment):
        return None
    return Part(segment, fields, target.matches, view.main_live)


def _survivors_of(part: Part, codebook: Codebook, queries: Vectors, top_k: int) -> Found:
    return compare(codebook, part.segment.wide, part.positions(), queries, top_k)


def _block(found: Any, part: int) -> list[_Block]:
    if found is None:
        return []
    scores, positions = found
    return [_Block(scores, positions, np.full(positions.shape, part, dtype=np.int64))]


def _spread(block: _Block, rows: NDArray[np.int64], count: int) -> _Block:
    """The same candidates, for some rows of `count`."""
    width = block.scores.shape[1]
    scores = np.full((count, width), MISSING_SCORE, dtype=np.float32)
    positions = np.full((count, width), -1, dtype=np.int64)
    scores[rows], positions[rows] = block.scores, block.positions
    return _Block(scores, positions, np.full(positions.shape, block.parts[0, 0]))


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
            row_ids[here] = directory.row_ids[found.positions[here]]
    return row_ids
