"""How much does the reranker's score weigh beside the dense one?

Both are summed: score = dense + weight * rerank. The dense score stays in, because it is
known to carry over to texts unlike those that the reranker was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.training.negatives import Question

BLEND_WEIGHTS: Final = tuple(round(0.005 * step, 3) for step in range(1, 41))
# Among weights as good as the best within this nDCG, the least is taken: the dense score is what is
# known to carry over to texts unlike Debian's.
BLEND_TOLERANCE: Final = 0.002


def ndcg(
    scores: Sequence[NDArray[np.float32]], questions: Sequence[Question], weight: float
) -> float:
    """Mean nDCG@10 of dense + weight * scores over each question's CANDIDATES.

    There is one right passage to a question; one that is not among them counts as 0.
    """
    gains = []
    for each, rerank in zip(questions, scores, strict=True):
        order = np.argsort(-(np.asarray(each.top_dense) + weight * rerank), kind="stable")[:10]
        ranks = [rank for rank, place in enumerate(order) if each.top[place] == each.passage]
        gains.append(1.0 / float(np.log2(ranks[0] + 2)) if ranks else 0.0)
    return float(np.mean(gains))


def choose_weight(
    scores: Sequence[NDArray[np.float32]], questions: Sequence[Question]
) -> tuple[float, float]:
    """Choose the blend weight: the least that is as good as the best. Returns it and its nDCG."""
    found = {weight: ndcg(scores, questions, weight) for weight in BLEND_WEIGHTS}
    best = max(found.values())
    weight = min(each for each, value in found.items() if value >= best - BLEND_TOLERANCE)
    return weight, found[weight]


def pairs_of(questions: Sequence[Question], passages: Sequence[str]) -> list[tuple[str, str]]:
    """Pair each question with its CANDIDATES, in order."""
    return [(each.text, passages[found]) for each in questions for found in each.top]
