"""May this call be taken, and how long may it wait for the table?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.v1.errors_pb2 import Reason

# What an overloaded server needs to work off half of its queue.
RETRY_DELAY_S: Final = 0.25


class Admission:
    """Bounds the queries that are searched or wait for it."""

    def __init__(self, max_queries: int) -> None:
        """max_queries: a call with more than that alone is still taken if nothing else waits."""
        self._max_queries = max_queries
        self._admitted = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def admit(self, query_count: int) -> Iterator[None]:
        """Hold room for queries. Raises ServiceError (OVERLOADED, DRAINING)."""
        if self._draining:
            raise ServiceError(
                Reason.REASON_DRAINING, "the shard server is stopping: ask another replica"
            )
        if self._admitted and self._admitted + query_count > self._max_queries:
            raise ServiceError(
                Reason.REASON_OVERLOADED,
                f"{self._admitted} queries wait for this shard server: come back later",
                retry_delay_s=RETRY_DELAY_S,
            )
        self._admitted += query_count
        self._idle.clear()
        try:
            yield
        finally:
            self._admitted -= query_count
            if self._admitted == 0:
                self._idle.set()

    async def drain(self) -> None:
        """Take nothing new; return when nothing is left."""
        self._draining = True
        await self._idle.wait()


class ProgressSignal:
    """Wakes those who wait for shards to move on."""

    def __init__(self) -> None:
        """Used on the event loop, but for `notify`."""
        self._loop = asyncio.get_running_loop()
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Shards have moved on. From any thread."""
        if self._waiters and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_until(
        self, reached: Callable[[], bool], hurry: Callable[[], None], deadline: Deadline
    ) -> bool:
        """Wait until something is reached; False if the deadline came first.

        hurry: asks for the next step; called while there is something to wait for.
        """
        while not reached():
            waiter = self._loop.create_future()
            self._waiters.add(waiter)
            try:
                hurry()
                async with deadline.timeout():
                    await waiter
                # A step takes a fraction of a millisecond: let the writer have the processor.
                if not reached():
                    await asyncio.sleep(_PAUSE_S)
            except TimeoutError:
                return reached()
            finally:
                self._waiters.discard(waiter)
        return True


_PAUSE_S: Final = 0.01
