"""How is a caller's deadline divided over the stages?

A stage may use up to its share of what remains when it begins; what it leaves is for those after
it. Encoding and searching are worth waiting for, as there is no answer without them; reranking gets
what is left, and does less, or nothing, if that is too little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shoal.rpc.deadline import Deadline

ENCODE_SHARE: Final = 0.6
SEARCH_SHARE: Final = 0.8
FETCH_SHARE: Final = 0.8
# The answer must still be built and sent.
RESERVE_S: Final = 0.005
RERANK_SHARE: Final = 0.9
_SMOOTHING_UP: Final = 0.1
_SMOOTHING_DOWN: Final = 0.5
# What seemed too dear a hundred times is tried again at a third of the guess.
_FORGETTING: Final = 0.01


@dataclass(frozen=True)
class Budget:
    """What a search may spend."""

    deadline: Deadline

    def encode(self) -> Deadline:
        """When the query must be encoded."""
        return self.deadline.share(ENCODE_SHARE)

    def search(self) -> Deadline:
        """When the candidates must be there."""
        return self.deadline.share(SEARCH_SHARE)

    def fetch(self) -> Deadline:
        """When the text must be there."""
        return self.deadline.share(FETCH_SHARE)

    def rerank(self, patience_s: float) -> Deadline:
        """When the reranker must have answered: `patience_s` from now at the latest."""
        spendable_s = self.deadline.budget_s - RESERVE_S
        within_s = min(patience_s, self.deadline.budget_s * RERANK_SHARE, spendable_s)
        return Deadline.after(within_s, self.deadline.clock)


class RerankCost:
    """What reranking has cost of late, to say how many candidates fit into a budget."""

    def __init__(self) -> None:
        """Begin with a guess."""
        self._base_s = 0.005
        self._per_candidate_s = 0.0005
        # Of a question; unknown until a reranker says.
        self._most_read: int | None = None

    def observed(self, count: int, duration_s: float, read: int | None = None) -> None:
        """Take note of a call for `count` candidates.

        read: how many of them the reranker read; None if it did not answer. Only these cost.
        """
        if read is not None:
            # Fewer than there were: it reads no more of any.
            self._most_read = read if read < count else self._most_read
            count = read
        elif self._most_read is not None:
            count = min(count, self._most_read)
        per_candidate_s = max(duration_s - self._base_s, 0.0) / max(count, 1)
        # A call's time includes its wait behind others, which is over as soon as they are: good
        # news is believed at once, bad news bit by bit.
        better = per_candidate_s < self._per_candidate_s
        weight = _SMOOTHING_DOWN if better else _SMOOTHING_UP
        self._per_candidate_s += weight * (per_candidate_s - self._per_candidate_s)

    def affordable(self, wanted: int, budget_s: float) -> int:
        """How many of `wanted` candidates can be reranked in `budget_s` seconds.

        A guess that leads to no call would never be corrected: it is forgotten bit by bit.
        """
        fits = int((budget_s - self._base_s) / max(self._per_candidate_s, 1e-6))
        if fits <= 0 and budget_s > self._base_s:
            self._per_candidate_s *= 1.0 - _FORGETTING
        if self._most_read is not None and fits >= self._most_read:
            return wanted
        return max(0, min(wanted, fits))
