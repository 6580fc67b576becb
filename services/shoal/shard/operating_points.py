"""Which search parameters are the cheapest that reach a recall target?

Recall is measured against exact search, on vectors that were held out or on questions as they are
asked. A version's parameters are measured on its segments, as they will be searched; where there
are none, on a sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from shoal.shard.codes import MAX_CANDIDATES, OperatingPoint
from shoal.shard.held_out import SAME_SCORE
from shoal.shard.kernel import faiss
from shoal.shard.kind import REFINED_NS, Kind, Trial
from shoal.shard.kind_names import KIND_NAMES, KindName
from shoal.shard.segment import Vectors
from shoal.shard.wide_code import WideCode

# Result counts that parameters are measured for: a page, the reranker's candidates, and an
# evaluation's. The first is the one that the target names.
TOP_KS: Final = (10, 32, 100)
# Candidates that are tried among so many passages; in proportion among more, as then a code tells
# fewer neighbours apart.
_CANDIDATES: Final = 800
_CANDIDATES_AMONG: Final = 700_000
# Part of the misses allowed that is kept as a margin, as held-out passages are easier than
# questions: with all-MiniLM-L6-v2 on 30,000 Debian package descriptions, parameters that reached
# 0.964 on passages reached 0.937 on questions, and those that reached 0.978 reached 0.957.
_MARGIN: Final = 0.5
# Standard errors that a recall measured on questions may err by: less than the floor is met once in
# twenty times.
_SURE: Final = 1.645
# Where the target is out of reach, recall that dearer parameters would gain and is not worth it.
_GAIN: Final = 0.005
_BLOCK_QUERIES: Final = 32
# Held-out queries after which parameters are given up whose recall is so far below the target: five
# standard errors.
_GLANCE_QUERIES: Final = 64
_HOPELESS: Final = 0.15


class RecallUnreachableError(ValueError):
    """A recall target that no search parameters of the kind reach."""

    def __init__(self, kind: KindName, reached: float, target: float, query_count: int) -> None:
        """reached: recall at 10 of the best parameters. query_count: of the held-out vectors."""
        others = ", ".join(name for name in KIND_NAMES if name != kind)
        super().__init__(
            f"{kind} reaches recall@{TOP_KS[0]} {reached:.3f} at best on {query_count} held-out "
            f"vectors, below the target {target:.3f}: lower the target (`shoal index update "
            f"--recall`), build another kind (`--kind`: {others}), or raise build.memory_bytes if "
            "it kept a better kind from being chosen; exact search (version 0) has recall 1"
        )


class Corpus(Protocol):
    """What is searched: passages that have numbers."""

    @property
    def count(self) -> int:
        """Passages that can be found."""
        ...

    @property
    def list_count(self) -> int:
        """Inverted lists; 0 in a kind without them."""
        ...

    def found(self, queries: Vectors, k: int, trial: Trial) -> NDArray[np.int64]:
        """Numbers of what is found for each query, the best first: [n, k]; -1 for nothing."""
        ...

    def codes(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Wide codes of passages by their numbers, whatever for -1: [..., dimension]."""
        ...


@dataclass(frozen=True)
class Truth:
    """The exact neighbours of each held-out vector, best first: [n, m]."""

    scores: NDArray[np.float32]
    # By the corpus's numbers; -1 and -inf where there are fewer.
    numbers: NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """What recall is measured with."""

    kind: Kind
    # float32 [n, dimension], in random order.
    held_out: Vectors
    truth: Truth
    asked: bool = False
    """True if what is held out is what is asked, and not passages in the place of questions."""

    def floor(self, recalls: NDArray[np.float64]) -> float:
        """The recall to count on, from that of each held-out vector."""
        mean = float(recalls.mean())
        if self.asked:
            return mean - _SURE * float(recalls.std()) / math.sqrt(len(recalls))
        return 1 - (1 - mean) / (1 - _MARGIN)

    def part_reached(
        self, reached: NDArray[np.float32], block: slice, top_k: int
    ) -> NDArray[np.float64]:
        """Part of the best `top_k` of each vector whose scores were reached, [n, top_k]."""
        worst = self.truth.scores[block, top_k - 1, None]
        part: NDArray[np.float64] = (reached >= worst - SAME_SCORE).mean(axis=1)
        return part

    def true_scores(self, found: NDArray[np.int64], block: slice) -> NDArray[np.float32]:
        """Scores of what was found, [n, k], that is among the neighbours; -inf for the rest."""
        same = found[:, :, None] == self.truth.numbers[block, None, :]
        scores = np.take_along_axis(self.truth.scores[block], same.argmax(axis=2), axis=1)
        return np.where(same.any(axis=2), scores, np.float32(-np.inf))


@dataclass(frozen=True)
class Tried:
    """Parameters that were measured."""

    cost_ns: float
    floor: float
    """The recall to count on."""
    point: OperatingPoint


def ranked_recalls(measured: Measured, near: Vectors, wide: WideCode) -> NDArray[np.float64]:
    """The recall of each held-out vector if all its neighbours were candidates for a wide code.

    near: the neighbours' own vectors, float32 [n, m, dimension].
    Hardly any parameters lead beyond it: further candidates only displace some of them, and only
    by luck does a search miss just those that would.
    """
    top_k, recalls = TOP_KS[0], np.empty(len(near))
    # Neighbours stand in their true order, and a sort would leave those so that a code equates.
    order = np.random.default_rng(0).permutation(near.shape[1])
    for first in range(0, len(near), _BLOCK_QUERIES):
        block = slice(first, first + _BLOCK_QUERIES)
        mixed = near[block][:, order]
        codes = wide.encode(mixed.reshape(-1, near.shape[2])).reshape(mixed.shape)
        ranks = np.argsort(-wide.scores(measured.held_out[block], codes), axis=1)[:, :top_k]
        reached = np.take_along_axis(measured.truth.scores[block], order[ranks], axis=1)
        recalls[block] = measured.part_reached(reached, block, top_k)
    return recalls


def measure(measured: Measured, corpus: Corpus, wide: WideCode, target: float) -> list[Tried]:
    """Find the cheapest parameters for each of `TOP_KS`; the best ones where none suffice."""
    kind, top_ks = measured.kind, [top_k for top_k in TOP_KS if top_k <= corpus.count]
    tried: dict[int, list[Tried]] = {top_k: [] for top_k in top_ks}
    for trial in kind.trials(corpus.list_count, corpus.count):
        if all(_cheapest(tried[top_k], target) < trial.cost_ns for top_k in top_ks):
            break
        recalls = _refined_recalls if kind.refines else _final_recalls
        for floor, point in recalls(measured, corpus, wide, trial, top_ks, target):
            again = point.top_k * point.refine_factor if kind.refines else 0
            cost_ns = kind.wanting(trial, point.top_k).cost_ns + again * REFINED_NS
            tried[point.top_k].append(Tried(cost_ns, floor, point))
    return [_pick(tried[top_k], target) for top_k in top_ks]


def _cheapest(tried: list[Tried], target: float) -> float:
    return min((each.cost_ns for each in tried if each.floor >= target), default=np.inf)


def _pick(tried: list[Tried], target: float) -> Tried:
    best = max(tried, key=lambda each: each.floor)
    least = target if best.floor >= target else best.floor - _GAIN
    # A target that is reached, if without a margin, is not given up for what is cheaper.
    recall = target if best.point.recall >= target else 0.0
    enough = [each for each in tried if each.floor >= least and each.point.recall >= recall]
    return min(enough, key=lambda each: each.cost_ns)


def _refined_recalls(
    measured: Measured,
    corpus: Corpus,
    wide: WideCode,
    trial: Trial,
    top_ks: list[int],
    target: float,
) -> Iterator[tuple[float, OperatingPoint]]:
    """Measure every refine factor of a trial: the codes are searched once for all of them.

    On a part of the queries only, if that shows that none of them comes near the target.
    """
    limit = _most_candidates(corpus.count)
    pairs = [
        (top_k, factor)
        for top_k in top_ks
        for factor in measured.kind.refine_factors
        if top_k * factor <= limit or factor == measured.kind.refine_factors[0]
    ]
    count = len(measured.held_out)
    recalls = {pair: np.empty(count) for pair in pairs}

    def fill(first: int) -> None:
        block = slice(first, first + _BLOCK_QUERIES)
        queries = measured.held_out[block]
        found = corpus.found(queries, limit, trial)
        true = measured.true_scores(found, block)
        refined = wide.scores(queries, corpus.codes(found))
        refined[found < 0] = -np.inf
        for top_k, factor in pairs:
            chosen = np.argsort(-refined[:, : top_k * factor], axis=1)[:, :top_k]
            reached = np.take_along_axis(true, chosen, axis=1)
            recalls[top_k, factor][block] = measured.part_reached(reached, block, top_k)

    # NumPy and FAISS leave the interpreter alone for nearly all of it.
    with ThreadPoolExecutor(
        faiss.omp_get_max_threads(), initializer=lambda: faiss.omp_set_num_threads(1)
    ) as pool:
        list(pool.map(fill, range(0, min(count, _GLANCE_QUERIES), _BLOCK_QUERIES)))
        glance = {pair: each[:_GLANCE_QUERIES] for pair, each in recalls.items()}
        if all(each.mean() < target - _HOPELESS for each in glance.values()):
            recalls = glance
        else:
            list(pool.map(fill, range(_GLANCE_QUERIES, count, _BLOCK_QUERIES)))
    for (top_k, factor), each in recalls.items():
        yield measured.floor(each), _point(top_k, factor, trial, each)


def _most_candidates(count: int) -> int:
    """Candidates that are tried among so many passages."""
    grown = math.ceil(_CANDIDATES * max(1.0, count / _CANDIDATES_AMONG))
    return min(grown, MAX_CANDIDATES, count)


def _final_recalls(
    measured: Measured,
    corpus: Corpus,
    wide: WideCode,
    trial: Trial,
    top_ks: list[int],
    target: float,
) -> Iterator[tuple[float, OperatingPoint]]:
    """Measure a trial whose scores are final."""
    del wide, target
    for top_k in top_ks:
        wanting = measured.kind.wanting(trial, top_k)
        recalls = np.empty(len(measured.held_out))
        for first in range(0, len(recalls), _BLOCK_QUERIES):
            block = slice(first, first + _BLOCK_QUERIES)
            found = corpus.found(measured.held_out[block], top_k, wanting)
            reached = measured.true_scores(found, block)
            recalls[block] = measured.part_reached(reached, block, top_k)
        yield measured.floor(recalls), _point(top_k, 1, wanting, recalls)


def _point(top_k: int, factor: int, trial: Trial, recalls: NDArray[np.float64]) -> OperatingPoint:
    return OperatingPoint(
        top_k=top_k,
        nprobe=trial.nprobe,
        refine_factor=factor,
        ef_search=trial.ef_search,
        recall=round(float(recalls.mean()), 6),
    )
