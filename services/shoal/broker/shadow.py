"""What would the candidate of a rollout have answered?

A sampled share of the queries by text that are computed here is also run in the candidate's
version, in the background, after the caller's own search. Few run at a time, and none is begun
while the broker is busy; a query that is chosen then is dropped and counted, so that callers never
wait for a comparison.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from shoal.broker.comparison import kendall_tau, overlap, rank_biased_overlap
from shoal.broker.routes import IndexRoute
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.v1.indexes_pb2 import ShadowReport
from shoal.v1.search_pb2 import SearchRequest, SearchResponse

_log = logging.getLogger(__name__)

# Comparisons at a time. Each is one more search for the encoders and the shards.
MAX_RUNNING: Final = 2
# Queries whose comparison is kept of each rollout.
KEPT: Final = 1000
# Seconds that the candidate may take.
BUDGET_S: Final = 10.0

# Uid of an index, the version that serves, and the candidate.
_Key = tuple[str, int, int]
# Runs a search in the version that a route leads to.
Run = Callable[[SearchRequest, IndexRoute, Deadline], Awaitable[SearchResponse]]


@dataclass(frozen=True)
class Compared:
    """One query in both versions."""

    overlap: float
    rank_biased_overlap: float
    kendall_tau: float
    # NaN if the question's vector was known already.
    serving_ms: float
    candidate_ms: float


@dataclass
class Comparisons:
    """What is known of one candidate beside one version that serves."""

    compared: int = 0
    dropped: int = 0
    failed: int = 0
    last: deque[Compared] = field(default_factory=lambda: deque(maxlen=KEPT))

    def report(self) -> ShadowReport:
        """The same as a message."""
        return ShadowReport(
            compared=self.compared,
            dropped=self.dropped,
            failed=self.failed,
            overlap=[each.overlap for each in self.last],
            rank_biased_overlap=[each.rank_biased_overlap for each in self.last],
            kendall_tau=[each.kendall_tau for each in self.last],
            serving_ms=[each.serving_ms for each in self.last],
            candidate_ms=[each.candidate_ms for each in self.last],
        )


class Shadow:
    """Compares what serves with the candidates of rollouts."""

    def __init__(self, run: Run, draw: Callable[[], float] = random.random) -> None:
        """run: a search that neither reads nor writes the cache. draw: a number from 0 to 1."""
        self._run, self._draw = run, draw
        self._known: dict[_Key, Comparisons] = {}
        self._running: set[asyncio.Task[None]] = set()

    def consider(
        self,
        request: SearchRequest,
        route: IndexRoute,
        answer: SearchResponse,
        took_s: float,
        *,
        busy: bool = False,
    ) -> None:
        """Compare a query that was just answered, if it is chosen. Returns at once.

        took_s: that the answer took; NaN if that says nothing, as the question's vector was known.
        busy: callers need whatever there is.
        """
        rollout, candidate = route.rollout, route.candidate
        if rollout is None or candidate is None or not request.text:
            return
        if not answer.coverage.complete:
            return  # It does not say what the version that serves would answer.
        if self._draw() >= rollout.shadow_share:
            return
        known = self._known.setdefault(_key(route, candidate), Comparisons())
        if busy or len(self._running) >= MAX_RUNNING:
            known.dropped += 1
            return
        task = asyncio.create_task(self._compare(request, candidate, answer, took_s, known))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def report(self, route: IndexRoute) -> ShadowReport:
        """What is known of an index's candidate beside the version that serves."""
        if route.candidate is None:
            return ShadowReport()
        return self._known.get(_key(route, route.candidate), Comparisons()).report()

    def keep(self, routes: Collection[IndexRoute]) -> None:
        """Forget the rollouts that are over."""
        keys = {_key(each, each.candidate) for each in routes if each.candidate is not None}
        self._known = {key: known for key, known in self._known.items() if key in keys}

    async def close(self) -> None:
        """Stop comparing."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _compare(
        self,
        request: SearchRequest,
        candidate: IndexRoute,
        answer: SearchResponse,
        took_s: float,
        known: Comparisons,
    ) -> None:
        mirrored = SearchRequest()
        mirrored.CopyFrom(request)
        # All else as the caller wants it, texts too, or it would be quicker than it is.
        mirrored.bypass_cache = True
        started_s = time.monotonic()
        try:
            other = await self._run(mirrored, candidate, Deadline.after(BUDGET_S))
        except (ServiceError, TimeoutError) as error:
            _log.debug("a candidate did not answer: %s", error)
            known.failed += 1
            return
        except Exception:  # noqa: BLE001  # nobody waits for this task
            _log.exception("a comparison failed")
            known.failed += 1
            return
        if not other.coverage.complete:
            known.failed += 1
            return
        ours, theirs = _ids(answer), _ids(other)
        known.compared += 1
        known.last.append(
            Compared(
                overlap(ours, theirs),
                rank_biased_overlap(ours, theirs),
                kendall_tau(ours, theirs),
                1000 * took_s,
                1000 * (time.monotonic() - started_s),
            )
        )


def _key(route: IndexRoute, candidate: IndexRoute) -> _Key:
    return route.uid, route.index_version, candidate.index_version


def _ids(answer: SearchResponse) -> list[str]:
    return [f"{hit.document_id}/{hit.passage}" for hit in answer.hits]
