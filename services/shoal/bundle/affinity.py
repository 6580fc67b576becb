"""How near is a passage to the best ones?

Passages that answer one question resemble one another (the cluster hypothesis: van Rijsbergen,
1979). So a passage may be judged by the company that it keeps: by the inner product of its vector
with the centre of the best ones' vectors, each weighing by how good it is. That is pseudo-relevance
feedback after Rocchio (1971), on vectors (Li et al. 2021, arXiv:2108.11044), confined to candidates
that are there already: no second search, and nothing for a model to read. Where one passage is far
better than all others, it is the centre by itself, and stays first.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

# Passages that make the centre.
BEST: Final = 5
# A passage that scores 1 / SHARPNESS less than the best weighs a third as much (1 / e). Scores are
# in the range of inner products of unit vectors.
SHARPNESS: Final = 20.0
_TINY: Final = 1e-12


def affinities(
    scores: NDArray[np.float32], similarities: NDArray[np.float32]
) -> NDArray[np.float32]:
    """How near each of one question's passages is to the best ones: float32 [count], at most 1.

    scores: float32 [count], higher is better. similarities: inner products of the passages' unit
    vectors with one another, float32 [count, count].
    """
    best = np.argsort(-scores, kind="stable")[:BEST]
    weights = np.exp(SHARPNESS * (scores[best] - scores[best[:1]]))
    length = np.sqrt(max(float(weights @ similarities[np.ix_(best, best)] @ weights), 0.0))
    return np.asarray(similarities[:, best] @ weights / max(length, _TINY), dtype=np.float32)
