"""How is the embedded Redis kept alive?

A service like the others, so that the controller watches it like the others. It starts a Redis
server, and starts another when that one dies. What was cached is lost then, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import grpc
from pydantic import BaseModel, ConfigDict, Field
from shoal.cluster.redis_server import RedisServer
from shoal.rpc.topology import TopologyFollower

_log = logging.getLogger(__name__)

WATCH_S: Final = 0.25


class RedisSettings(BaseModel):
    """Settings of the embedded Redis."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    """Folder of its socket and its log, readable by this user alone."""
    maxmemory_bytes: int = Field(default=64 * 1024 * 1024, ge=1024 * 1024)
    """Memory for entries; the least recently used make room."""


class RedisService:
    """A Redis server and its keeper."""

    def __init__(self, settings: RedisSettings, instance_id: str = "") -> None:
        """instance_id: such as `redis-0`."""
        self.follower = TopologyFollower(instance_id)
        self._server = RedisServer(settings.folder, maxmemory_bytes=settings.maxmemory_bytes)
        self._keeper: asyncio.Task[None] | None = None

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """It has no gRPC services of its own."""
        del server
        return []

    async def start(self) -> None:
        """Start Redis, and keep it started."""
        await asyncio.to_thread(self._server.start)
        self._keeper = asyncio.create_task(self._keep())

    async def drain(self) -> None:
        """Nothing is under way here."""

    async def stop(self) -> None:
        """Stop Redis."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await asyncio.to_thread(self._server.stop)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            if self._server.is_running():
                continue
            _log.warning("Redis died; it is started again")
            try:
                await asyncio.to_thread(self._server.start)
            except Exception:  # noqa: BLE001  # tried again, for as long as it takes
                _log.exception("Redis did not start")
                await asyncio.sleep(1.0)
