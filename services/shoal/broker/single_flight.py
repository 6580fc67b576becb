"""How do identical queries that run at the same time share one computation?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from shoal.rpc.deadline import Deadline

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """Runs one computation a key at a time; whoever comes meanwhile shares it.

    Whoever comes first leads: computes in its own task, as most queries are alone and a task of
    their own would be a cost for nothing. Each keeps its own deadline. If the one that leads fails
    or leaves, one of those that wait and have time leads anew, and the others share that.
    """

    def __init__(self) -> None:
        """Nothing runs."""
        self._flights: dict[Hashable, asyncio.Future[Result]] = {}

    async def run(
        self, key: Hashable, compute: Callable[[], Awaitable[Result]], deadline: Deadline
    ) -> tuple[Result, bool]:
        """Compute, or share: the result, and whether it was shared.

        Raises TimeoutError at the deadline while it waits for others, or what the computation
        raised: the second time, if others computed.
        """
        failed = False
        while (flight := self._flights.get(key)) is not None:
            await asyncio.wait([flight], timeout=deadline.budget_s)
            if not flight.done():
                raise TimeoutError
            if flight.cancelled():
                continue  # Its leader has left.
            error = flight.exception()
            if error is None:
                return flight.result(), True
            # Whoever led may have had less time.
            if failed or deadline.passed:
                raise error
            failed = True
        return await self._lead(key, compute), False

    async def _lead(self, key: Hashable, compute: Callable[[], Awaitable[Result]]) -> Result:
        flight = self._flights[key] = asyncio.get_running_loop().create_future()
        try:
            result = await compute()
        except Exception as error:
            flight.set_exception(error)
            flight.exception()  # Perhaps nobody waits for it.
            raise
        else:
            flight.set_result(result)
            return result
        finally:
            flight.cancel()  # Of no effect unless it was left.
            del self._flights[key]
