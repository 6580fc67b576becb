"""How do the callers fare that a canary answers, beside those that the serving version answers?

Every query by text whose version who asks decides is counted on one of the two sides, from the
moment that a rollout has a canary: whether it was answered, and whole, and how long that took. Only
what was computed for one caller alone, question and all, is timed, as an answer or a vector from
the cache says nothing of a version.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import grpc
from shoal.broker.answer import Trace
from shoal.broker.routes import IndexRoute
from shoal.rpc.errors import ServiceError
from shoal.rpc.space_names import DEFAULT_SPACE
from shoal.v1.indexes_pb2 import CanaryReport
from shoal.v1.search_pb2 import CacheState, SearchRequest, SearchResponse

# Queries whose time is kept of each side.
KEPT: Final = 1000

# Failures that are the caller's own, whichever version answers.
_OWN: Final = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
)
_TIMED: Final = (CacheState.CACHE_STATE_BYPASS, CacheState.CACHE_STATE_MISS)

# Uid of an index, the version that serves, and the candidate.
_Key = tuple[str, int, int]


@dataclass
class Side:
    """What is known of the queries that one version answers."""

    answered: int = 0
    failed: int = 0
    took_ms: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))

    def saw(self, response: SearchResponse, trace: Trace, took_s: float) -> None:
        """Count an answer."""
        if not response.coverage.complete:
            self.failed += 1
            return
        if trace.cache == CacheState.CACHE_STATE_HIT:
            return  # No version had a part in it.
        self.answered += 1
        if trace.cache in _TIMED:
            self.took_ms.append(1000 * took_s)

    def saw_failure(self, error: Exception) -> None:
        """Count a query that was not answered, unless that is its caller's doing."""
        if not isinstance(error, ServiceError) or error.failure.code not in _OWN:
            self.failed += 1


@dataclass
class _Sides:
    serving: Side = field(default_factory=Side)
    candidate: Side = field(default_factory=Side)


class Watched:
    """One query, while it is answered."""

    response: SearchResponse | None = None
    trace: Trace | None = None

    def answered(self, response: SearchResponse, trace: Trace) -> None:
        """Note the answer."""
        self.response, self.trace = response, trace


class Canary:
    """Counts what canaries and their neighbours answer."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._known: dict[_Key, _Sides] = {}

    @contextmanager
    def watching(
        self, request: SearchRequest, serving: IndexRoute, route: IndexRoute
    ) -> Iterator[Watched]:
        """Count a query that is answered inside, if there is a canary.

        serving: the route of the index; route: that which the query takes.
        """
        watched, started_s = Watched(), time.monotonic()
        side = self._side(request, serving, route)
        try:
            yield watched
        except Exception as error:
            if side is not None:
                side.saw_failure(error)
            raise
        if side is not None and watched.response is not None and watched.trace is not None:
            side.saw(watched.response, watched.trace, time.monotonic() - started_s)

    def missed(self, serving: IndexRoute) -> None:
        """Count a query of a chosen caller that the candidate could not be asked.

        Only once it could be: a broker that has just begun to follow it proves nothing.
        """
        sides = self._known.get(_key(serving))
        if sides is not None and (sides.candidate.answered or sides.candidate.failed):
            sides.candidate.failed += 1

    def report(self, serving: IndexRoute) -> CanaryReport:
        """What is known of an index's canary beside the version that serves."""
        sides = self._known.get(_key(serving), _Sides())
        return CanaryReport(
            answered=sides.candidate.answered,
            failed=sides.candidate.failed,
            serving_answered=sides.serving.answered,
            serving_failed=sides.serving.failed,
            candidate_ms=sides.candidate.took_ms,
            serving_ms=sides.serving.took_ms,
        )

    def keep(self, routes: Collection[IndexRoute]) -> None:
        """Forget the canaries that are over."""
        keys = {_key(each) for each in routes if _has_canary(each)}
        self._known = {key: known for key, known in self._known.items() if key in keys}

    def _side(self, request: SearchRequest, serving: IndexRoute, route: IndexRoute) -> Side | None:
        others = any(each != DEFAULT_SPACE for each in request.spaces)
        named = request.HasField("index_version") or others
        if not _has_canary(serving) or not request.text or named:
            return None
        sides = self._known.setdefault(_key(serving), _Sides())
        return sides.serving if route is serving else sides.candidate


def _has_canary(route: IndexRoute) -> bool:
    rollout = route.rollout
    return rollout is not None and route.candidate is not None and rollout.canary_share > 0


def _key(route: IndexRoute) -> _Key:
    candidate = -1 if route.candidate is None else route.candidate.index_version
    return route.uid, route.index_version, candidate
