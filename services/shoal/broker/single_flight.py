"""How do identical queries that run at the same time share one computation?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from shoal.rpc.deadline import Deadline

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """Runs one computation a key at a time; whoever comes meanwhile shares it.

    Each keeps its own deadline: those that have more time than the first try once more if the first
    fails, and the computation is cancelled only when everybody has left.
    """

    def __init__(self) -> None:
        """Nothing runs."""
        self._flights: dict[Hashable, tuple[asyncio.Task[Result], list[int]]] = {}

    async def run(
        self, key: Hashable, compute: Callable[[], Awaitable[Result]], deadline: Deadline
    ) -> tuple[Result, bool]:
        """Compute, or share: the result, and whether it was shared.

        Raises TimeoutError at the deadline, or what the computation raised.
        """
        flight = self._flights.get(key)
        if flight is not None:
            try:
                return await self._join(key, flight, deadline), True
            except Exception:
                if deadline.passed:
                    raise
            # Whoever led may have had less time. All that have more try once again, together.
            flight = self._flights.get(key)
        if flight is not None:
            return await self._join(key, flight, deadline), True
        return await self._lead(key, compute, deadline), False

    async def _lead(
        self, key: Hashable, compute: Callable[[], Awaitable[Result]], deadline: Deadline
    ) -> Result:
        task = asyncio.ensure_future(compute())
        assert isinstance(task, asyncio.Task)
        flight = (task, [0])
        self._flights[key] = flight
        task.add_done_callback(lambda _: self._landed(key, task))
        return await self._join(key, flight, deadline)

    async def _join(
        self, key: Hashable, flight: tuple[asyncio.Task[Result], list[int]], deadline: Deadline
    ) -> Result:
        task, waiting = flight
        waiting[0] += 1
        try:
            async with deadline.timeout():
                return await asyncio.shield(task)
        finally:
            waiting[0] -= 1
            if waiting[0] == 0 and not task.done():
                task.cancel()
                # It takes a moment to end; who comes meanwhile must not be cancelled with it.
                self._landed(key, task)

    def _landed(self, key: Hashable, task: asyncio.Task[Result]) -> None:
        flight = self._flights.get(key)
        if flight is not None and flight[0] is task:
            del self._flights[key]
        if task.done() and not task.cancelled():
            task.exception()
