"""How does a handler wait for something that the topology will say?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shoal.broker.routes import Routes
from shoal.rpc.deadline import Deadline


class RoutesBoard:
    """The routes that are followed now, and a bell that rings when they change."""

    def __init__(self) -> None:
        """No routes yet."""
        self.routes = Routes()
        self._changed = asyncio.Event()

    def post(self, routes: Routes) -> None:
        """Follow new routes."""
        self.routes = routes
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_until(self, holds: Callable[[Routes], bool], deadline: Deadline) -> bool:
        """Wait until something holds of the routes; False if the deadline passed first."""
        try:
            async with deadline.timeout():
                while not holds(self.routes):
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True
