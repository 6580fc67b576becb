"""How do candidates from several places become one ranking?

Scores never increase along a ranking, and equal scores stand in the order of their row ids, so that
the same state gives the same answer however it is divided into shards.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

MISSING_SCORE: Final = np.float32(-np.inf)


def best(scores: NDArray[np.float32], row_ids: NDArray[np.uint64], count: int) -> NDArray[np.int64]:
    """Choose the `count` best of each row, best first: column numbers [n, <= count].

    scores, row_ids: [n, m]; a missing candidate has the score -inf.
    """
    order: NDArray[np.int64] = np.lexsort((row_ids, -scores), axis=-1)[:, :count]
    return order


def likeliest(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Choose the `count` best of each row, in no order: column numbers [n, <= count]."""
    if scores.shape[1] <= count:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    chosen: NDArray[np.int64] = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    return chosen
