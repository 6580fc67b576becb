"""When may a call be made a second time because the first is slow?

After the target's own recent 95th percentile, and only as often as a token bucket allows: every
call pays in a fraction of a token, a hedge takes out a whole one (Dean and Barroso, The Tail at
Scale, 2013).
"""

from __future__ import annotations

from typing import Final

BURST: Final = 10.0


class HedgeBudget:
    """A bucket of tokens."""

    def __init__(self, ratio: float) -> None:
        """ratio: hedges per call, over time."""
        self._ratio = ratio
        self._tokens = 1.0 if ratio > 0 else 0.0

    def paid(self) -> None:
        """A call was made."""
        self._tokens = min(self._tokens + self._ratio, BURST)

    def take(self) -> bool:
        """Take a token, if there is one."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
