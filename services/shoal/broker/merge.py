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
class Candidates:
    """Candidates of one query, best first."""

    row_ids: NDArray[np.uint64]
    scores: NDArray[np.float32]
    shards: NDArray[np.uint32]
    sources: NDArray[np.intp]
    """Which of the merged lists each came from."""
    hits: Sequence[Hit | None]
    """The hits that they become, as far as those came along."""

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
        )


def merge(lists: Sequence[CandidateList], top_k: int) -> Candidates:
    """Merge lists, each best first: the same as sorting all of them; ties by row id."""
    row_ids = _join([each.row_ids for each in lists], UINT64)
    scores = _join([each.scores for each in lists], FLOAT32)
    shards = _join([each.shards for each in lists], UINT32)
    counts = [len(each.row_ids) // UINT64.itemsize for each in lists]
    sources = np.repeat(np.arange(len(lists)), counts)
    hits: list[Hit | None] = []
    for each, count in zip(lists, counts, strict=True):
        hits += each.hits if len(each.hits) == count else [None] * count
    if len(lists) == 1:  # It is in order.
        end = slice(top_k)
        return Candidates(row_ids[end], scores[end], shards[end], sources[end], hits[end])
    order = np.lexsort((row_ids, -scores))[:top_k]
    return Candidates(
        row_ids[order],
        scores[order],
        shards[order],
        sources[order],
        [hits[position] for position in order],
    )


def _join(parts: Sequence[bytes], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), dtype=dtype)
