"""What was answered before, and may be answered again?

Redis holds answers and query vectors. An answer's key is a digest of all that it depends on: the
whole request, the index's identity, its layout, the table version that every shard has applied, and
both models. So a write, a promotion or a new model makes old answers unreachable by itself, and
they leave by age. Redis may be absent, slow or dying: every look is bounded by a short timeout, and
after a failure nobody looks for a moment.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, cast

import redis.asyncio
import redis.exceptions
from shoal.broker.config import BrokerSettings
from shoal.broker.fusion import HybridPlan
from shoal.broker.routes import IndexRoute
from shoal.v1.search_pb2 import SearchRequest

_log = logging.getLogger(__name__)

# After a failure, before the next attempt.
REST_S: Final = 1.0
# Changes when the form of what is stored does.
_FORMAT: Final = b"shoal-1"
# Looks at once. Who finds them all taken computes instead: that is no fault of Redis.
_MAX_LOOKS: Final = 64

Result = TypeVar("Result")


def answer_key(
    request: SearchRequest,
    route: IndexRoute,
    versions: tuple[int, ...],
    models: tuple[str, ...],
    rerank_count: int = 0,
    hybrid: HybridPlan | None = None,
) -> bytes:
    """Name an answer by all that it depends on.

    versions: applied by each shard; models: the encoder's and the rerankers'; rerank_count, hybrid:
    what the request comes to by this broker's own defaults. Every field of the request takes part,
    those too that are added later.
    """
    decisive = (route.key, versions, models, rerank_count, hybrid)
    return _digest(
        b"answer", repr(decisive).encode(), request.SerializeToString(deterministic=True)
    )


def vector_key(model: str, text: str) -> bytes:
    """Name a query's vector."""
    return _digest(b"vector", model.encode(), text.encode())


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in (_FORMAT, *parts):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return b"shoal:" + digest.digest()


class Cache:
    """Answers and vectors in Redis, or nothing if there is none."""

    def __init__(
        self, settings: BrokerSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Connects on first use."""
        self._settings, self._clock = settings, clock
        self._rests_until_s = 0.0
        self._looks = 0
        self._ill = False
        self._redis: redis.asyncio.Redis | None = None
        self._storing: set[asyncio.Task[None]] = set()
        if settings.redis_url is not None:
            self._redis = redis.asyncio.Redis.from_url(
                settings.redis_url,
                socket_timeout=settings.redis_timeout_s,
                socket_connect_timeout=settings.redis_timeout_s,
                retry=None,
            )

    @property
    def available(self) -> bool:
        """True if it is worth looking."""
        return self._redis is not None and self._clock() >= self._rests_until_s

    @property
    def _most_looks(self) -> int:
        """Looks at once: after a failure a single one finds out whether Redis is back."""
        return 1 if self._ill else _MAX_LOOKS

    async def get(self, key: bytes) -> bytes | None:
        """Look up a value; None if it is not there, or cannot be had quickly."""
        store = self._redis
        if store is None or not self.available or self._looks >= self._most_looks:
            return None
        return cast("bytes | None", await self._guard(store.get(key)))

    def put(self, key: bytes, value: bytes, ttl_s: float | None = None) -> None:
        """Store a value, without making anybody wait for it.

        ttl_s: for so long at most; None, or more than the settings say: as long as those say.
        """
        store = self._redis
        longest_ms = 1000 * self._settings.cache_ttl_s
        ttl_ms = longest_ms if ttl_s is None else int(min(longest_ms, 1000 * ttl_s))
        if ttl_ms <= 0:
            return
        if store is None or not self.available or len(value) > self._settings.cache_value_bytes:
            return
        if self._looks >= self._most_looks or len(self._storing) >= _MAX_LOOKS:
            return  # Redis is slower than the answers: what is not stored is computed again.

        async def put() -> None:
            await self._guard(store.set(key, value, px=ttl_ms))

        task = asyncio.create_task(put())
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def close(self) -> None:
        """Disconnect."""
        for task in list(self._storing):
            task.cancel()
        if self._redis is not None:
            await self._redis.aclose()

    async def _guard(self, work: Awaitable[Result]) -> Result | None:
        self._looks += 1
        try:
            async with asyncio.timeout(self._settings.redis_timeout_s):
                result = await work
            self._ill = False
            return result
        except (TimeoutError, OSError, redis.exceptions.RedisError) as error:
            if self._clock() >= self._rests_until_s:
                _log.warning("the cache is left alone for a moment: %r", error)
            self._rests_until_s = self._clock() + REST_S
            self._ill = True
            return None
        finally:
            self._looks -= 1
