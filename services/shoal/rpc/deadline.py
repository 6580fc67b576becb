"""How long may this still take?

A deadline is an absolute time on the monotonic clock; a budget is what remains of it. The caller's
gRPC deadline is passed down on every internal call, so that nobody works for a caller who has left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import grpc

# For callers who set no deadline: a search that takes longer than this has lost its reader.
DEFAULT_BUDGET_S: Final = 30.0


@dataclass(frozen=True)
class Deadline:
    """A moment on a monotonic clock, in seconds."""

    at_s: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, budget_s: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """The moment that lies `budget_s` from now."""
        return cls(clock() + budget_s, clock)

    @classmethod
    def of(
        cls, context: grpc.aio.ServicerContext[Any, Any], default_s: float = DEFAULT_BUDGET_S
    ) -> Deadline:
        """The caller's deadline, or `default_s` from now if the caller set none."""
        # The type stubs know no None.
        remaining_s = cast("float | None", context.time_remaining())
        # gRPC reports "no deadline" as None, or as centuries, depending on the release.
        if remaining_s is None or remaining_s > 86_400:
            remaining_s = default_s
        return cls.after(remaining_s)

    @property
    def budget_s(self) -> float:
        """Seconds that remain; never negative."""
        return max(0.0, self.at_s - self.clock())

    @property
    def passed(self) -> bool:
        """True once nothing remains."""
        return self.budget_s <= 0.0

    def within(self, budget_s: float) -> Deadline:
        """`budget_s` from now, or the same deadline if that is sooner."""
        return Deadline(min(self.at_s, self.clock() + budget_s), self.clock)

    def share(self, fraction: float) -> Deadline:
        """The moment at which `fraction` of what remains now will be spent."""
        return Deadline(self.clock() + self.budget_s * fraction, self.clock)

    def timeout(self) -> asyncio.Timeout:
        """A context in which waiting raises TimeoutError once the deadline has passed."""
        return asyncio.timeout(self.budget_s)
