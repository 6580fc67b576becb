"""Are a question's passages ordered by all that is known of them?"""

from __future__ import annotations

import numpy as np
from shoal.bundle import BlendCard, blend_scores

CARD = BlendCard(weight=0.1, affinity=0.2, chosen_on="nothing")
FIRST = np.array([0.9, 0.8, 0.7, 0.65, 0.4], np.float32)
NAN = np.nan


def test_what_is_read_is_summed_by_weight() -> None:
    read = np.array([1, 2, 3, -4, 0], np.float32)
    np.testing.assert_allclose(blend_scores(CARD, read, FIRST), FIRST + 0.1 * read, rtol=1e-6)


def test_the_unread_are_no_better_than_the_worst_that_was_read() -> None:
    read = np.array([1, -2.5, NAN, NAN, NAN], np.float32)
    np.testing.assert_allclose(blend_scores(CARD, read, FIRST), [1.0, 0.55, 0.55, 0.55, 0.4])


def test_company_tells_the_unread_apart() -> None:
    read = np.array([1, -8, NAN, NAN, NAN], np.float32)
    near = np.eye(5, dtype=np.float32)
    near[0, 3] = near[3, 0] = 0.9
    scores = blend_scores(CARD, read, FIRST, near)
    assert np.argsort(-scores, kind="stable").tolist()[:2] == [0, 3]


def test_the_unread_stay_where_they_are_if_that_is_below() -> None:
    read = np.array([1, 2, NAN, NAN, NAN], np.float32)
    np.testing.assert_array_equal(blend_scores(CARD, read, FIRST)[2:], FIRST[2:])
    unread = np.full(5, NAN, np.float32)
    np.testing.assert_array_equal(blend_scores(CARD, unread, FIRST), FIRST)


def test_company_tells_those_apart_that_are_as_good() -> None:
    first = np.array([0.9, 0.5, 0.5], np.float32)
    near = np.eye(3, dtype=np.float32)
    near[0, 2] = near[2, 0] = 0.9
    scores = blend_scores(CARD, np.zeros(3, np.float32), first, near)
    assert scores[0] > scores[2] > scores[1]
    assert (scores <= first + 1e-6).all()
    alone = blend_scores(CARD, np.zeros(1, np.float32), first[:1], near[:1, :1])
    np.testing.assert_array_equal(alone, first[:1])
