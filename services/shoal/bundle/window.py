"""Which part of a passage does a reranker read?

A pair costs as many tokens as it has, and what answers a question mostly stands close together. So
of a long passage only one window is read: the one that holds most of the question's tokens, the
rare ones above all. How rare a token is, is taken from its number: vocabularies of subwords are
ordered by how often their tokens occur.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Windows begin at every such part of their width.
STEPS: Final = 4
# A token that comes again counts so much of itself for each doubling.
AGAIN: Final = 0.2
# Numbers below this are those of special tokens, punctuation and single characters, in BERT's
# vocabulary; elsewhere the most frequent words. They say little.
_FIRST_WORD: Final = 1996
_FREQUENT: Final = 0.2


def best_window(
    question: Sequence[int] | NDArray[np.int32], passage: NDArray[np.int32], width: int
) -> NDArray[np.int32]:
    """The `width` tokens of a passage that hold most of the question; all if there are no more.

    question: token ids. passage: token ids, int32 [tokens]. The first of equally good windows.
    """
    if len(passage) <= width:
        return passage
    wanted = np.unique(np.asarray(question, dtype=np.int32))
    wanted = wanted[wanted >= _FIRST_WORD]
    step = max(1, width // STEPS)
    starts = np.append(np.arange(0, len(passage) - width, step), len(passage) - width)
    # Occurrences of each wanted token up to each position: int32 [wanted, tokens + 1].
    counted = np.zeros((len(wanted), len(passage) + 1), dtype=np.int32)
    np.cumsum(wanted[:, None] == passage[None, :], axis=1, out=counted[:, 1:])
    inside = counted[:, starts + width] - counted[:, starts]
    worth = np.where(inside > 0, 1.0 + AGAIN * np.log1p(np.maximum(inside, 1)), 0.0)
    start = int(starts[np.argmax(_says(wanted) @ worth)])
    return passage[start : start + width]


def _says(tokens: NDArray[np.int32]) -> NDArray[np.float64]:
    """How much each token says: float64 [tokens], rising with its rarity."""
    return _FREQUENT + np.log1p(tokens - _FIRST_WORD)
