"""Which candidates of several shard servers are the best?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shoal.internal.v1.shard_pb2 import CandidateList
from shoal.rpc.arrays import FLOAT32, UINT32, UINT64
from shoal.v1.search_pb2 import Hit


@dataclass(frozen=True)
class Lexical:
    """What the words say of candidates: arrays of the same order."""

    # BM25; 0 for one without a word of the question.
    scores: NDArray[np.float32]
    # Of words and vectors together.
    fused: NDArray[np.float32]
    # Ranks in each kind alone, from 1; 0 for one that is not among the best of that kind.
    dense_ranks: NDArray[np.int64]
    lexical_ranks: NDArray[np.int64]

    def at(self, chosen: NDArray[np.intp]) -> Lexical:
        """Those at some positions."""
        return Lexical(
            self.scores[chosen],
            self.fused[chosen],
            self.dense_ranks[chosen],
            self.lexical_ranks[chosen],
        )


@dataclass(frozen=True)
class Candidates:
    """Candidates of one query, best first."""

    row_ids: NDArray[np.uint64]
    scores: NDArray[np.float32]
    shards: NDArray[np.uint32]
    sources: NDArray[np.intp]
    """Which of the merged lists each came from."""
    hits: Sequence[Hit | None]
    """The hits that they become, as far as those came along."""
    lexical: Lexical | None = None
    """None if only vectors were looked at."""

    def __len__(self) -> int:
        return len(self.row_ids)

    def unread(self) -> Candidates:
        """The same without their hits, which are to be read with more in them."""
        return replace(self, hits=[None] * len(self))

    def at(self, positions: Sequence[int]) -> Candidates:
        """Those at some positions."""
        chosen = np.asarray(positions, dtype=np.intp)
        return Candidates(
            self.row_ids[chosen],
            self.scores[chosen],
            self.shards[chosen],
            self.sources[chosen],
            [self.hits[position] for position in positions],
            None if self.lexical is None else self.lexical.at(chosen),
        )


def merge(lists: Sequence[CandidateList], top_k: int) -> Candidates:
    """Merge lists, each best first: the same as sorting all of them; ties by row id."""
    every = joined(lists)
    if len(lists) == 1:  # It is in order.
        return every if len(every) <= top_k else every.at(range(top_k))
    return every.at(np.lexsort((every.row_ids, -every.scores))[:top_k].tolist())


def joined(lists: Sequence[CandidateList]) -> Candidates:
    """The candidates of all lists, one list after another; with lexical scores if all have them."""
    row_ids = _join([each.row_ids for each in lists], UINT64)
    counts = [len(each.row_ids) // UINT64.itemsize for each in lists]
    hits: list[Hit | None] = []
    for each, count in zip(lists, counts, strict=True):
        hits += each.hits if len(each.hits) == count else [None] * count
    lexical = None
    if have_words(lists):
        words = _join([each.lexical_scores for each in lists], FLOAT32)
        unknown = np.zeros(len(words), dtype=np.int64)
        lexical = Lexical(words, words, unknown, unknown)
    return Candidates(
        row_ids,
        _join([each.scores for each in lists], FLOAT32),
        _join([each.shards for each in lists], UINT32),
        np.repeat(np.arange(len(lists)), counts),
        hits,
        lexical,
    )


def have_words(lists: Sequence[CandidateList]) -> bool:
    """True if every list has lexical scores of all its candidates."""
    widths = (FLOAT32.itemsize, UINT64.itemsize)
    return any(each.lexical_scores for each in lists) and all(
        len(each.lexical_scores) // widths[0] == len(each.row_ids) // widths[1] for each in lists
    )


def _join(parts: Sequence[bytes], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), dtype=dtype)
