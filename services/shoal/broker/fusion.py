"""How do a ranking by vectors and one by words become one?

Every candidate comes with both scores, whichever way it was found. Convex combination: the scores of
each kind are brought to 0 to 1, by the least and the greatest of that kind's best candidates, and
summed by weight; what lies below them counts as the least. Reciprocal rank (Cormack, Clarke and
Büttcher, 2009) looks at the ranks alone. Both are pure functions of the candidates of all shards
together, so that a division into shards changes nothing.

The fused score is brought back to the range of the inner products, so that it means for whoever reads
it next, a reranker's blend above all, what a dense score does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.broker.merge import Candidates, Lexical, joined
from shoal.internal.v1.shard_pb2 import CandidateList
from shoal.v1.search_pb2 import Fusion

# Of reciprocal rank: how little the first ranks differ. The value of its authors.
RANK_OFFSET: Final = 60.0
# Range of the inner products that is taken where they hardly differ: the words then decide.
_MIN_RANGE: Final = 1e-3


@dataclass(frozen=True)
class HybridPlan:
    """How a search is to be fused."""

    # 0 to 1.
    lexical_weight: float
    fusion: Fusion.ValueType
    # Candidates of either kind.
    candidate_count: int

    @property
    def only_words(self) -> bool:
        """True if what shares no word with the question is left out."""
        return self.lexical_weight == 1.0


def fuse(lists: Sequence[CandidateList], plan: HybridPlan, depth: int, top_k: int) -> Candidates:
    """Rank candidates of several lists, each of which has lexical scores; the best `top_k`.

    depth: candidates of either kind that take part, as many as each list was asked for.
    """
    every = joined(lists)
    assert every.lexical is not None
    words = every.lexical.scores
    dense_ranks = _ranks(every.scores, every.row_ids, depth)
    lexical_ranks = _ranks(words, every.row_ids, depth, words > 0)
    taking_part = (dense_ranks > 0) | (lexical_ranks > 0)
    if plan.only_words:
        taking_part = lexical_ranks > 0
    places = np.flatnonzero(taking_part)
    scores = _fused(
        plan, every.scores[places], words[places], dense_ranks[places], lexical_ranks[places]
    )
    order = np.lexsort((every.row_ids[places], -scores))[:top_k]
    chosen = every.at(places[order].tolist())
    return Candidates(
        chosen.row_ids,
        chosen.scores,
        chosen.shards,
        chosen.sources,
        chosen.hits,
        Lexical(
            words[places[order]],
            scores[order],
            dense_ranks[places[order]],
            lexical_ranks[places[order]],
        ),
    )


def _ranks(
    scores: NDArray[np.float32],
    row_ids: NDArray[np.uint64],
    depth: int,
    wanted: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Ranks from 1 of the best `depth` that are wanted; 0 for all others."""
    order = np.lexsort((row_ids, -scores))
    if wanted is not None:
        order = order[wanted[order]]
    ranks = np.zeros(len(scores), dtype=np.int64)
    best = order[:depth]
    ranks[best] = np.arange(1, len(best) + 1)
    return ranks


def _fused(
    plan: HybridPlan,
    dense: NDArray[np.float32],
    lexical: NDArray[np.float32],
    dense_ranks: NDArray[np.int64],
    lexical_ranks: NDArray[np.int64],
) -> NDArray[np.float32]:
    """The fused score of each candidate, in the range of the dense ones."""
    weight = plan.lexical_weight
    by_vector, by_words = dense[dense_ranks > 0], lexical[lexical_ranks > 0]
    if plan.fusion == Fusion.FUSION_RECIPROCAL_RANK:
        first = 1.0 / (RANK_OFFSET + 1.0)
        ranked = (1.0 - weight) * _reciprocal(dense_ranks) + weight * _reciprocal(lexical_ranks)
        summed = ranked / first
    else:
        summed = (1.0 - weight) * _scaled(dense, by_vector) + weight * _scaled(lexical, by_words)
    if len(by_vector) == 0:
        return summed.astype(np.float32)
    least, greatest = float(by_vector.min()), float(by_vector.max())
    return (least + summed * max(greatest - least, _MIN_RANGE)).astype(np.float32)


def _reciprocal(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(ranks > 0, 1.0 / (RANK_OFFSET + ranks), 0.0)


def _scaled(values: NDArray[np.float32], best: NDArray[np.float32]) -> NDArray[np.float64]:
    """Bring values to 0 to 1 by the least and the greatest of the best."""
    if len(best) == 0:
        return np.zeros(len(values))
    least, greatest = float(best.min()), float(best.max())
    if greatest == least:
        return (values >= least).astype(np.float64)
    return np.clip((values.astype(np.float64) - least) / (greatest - least), 0.0, 1.0)
