"""How good are the answers to the queries that are really asked?

A window of live queries is kept for each version of an index. Every check searches all of them
again in the shards' present state, exactly and as they are served: so that the numbers of one check
belong together, whatever has been written or re-tuned since the queries were asked, and nothing of
a past state has to be kept.

Pure: what is searched, and when, is up to `shoal.shard.exact_check` and `shoal.shard.recall_watch`.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Standard errors on either side: a true mean lies beyond one side once in twenty times.
_SURE: Final = 1.645
# Queries that want more are not kept: nobody reads so many, and exact search keeps them all.
MAX_TOP_K: Final = 100


class SampledQuery(NamedTuple):
    """A query that was asked."""

    # float32 [dimension]
    vector: NDArray[np.float32]
    top_k: int


class QueryWindow:
    """The last queries that were chosen.

    All are chosen until the window is full, so that recall is soon known after a start; then a
    share of them, each of which takes the place of the oldest. Any thread may call.
    """

    def __init__(self, capacity: int, share: float, random: Random) -> None:
        """capacity: queries that are kept. share: of all queries, 0 to 1; 0 keeps none."""
        self._kept: deque[SampledQuery] = deque(maxlen=capacity)
        self._share, self._random = share, random
        self._lock = threading.Lock()
        # Queries that are let go by before the next one is kept: a comparison for most calls.
        self._gap = 0
        self.added_count = 0
        """Queries that were ever kept."""

    def __len__(self) -> int:
        """Queries that are kept now."""
        return len(self._kept)

    def offer(self, queries: NDArray[np.float32], top_ks: Sequence[int]) -> None:
        """Let some of a call's queries be chosen: float32 [n, dimension], and what each wants.

        Only such as are searched in all passages: a filter's survivors are not compared with.
        """
        if self._share == 0:
            return
        with self._lock:
            at = self._gap
            while at < len(queries):
                if top_ks[at] <= MAX_TOP_K:
                    # A copy, as the array lies in the call's message.
                    self._kept.append(SampledQuery(queries[at].copy(), top_ks[at]))
                    self.added_count += 1
                at += 1 + self._next_gap()
            self._gap = at - len(queries)

    def _next_gap(self) -> int:
        if self._share == 1 or len(self._kept) < (self._kept.maxlen or 0):
            return 0
        return int(math.log(1.0 - self._random.random()) / math.log1p(-self._share))

    def queries(self) -> list[SampledQuery]:
        """Those that are kept now, oldest first."""
        with self._lock:
            return list(self._kept)


@dataclass(frozen=True)
class Estimate:
    """A mean, and how far it may be from the truth."""

    mean: float
    # Half of an interval that holds the true mean nine times in ten.
    half_width: float
    query_count: int

    @classmethod
    def of(cls, recalls: NDArray[np.float64]) -> Estimate:
        """Estimate from the recall of each query; at least one."""
        count = len(recalls)
        spread = float(recalls.std(ddof=1)) if count > 1 else 1.0
        return cls(float(recalls.mean()), _SURE * spread / math.sqrt(count), count)

    @property
    def lower(self) -> float:
        """The true mean is less once in twenty times."""
        return max(0.0, self.mean - self.half_width)

    @property
    def upper(self) -> float:
        """The true mean is more once in twenty times."""
        return min(1.0, self.mean + self.half_width)


class ShardRecall(NamedTuple):
    """The recall of one shard: of its passages among the true neighbours, how many were found."""

    recall: float
    # Queries that had a true neighbour in it.
    query_count: int
    # True neighbours in it, of all queries.
    neighbour_count: int


@dataclass(frozen=True)
class Outcome:
    """What was found of what should have been, by query and shard: int64 [queries, shards]."""

    expected: NDArray[np.int64]
    found: NDArray[np.int64]

    def estimate(self) -> Estimate | None:
        """Recall over all shards; None if there was nothing to be found."""
        wanted = self.expected.sum(axis=1)
        asked = wanted > 0
        if not asked.any():
            return None
        return Estimate.of(self.found.sum(axis=1)[asked] / wanted[asked])

    def by_shard(self, numbers: Sequence[int]) -> dict[int, ShardRecall]:
        """Recall of each shard, by its number; a shard without any true neighbour is left out."""
        wanted, found = self.expected.sum(axis=0), self.found.sum(axis=0)
        counts = (self.expected > 0).sum(axis=0)
        return {
            number: ShardRecall(float(found[at] / wanted[at]), int(counts[at]), int(wanted[at]))
            for at, number in enumerate(numbers)
            if wanted[at]
        }


@dataclass(eq=False)
class LiveRecall:
    """What a layout knows of its live queries. Each attribute is replaced as a whole."""

    # Shared by all layouts of one version of the index.
    window: QueryWindow
    # Times as hard as the codebook's measured parameters that it is searched. Not stored: a server
    # that starts again learns it from its first queries, all of which are chosen.
    effort: float = 1.0
    # Since when it is searched harder than measured, as it is shown. Empty if it is not.
    since: str = ""
    # By the last check.
    shards: Mapping[int, ShardRecall] = field(default_factory=dict)
    # What an operator has to know of it. Empty if all is well.
    alert: str = ""
    # True while a check is under way or waits for its turn.
    busy: bool = False
    # Monotonic time before which there is no other check, and what was in the window at the last.
    next_s: float = float("-inf")
    checked_count: int = 0

    def successor(self) -> LiveRecall:
        """For another layout of the same version: what was learnt holds there too."""
        return LiveRecall(self.window, self.effort, self.since)
