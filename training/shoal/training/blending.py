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
# Weights within this nDCG@10 of the best are as good as it; the least of them is taken, as the more
# a score weighs, the more is staked on the questions here being like those to come.
BLEND_TOLERANCE: Final = 0.002


def gains(
    scores: Sequence[NDArray[np.float32]], questions: Sequence[Question], weight: float
) -> NDArray[np.float64]:
    """nDCG@10 of each question under dense + weight * scores: float64 [questions].

    There is one right passage to a question; one that is not among its CANDIDATES counts as 0.
    """
    found = np.zeros(len(questions))
    for number, (each, rerank) in enumerate(zip(questions, scores, strict=True)):
        order = np.argsort(-(np.asarray(each.top_dense) + weight * rerank), kind="stable")[:10]
        ranks = [rank for rank, place in enumerate(order) if each.top[place] == each.passage]
        found[number] = 1.0 / np.log2(ranks[0] + 2) if ranks else 0.0
    return found


def choose_weight(
    scores: Sequence[NDArray[np.float32]], questions: Sequence[Question]
) -> tuple[float, float]:
    """Choose the blend weight: the least that is as good as the best. Returns it, its nDCG@10."""
    found = {weight: float(gains(scores, questions, weight).mean()) for weight in BLEND_WEIGHTS}
    best = max(found.values())
    weight = min(each for each, value in found.items() if value >= best - BLEND_TOLERANCE)
    return weight, found[weight]


def pairs_of(questions: Sequence[Question], passages: Sequence[str]) -> list[tuple[str, str]]:
    """Pair each question with its CANDIDATES, in order."""
    return [(each.text, passages[found]) for each in questions for found in each.top]
