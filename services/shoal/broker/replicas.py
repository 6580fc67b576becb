"""Which of several instances should get the next call?

Of two drawn at random, the one that is likely to answer first (the power of two choices,
Mitzenmacher 2001): fewer calls under way, times how long they took of late. One that failed rests
for a moment, longer each time, and is only called while it rests if nobody else is left.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

# A time before any other on the clock.
NEVER_S: Final = float("-inf")
FIRST_REST_S: Final = 0.1
LONGEST_REST_S: Final = 2.0
# Weight of the newest call in the averages: about the last twenty calls count.
_SMOOTHING: Final = 0.05
# A call that took so many times the slow end of its instance's calls is not slow, but lost.
_LOST_FACTOR: Final = 10.0


@dataclass
class Health:
    """What is known of an instance from its calls."""

    in_flight: int = 0
    latency_s: float = 0.005
    """Smoothed time of a call."""
    slow_s: float = 0.02
    """About the 95th percentile of it."""
    failures: int = 0
    rests_until_s: float = 0.0
    down_since_s: float = NEVER_S
    """When the first of the latest failures in a row was; NEVER_S while it answers."""
    busy_since_s: float = 0.0
    """Since when it has had calls under way without answering any."""

    @property
    def lost_s(self) -> float:
        """After so long a call is taken for lost."""
        return _LOST_FACTOR * self.slow_s

    def started(self, now_s: float) -> None:
        """A call was made."""
        if self.in_flight == 0:
            self.busy_since_s = now_s
        self.in_flight += 1

    def succeeded(self, duration_s: float, now_s: float) -> None:
        """A call was answered."""
        self.refused(now_s)
        self.failures = 0
        self.rests_until_s = 0.0
        self.down_since_s = NEVER_S
        self.latency_s += _SMOOTHING * (duration_s - self.latency_s)
        # A quantile by stochastic approximation: 19 small steps down balance one up.
        step_s = max(self.latency_s, 0.001) * _SMOOTHING
        self.slow_s += 0.95 * step_s if duration_s > self.slow_s else -0.05 * step_s
        self.slow_s = max(self.slow_s, self.latency_s)

    def failed(self, now_s: float) -> None:
        """A call failed: rest."""
        if self.down_since_s == NEVER_S:
            self.down_since_s = now_s
        self._rest(now_s)

    def _rest(self, now_s: float) -> None:
        self.in_flight -= 1
        rest_s = min(FIRST_REST_S * 2.0**self.failures, LONGEST_REST_S)
        self.failures = min(self.failures + 1, 10)
        self.rests_until_s = now_s + rest_s

    def refused(self, now_s: float) -> None:
        """A call was answered with an error of the caller's."""
        self.in_flight -= 1
        self.busy_since_s = now_s

    def abandoned(self, waited_s: float, now_s: float) -> None:
        """A call was cancelled, or ran out of time: nobody's fault, unless it took for ever."""
        if waited_s >= self.lost_s:
            self._rest(now_s)  # Slow beyond bounds, but not known to be away.
        else:
            self.in_flight -= 1

    def shunned(self, now_s: float) -> bool:
        """True if it failed more than once in a row, and rests or is being tried again."""
        return self.failures > 1 and (self.rests_until_s > now_s or self.in_flight > 0)

    def cost(self, now_s: float) -> float:
        """How long the next call is likely to take: long, if those under way seem stuck."""
        stuck_s = now_s - self.busy_since_s if self.in_flight else 0.0
        return (self.in_flight + 1) * max(self.latency_s, stuck_s)


class HasHealth(Protocol):
    """Something that can be called."""

    @property
    def health(self) -> Health:
        """What is known of it."""
        ...


Choice = TypeVar("Choice", bound=HasHealth)


class Chooser:
    """Chooses among instances. Clock and randomness are given, so that it can be simulated."""

    def __init__(self, clock: Callable[[], float], seed: int | None = None) -> None:
        """clock: monotonic seconds."""
        self._clock = clock
        self._random = random.Random(seed)

    def choose(self, among: Sequence[Choice]) -> Choice | None:
        """Choose one; None of none."""
        if len(among) <= 1:
            return among[0] if among else None
        now_s = self._clock()
        awake = [each for each in among if each.health.rests_until_s <= now_s]
        if not awake:
            return min(among, key=lambda each: each.health.rests_until_s)
        if len(awake) == 1:
            return awake[0]
        return min(self._random.sample(awake, 2), key=lambda each: each.health.cost(now_s))
