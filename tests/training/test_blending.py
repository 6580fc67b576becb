"""Is the blend weight chosen with care, on what ranks best?"""

from __future__ import annotations

import numpy as np
import pytest
from shoal.training.blending import BLEND_WEIGHTS, choose_weight, gains, pairs_of
from shoal.training.negatives import Question


def _question(right: int, dense: tuple[float, ...]) -> Question:
    top = tuple(range(len(dense)))
    return Question("q", right, dense[right], top, dense, (), ())


def test_the_least_weight_that_does_is_chosen() -> None:
    # The right passage stands second by 0.105, and the reranker puts it 2 ahead.
    questions = [_question(1, (0.6, 0.495, 0.1)), _question(0, (0.6, 0.1, 0.1))] * 10
    scores = [np.array([0.0, 2.0, 0.0], np.float32), np.array([1.0, 0.0, 0.0], np.float32)] * 10
    assert gains(scores, questions, 0.0) == pytest.approx([1.0 / np.log2(3), 1.0] * 10)
    weight, value = choose_weight(scores, questions)
    assert value == 1.0
    assert weight == min(each for each in BLEND_WEIGHTS if 2.0 * each > 0.105)


def test_a_right_passage_that_was_not_found_counts_as_nothing() -> None:
    missing = Question("q", 9, 0.1, (0, 1), (0.5, 0.4), (), ())
    assert gains([np.zeros(2, np.float32)], [missing], 0.0) == [0.0]


def test_pairs_follow_the_candidates() -> None:
    assert pairs_of([_question(1, (0.6, 0.5))], ["a", "b"]) == [("q", "a"), ("q", "b")]
