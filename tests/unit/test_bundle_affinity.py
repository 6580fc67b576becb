"""Is a passage judged by the company that it keeps?"""

from __future__ import annotations

import numpy as np
from shoal.bundle import affinities


def _unit(rows: list[list[float]]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    vectors = np.array(rows, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _near(vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> np.ndarray:  # type: ignore[type-arg]
    return vectors @ vectors.T


def test_what_resembles_the_best_is_nearest() -> None:
    vectors = _unit([[1, 0], [0.9, 0.1], [0, 1]])
    found = affinities(np.array([0.9, 0.5, 0.5], np.float32), _near(vectors))
    assert found.dtype == np.float32
    assert found[0] > found[1] > found[2]


def test_it_is_the_cosine_with_the_weighed_centre() -> None:
    rng = np.random.default_rng(5)
    vectors = _unit(rng.normal(size=(12, 8)).tolist())
    scores = rng.uniform(0.3, 0.6, 12).astype(np.float32)
    best = np.argsort(-scores)[:5]
    centre = np.exp(20.0 * (scores[best] - scores.max())) @ vectors[best]
    expected = vectors @ (centre / np.linalg.norm(centre))
    np.testing.assert_allclose(affinities(scores, _near(vectors)), expected, atol=1e-5)


def test_one_far_above_the_others_is_the_centre() -> None:
    vectors = _unit([[1, 0], [0.6, 0.8], [0.5, 0.86]])
    found = affinities(np.array([0.9, 0.2, 0.2], np.float32), _near(vectors))
    np.testing.assert_allclose(found, vectors @ vectors[0], atol=1e-4)


def test_few_passages_and_vectors_that_cancel_out_are_no_trouble() -> None:
    assert affinities(np.array([0.3], np.float32), np.ones((1, 1), np.float32)).tolist() == [1.0]
    opposed = np.array([[1, -1], [-1, 1]], np.float32)
    assert np.isfinite(affinities(np.zeros(2, np.float32), opposed)).all()
