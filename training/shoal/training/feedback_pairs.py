"""Which training pairs does feedback make, once it is freed of where hits happened to stand?

What stands first is chosen because it is seen, whether it answers or not. The position-based model
takes a choice for two things that both happened: the hit was examined, which depends on its rank
alone, and it was relevant, which depends on question and passage alone. The chance of examination
at each rank (its propensity) is estimated from passages that the same question was shown both there
and at the first rank: by several versions of an index, by several models, or after writes. What is
relevant about them is the same at both, so that the ratio of the rates of choice is that of the
propensities. A passage that never moved says nothing of ranks, and is left out. A choice then
counts the inverse of its propensity, so that what was chosen in spite of its rank counts more
(inverse propensity scoring); clipped, as an estimate near zero would let one stray choice outweigh
all others.

    Joachims, Swaminathan, Schnabel: Unbiased learning-to-rank with biased feedback. WSDM 2017,
    arXiv:1608.04468 (the weights, and the clipping)
    Agarwal, Zaitsev, Wang, Li, Najork, Joachims: Estimating position bias without intrusive
    interventions. WSDM 2019, arXiv:1812.05161 (the estimation, with the first rank as the pivot)

Needs numpy alone. What it cannot mend: that a hit is trusted more the higher it stands, and that
nobody can choose what was never shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Below it a propensity is taken for this: no choice counts more than twenty.
CLIP: Final = 0.05
# Pairs seen at the first rank and at another: with fewer, nothing is learnt of the other.
MIN_MOVED_PAIRS: Final = 10

# Of a principal's hash: they name the salt that it was made with.
EPOCH_BYTES: Final = 4

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


class Passage(NamedTuple):
    """A passage that was shown, as it was then."""

    document_id: str
    passage: int
    content_hash: bytes = b""
    """The beginning of its document's, to tell whether it is the same text still."""


@dataclass(frozen=True)
class Impression:
    """An answer that somebody saw."""

    query: str
    shown: tuple[Passage, ...]
    """By rank; only those that were seen."""
    chosen: Mapping[int, float | None]
    """Seconds that a hit was looked at, by its rank from 1; None where nobody knows."""
    principal: bytes = b""
    """Tells who asked from others whose hashes begin with the same `EPOCH_BYTES` bytes, which name
    the salt; empty if nobody knows."""
    source: str = ""
    """What made the answer: index version and models."""


@dataclass(frozen=True)
class Weighed:
    """A question with a passage that was chosen for it."""

    query: str
    passage: Passage
    weight: float
    """Sum of its choices, each by its inverse propensity; over all pairs 1 on average."""
    relevance: float
    """Estimated chance that it is chosen if it is examined, relative to the first rank."""
    choices: int
    seen: int
    callers: int
    """Principals that chose it at least: see `count_callers`."""
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Propensities:
    """The chance that a rank is examined, relative to the first: float64 [ranks], [0] is 1."""

    values: _Floats
    moved_pairs: _Ints
    """Pairs that were seen at each rank and at the first: int64 [ranks], [0] counts for nothing."""

    @property
    def learnt(self) -> NDArray[np.bool_]:
        """Of each rank, False if too little moved, so that one over it was assumed: bool [ranks].

        There is nothing to learn of the first.
        """
        learnt = self.moved_pairs >= MIN_MOVED_PAIRS
        learnt[:1] = True
        return learnt

    def clipped(self, clip: float = CLIP) -> _Floats:
        """What choices are divided by."""
        return np.maximum(self.values, clip)


@dataclass(frozen=True)
class _Cells:
    """How often each pair was seen and chosen at each rank: parallel arrays, a cell each."""

    pairs: list[tuple[str, Passage]]
    pair: _Ints
    rank: _Ints
    """From 0."""
    seen: _Floats
    chosen: _Floats

    @property
    def rank_count(self) -> int:
        return int(self.rank.max()) + 1 if len(self.rank) else 0

    def by_pair(self, values: _Floats) -> _Floats:
        return np.bincount(self.pair, values, minlength=len(self.pairs)).astype(np.float64)


def estimate_propensities(impressions: Sequence[Impression]) -> Propensities:
    """Estimate how likely each rank is examined, by the position-based model."""
    return _propensities(_cells(impressions))


def _propensities(cells: _Cells) -> Propensities:
    values: _Floats = 1.0 / np.arange(1, cells.rank_count + 1)
    moved = np.zeros(cells.rank_count, np.int64)
    first_seen, first_chosen = _at_rank(cells, 0)
    for rank in range(1, cells.rank_count):
        seen, chosen = _at_rank(cells, rank)
        both = (seen > 0) & (first_seen > 0)
        n, first_n = seen[both], first_seen[both]
        # What was seen often at both ranks says most: the inverse of the difference's variance.
        weight = n * first_n / (n + first_n)
        here = float((weight * chosen[both] / n).sum())
        first = float((weight * first_chosen[both] / first_n).sum())
        # Where nothing was chosen at the first rank, nothing can be told.
        moved[rank] = int(both.sum()) if first else 0
        if moved[rank] >= MIN_MOVED_PAIRS:
            values[rank] = here / first
    return Propensities(values, moved)


def _at_rank(cells: _Cells, rank: int) -> tuple[_Floats, _Floats]:
    """How often each pair was seen and chosen at a rank from 0: float64 [pairs] each."""
    there = cells.rank == rank
    return cells.by_pair(cells.seen * there), cells.by_pair(cells.chosen * there)


def weigh(
    impressions: Sequence[Impression],
    propensities: Propensities | None = None,
    *,
    clip: float = CLIP,
    min_callers: int = 1,
) -> list[Weighed]:
    """Weigh the pairs of questions and passages that were chosen, the heaviest first.

    propensities: None estimates them. clip: the smallest that a choice is divided by, above 0.
    min_callers: principals that must have chosen a pair, as `count_callers` counts them, so that no
    single one's question becomes training data, and nobody alone decides the ranking.
    """
    cells = _cells(impressions)
    divisor = (propensities or _propensities(cells)).clipped(clip)
    weights = cells.by_pair(cells.chosen / divisor[cells.rank])
    chosen, seen = cells.by_pair(cells.chosen), cells.by_pair(cells.seen)
    callers: dict[tuple[str, Passage], set[bytes]] = {}
    sources: dict[tuple[str, Passage], set[str]] = {}
    for each in impressions:
        for rank in each.chosen:
            key = each.query, each.shown[rank - 1]
            callers.setdefault(key, set()).add(each.principal)
            sources.setdefault(key, set()).add(each.source)
    kept = [
        at
        for at, key in enumerate(cells.pairs)
        if chosen[at] and count_callers(callers.get(key, ())) >= min_callers
    ]
    mean = float(weights[kept].mean()) if kept else 1.0
    kept.sort(key=lambda at: -weights[at])
    return [
        Weighed(
            query=cells.pairs[at][0],
            passage=cells.pairs[at][1],
            weight=float(weights[at] / mean),
            relevance=float(weights[at] / seen[at]),
            choices=int(chosen[at]),
            seen=int(seen[at]),
            callers=count_callers(callers[cells.pairs[at]]),
            sources=tuple(sorted(sources[cells.pairs[at]])),
        )
        for at in kept
    ]


def count_callers(principals: Collection[bytes]) -> int:
    """How many principals these are at least: the most that share a salt; 0 of none.

    The salt changes with time, and who has come back under another one is not known: over salts
    nobody is added up. One that nobody knows may be any of the others.
    """
    epochs = Counter(each[:EPOCH_BYTES] for each in set(principals) if each)
    return max(epochs.values(), default=min(1, len(principals)))


def deserving(impressions: Iterable[Impression], *, min_dwell_s: float = 0.0) -> list[Impression]:
    """Leave out what should not count.

    A choice that was looked at for less than `min_dwell_s` is none: it was a mistake. One that
    nobody timed stays. Of the answers to one question by one known principal the first of those
    given counts, so that nobody gains weight by asking again, while the salt is the same.
    """
    kept, asked = [], set()
    for each in impressions:
        if each.principal:
            if (each.principal, each.query) in asked:
                continue
            asked.add((each.principal, each.query))
        chosen = {
            rank: dwell_s
            for rank, dwell_s in each.chosen.items()
            if dwell_s is None or dwell_s >= min_dwell_s
        }
        kept.append(Impression(each.query, each.shown, chosen, each.principal, each.source))
    return kept


def as_record(pair: Weighed, positive: str) -> dict[str, Any]:
    """A line of a pair file (JSONL): `query`, `positive`, `weight`, and where they come from."""
    return {
        "query": pair.query,
        "positive": positive,
        "weight": round(pair.weight, 6),
        "source": pair.passage.document_id,
        "passage": pair.passage.passage,
        "relevance": round(pair.relevance, 6),
        "choices": pair.choices,
        "seen": pair.seen,
        "callers": pair.callers,
        "made_by": list(pair.sources),
    }


def _cells(impressions: Iterable[Impression]) -> _Cells:
    numbers: dict[tuple[str, Passage], int] = {}
    cells: dict[tuple[int, int], list[float]] = {}
    for each in impressions:
        for at, passage in enumerate(each.shown):
            pair = numbers.setdefault((each.query, passage), len(numbers))
            cell = cells.setdefault((pair, at), [0.0, 0.0])
            cell[0] += 1.0
            cell[1] += at + 1 in each.chosen
    places = np.array(list(cells), np.int64).reshape(-1, 2)
    counts = np.array(list(cells.values()), np.float64).reshape(-1, 2)
    return _Cells(list(numbers), places[:, 0], places[:, 1], counts[:, 0], counts[:, 1])
