"""Which questions does the writer get to see, to measure drift with?

A few of each index's, drawn evenly (Vitter's algorithm R) from those that were computed since the
last ones were sent. An offer costs a random number; what is drawn is sent in the background, and
what cannot be sent is forgotten. A question's text leaves this process for the writer alone, which
looks at it and throws it away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from dataclasses import dataclass, field
from random import Random
from typing import Final, NamedTuple

from shoal.broker.config import BrokerSettings
from shoal.broker.routes import IndexRoute
from shoal.broker.targets import Targets
from shoal.internal.v1.drift_pb2 import StoreQuerySampleRequest
from shoal.internal.v1.writer_pb2_grpc import WriterServiceStub
from shoal.rpc.errors import ServiceError
from shoal.v1.search_pb2 import SearchResponse

_log = logging.getLogger(__name__)

TIMEOUT_S: Final = 5.0
# Of a question's text that are looked at.
MAX_CHARACTERS: Final = 512


class _Sample(NamedTuple):
    vector: bytes
    text: str
    best_score: float


@dataclass
class _Reservoir:
    asked_count: int = 0
    kept: list[_Sample] = field(default_factory=list)


class QuerySampler:
    """Draws questions and sends them. Used on the event loop."""

    def __init__(
        self, settings: BrokerSettings, writers: Targets, random: Random | None = None
    ) -> None:
        """random: draws."""
        self._settings, self._writers = settings, writers
        self._random = random or Random()
        # By identity, version and model of the index: at most as many as there are layouts.
        self._reservoirs: dict[tuple[str, int, str], _Reservoir] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Send no more; what was drawn is forgotten."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def offer(self, route: IndexRoute, text: str, vector: bytes, answer: SearchResponse) -> None:
        """Let a question be drawn. text: empty for one by vector. vector: float32."""
        capacity = self._settings.drift_sample_count
        if route.feedback_disabled or not vector or capacity == 0:
            return
        key = route.uid, route.index_version, route.encoder_model
        reservoir = self._reservoirs.setdefault(key, _Reservoir())
        at = reservoir.asked_count
        reservoir.asked_count += 1
        if at >= capacity:
            at = int(self._random.random() * reservoir.asked_count)
            if at >= capacity:
                return
        best = max((each.dense_score for each in answer.hits), default=math.nan)
        sample = _Sample(vector, text[:MAX_CHARACTERS], best)
        if at < len(reservoir.kept):
            reservoir.kept[at] = sample
        else:
            reservoir.kept.append(sample)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._settings.drift_flush_s)
            drawn, self._reservoirs = self._reservoirs, {}
            for (uid, version, model), reservoir in drawn.items():
                await self._send(
                    StoreQuerySampleRequest(
                        index_uid=uid,
                        index_version=version,
                        encoder_model=model,
                        asked_count=reservoir.asked_count,
                        vectors=b"".join(each.vector for each in reservoir.kept),
                        texts=[each.text for each in reservoir.kept],
                        best_scores=[each.best_score for each in reservoir.kept],
                    )
                )

    async def _send(self, request: StoreQuerySampleRequest) -> None:
        writer = self._writers.choose()
        if writer is None:
            return
        try:
            await writer.call(
                lambda: WriterServiceStub(writer.channel).StoreQuerySample(
                    request, timeout=TIMEOUT_S
                )
            )
        except ServiceError as error:
            _log.debug("a sample of questions was lost: %s", error)
