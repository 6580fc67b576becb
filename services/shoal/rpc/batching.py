"""What does a model work on next?

The queue in front of a model, without threads or clocks. Two lanes: a caller waits for what is
urgent, so it goes ahead of bulk work, which is not starved for ever. A batch is bounded by the cost
that it has once it is padded, so entries of like cost go together; the oldest is always among them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar

# Entries, from the oldest on, among which those of like cost are sought. Sorting so many takes
# less than a tenth of a millisecond.
LOOKAHEAD_COUNT: Final = 256

# Urgent batches in a row after which a bulk batch has its turn, if there is one: under a flood of
# queries bulk work keeps about a tenth of the model.
URGENT_IN_A_ROW: Final = 8


class Urgency(Enum):
    """Which lane an entry waits in."""

    URGENT = "urgent"
    BULK = "bulk"


class Entry(Protocol):
    """Something to run a model on."""

    @property
    def cost(self) -> int:
        """What it takes of a batch's bound if nothing is longer: tokens."""
        ...

    @property
    def abandoned(self) -> bool:
        """True if nobody waits for it any more."""
        ...


AnyEntry = TypeVar("AnyEntry", bound=Entry)


@dataclass(frozen=True)
class BatchBounds:
    """How large a batch may be. One entry is always taken, whatever its cost."""

    # Of the longest entry, times the number of entries: what the model computes with padding.
    max_cost: int
    # Entries.
    max_count: int
    # What starting a run costs, in the same unit: an entry shares a run only if it pads it by no
    # more than that, as a run of its own is cheaper otherwise.
    run_cost: int


class BatchQueue(Generic[AnyEntry]):
    """Entries in two lanes, taken a batch at a time. Not thread-safe."""

    def __init__(self, urgent: BatchBounds, bulk: BatchBounds) -> None:
        """Bounds for the batches of each lane: bulk batches are what an urgent entry waits for."""
        self._bounds = {Urgency.URGENT: urgent, Urgency.BULK: bulk}
        self._lanes: dict[Urgency, deque[AnyEntry]] = {each: deque() for each in Urgency}
        self._costs = dict.fromkeys(Urgency, 0)
        self._urgent_in_a_row = 0

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def cost(self, urgency: Urgency) -> int:
        """Cost of all entries that wait in a lane."""
        return self._costs[urgency]

    def push(self, urgency: Urgency, entries: Iterable[AnyEntry]) -> None:
        """Let entries wait."""
        for entry in entries:
            self._lanes[urgency].append(entry)
            self._costs[urgency] += entry.cost

    def take(self) -> list[AnyEntry]:
        """Take the next batch; empty if nothing waits."""
        for urgency in self._order():
            batch = self._take_from(urgency)
            if batch:
                urgent = urgency is Urgency.URGENT
                self._urgent_in_a_row = self._urgent_in_a_row + 1 if urgent else 0
                return batch
        return []

    def drop_abandoned(self, urgency: Urgency) -> None:
        """Forget the entries of a lane that nobody waits for: to be called when somebody leaves."""
        kept = [entry for entry in self._lanes[urgency] if not entry.abandoned]
        self._lanes[urgency] = deque(kept)
        self._costs[urgency] = sum(entry.cost for entry in kept)

    def clear(self) -> list[AnyEntry]:
        """Take everything."""
        entries = [entry for lane in self._lanes.values() for entry in lane]
        for lane in self._lanes.values():
            lane.clear()
        self._costs = dict.fromkeys(Urgency, 0)
        return entries

    def _order(self) -> tuple[Urgency, Urgency]:
        if self._urgent_in_a_row >= URGENT_IN_A_ROW:
            return Urgency.BULK, Urgency.URGENT
        return Urgency.URGENT, Urgency.BULK

    def _take_from(self, urgency: Urgency) -> list[AnyEntry]:
        lane = self._lanes[urgency]
        if not lane:
            return []
        window = list(islice(lane, LOOKAHEAD_COUNT))
        batch = _like_the_first(window, self._bounds[urgency])
        taken = set(map(id, batch))
        for _ in window:
            lane.popleft()
        lane.extendleft(entry for entry in reversed(window) if id(entry) not in taken)
        self._costs[urgency] -= sum(entry.cost for entry in batch)
        return batch


def _like_the_first(window: list[AnyEntry], bounds: BatchBounds) -> list[AnyEntry]:
    """The first entry and those nearest to it in cost, as many as the bounds allow."""
    ordered = sorted(window, key=lambda entry: entry.cost)
    costs = [entry.cost for entry in ordered]
    low = bisect_left(costs, window[0].cost)
    while ordered[low] is not window[0]:
        low += 1
    high = low + 1
    while True:
        count = high - low
        # A shorter entry is padded itself; a longer one pads all that are there.
        if low > 0 and _fits(costs[high - 1], count, costs[high - 1] - costs[low - 1], bounds):
            low -= 1
        elif high < len(costs) and _fits(
            costs[high], count, (costs[high] - costs[high - 1]) * count, bounds
        ):
            high += 1
        else:
            return ordered[low:high]


def _fits(longest: int, count: int, padding: int, bounds: BatchBounds) -> bool:
    return (
        count < bounds.max_count
        and longest * (count + 1) <= bounds.max_cost
        and padding <= bounds.run_cost
    )
