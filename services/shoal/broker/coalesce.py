"""How do concurrent queries share a call?

While a call to a target is under way, queries for it gather; the next call takes them all, up to a
bound. An idle target adds no wait, a busy one batches by itself, and there is no window to tune.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from shoal.rpc.deadline import Deadline

Item = TypeVar("Item")
Result = TypeVar("Result")

Call = Callable[[Sequence[Item], float], Awaitable[Sequence[Result]]]


def _weightless(item: object) -> int:
    del item
    return 0


@dataclass(eq=False)
class _Entry(Generic[Item, Result]):
    item: Item
    deadline: Deadline
    future: asyncio.Future[Result]
    batch: _Batch[Item, Result] | None = None


@dataclass(eq=False)
class _Batch(Generic[Item, Result]):
    entries: list[_Entry[Item, Result]]
    waiting: int
    task: asyncio.Task[None] | None = field(default=None)
    in_flight: bool = True


class Coalescer(Generic[Item, Result]):
    """Gathers items for one target into calls.

    A member whose deadline passes, or whose caller leaves, does not disturb the others; a call that
    everybody has left is cancelled. A call's deadline is the latest of its members'.
    """

    def __init__(
        self,
        call: Call[Item, Result],
        *,
        max_count: int,
        max_in_flight: int = 1,
        weigh: Callable[[Item], int] = _weightless,
        max_weight: int = 0,
    ) -> None:
        """call: takes items and the seconds left, returns one result an item, in order.

        weigh: what an item adds to its call's answer. Items share a call up to `max_weight`; one
        that weighs more goes alone.
        """
        self._call, self._max_count, self._max_in_flight = call, max_count, max_in_flight
        self._weigh, self._max_weight = weigh, max_weight
        self._pending: deque[_Entry[Item, Result]] = deque()
        self._in_flight = 0

    async def submit(self, item: Item, deadline: Deadline) -> Result:
        """Have an item called for; raise TimeoutError at its deadline, or what the call raised."""
        entry = _Entry(item, deadline, asyncio.get_running_loop().create_future())
        self._pending.append(entry)
        self._pump()
        try:
            async with deadline.timeout():
                result: Result = await entry.future
        except (TimeoutError, asyncio.CancelledError):
            # Not by a callback of the future: those cost each query a turn of the event loop.
            if entry.future.cancelled() and entry.batch is not None:
                self._left(entry.batch)
            raise
        return result

    def _pump(self) -> None:
        while self._pending and self._in_flight < self._max_in_flight:
            entries = self._take()
            if entries:
                self._start(_Batch(entries, len(entries)))

    def _take(self) -> list[_Entry[Item, Result]]:
        """The next call's members, in the order in which they came."""
        entries: list[_Entry[Item, Result]] = []
        weight = 0
        while self._pending and len(entries) < self._max_count:
            entry = self._pending[0]
            if not entry.future.done():
                weight += self._weigh(entry.item)
                if entries and weight > self._max_weight:
                    break
                entries.append(entry)
            self._pending.popleft()
        return entries

    def _start(self, batch: _Batch[Item, Result]) -> None:
        self._in_flight += 1
        batch.task = asyncio.create_task(self._run(batch))
        batch.task.add_done_callback(lambda _: self._landed(batch))
        for entry in batch.entries:
            entry.batch = batch

    async def _run(self, batch: _Batch[Item, Result]) -> None:
        budget_s = max(entry.deadline.budget_s for entry in batch.entries)
        try:
            results = await self._call([entry.item for entry in batch.entries], budget_s)
            # Before its members are told, who keep the event loop busy: the target is idle now.
            self._landed(batch)
            assert len(results) == len(batch.entries)
        except asyncio.CancelledError:
            for entry in batch.entries:
                entry.future.cancel()
            raise
        except Exception as error:  # noqa: BLE001  # every member gets it
            for entry in batch.entries:
                if not entry.future.done():
                    entry.future.set_exception(error)
                    entry.future.exception()  # A member that has left does not fetch it.
            return
        for entry, result in zip(batch.entries, results, strict=True):
            if not entry.future.done():
                entry.future.set_result(result)

    def _left(self, batch: _Batch[Item, Result]) -> None:
        batch.waiting -= 1
        if batch.waiting == 0 and batch.task is not None:
            batch.task.cancel()

    def _landed(self, batch: _Batch[Item, Result]) -> None:
        """Let the next call begin, once."""
        if batch.in_flight:
            batch.in_flight = False
            self._in_flight -= 1
            self._pump()
