"""How are the best candidates ordered a second time?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.broker.budget import RerankCost
from shoal.broker.coalesce import Coalescer
from shoal.broker.targets import Target, Targets
from shoal.internal.v1.reranker_pb2 import RerankItem, RerankRequest, RerankResponse
from shoal.internal.v1.reranker_pb2_grpc import RerankerServiceStub
from shoal.rpc.arrays import FLOAT32
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.v1.errors_pb2 import Reason

# Of a call, by the reranker's contract.
MAX_ITEMS: Final = 64


@dataclass(frozen=True)
class Reranked:
    """Scores of the passages of one query."""

    # NaN for a passage that was not read.
    rerank_scores: NDArray[np.float32]
    scores: NDArray[np.float32]
    model: str


class RerankStage:
    """Sends queries with their passages to the rerankers, several in a call."""

    def __init__(self, targets: Targets, max_count: int) -> None:
        """max_count: most queries in one call."""
        self._targets, self._max_count = targets, max_count
        self.cost = RerankCost()
        self.exists = False
        """Whether the topology declares a reranker, be it there at the moment or not."""

    async def rerank(self, item: RerankItem, deadline: Deadline) -> Reranked:
        """Score a query's passages. Raises ServiceError or TimeoutError."""
        started_s = time.monotonic()
        targets = self._targets.all()
        if targets and all(target.health.shunned(started_s) for target in targets):
            # There is an answer without it: only one search finds out whether it is back.
            raise ServiceError(
                Reason.REASON_RERANKER_UNAVAILABLE, "no reranker has answered for a while"
            )
        try:
            _, reranked = await self._targets.first_to_do(
                lambda target: self._coalescer(target).submit(item, deadline),
                deadline,
                rounds=1,  # There is an answer without it.
            )
        except ServiceError:
            raise  # Refused at once: it says nothing of what reranking costs.
        except TimeoutError:
            if self._targets.all():
                self.cost.observed(len(item.passages), time.monotonic() - started_s)
            raise
        read = int(np.count_nonzero(~np.isnan(reranked.rerank_scores)))
        self.cost.observed(len(item.passages), time.monotonic() - started_s, read)
        return reranked

    def _coalescer(self, target: Target) -> Coalescer[RerankItem, Reranked]:
        if "rerank" not in target.coalescers:

            async def call(items: Sequence[RerankItem], budget_s: float) -> list[Reranked]:
                return await _rerank(target, items, budget_s)

            max_count = min(self._max_count, MAX_ITEMS)
            target.coalescers["rerank"] = Coalescer(call, max_count=max_count)
        return target.coalescers["rerank"]


async def _rerank(target: Target, items: Sequence[RerankItem], budget_s: float) -> list[Reranked]:
    request = RerankRequest(items=items)
    stub = RerankerServiceStub(target.channel)
    response: RerankResponse = await target.call(lambda: stub.Rerank(request, timeout=budget_s))
    return [
        Reranked(
            np.frombuffer(each.rerank_scores, FLOAT32),
            np.frombuffer(each.scores, FLOAT32),
            response.model,
        )
        for each in response.items
    ]
