"""How does the reranker answer calls? Check, score, blend, answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray
from shoal.internal.v1.reranker_pb2 import (
    DESCRIPTOR,
    RerankItem,
    RerankRequest,
    RerankResponse,
    RerankScores,
)
from shoal.internal.v1.reranker_pb2_grpc import (
    RerankerServiceServicer,
    add_RerankerServiceServicer_to_server,
)
from shoal.internal.v1.topology_pb2 import PublishTopologyResponse
from shoal.reranker.backend import Backend
from shoal.reranker.bundled import load_backend
from shoal.reranker.config import RerankerSettings
from shoal.reranker.core import Question, RerankerCore
from shoal.rpc.arrays import FLOAT32, pack, unpack
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.rpc.topology import TopologyFollower
from shoal.v1.errors_pb2 import Reason

MAX_ITEM_COUNT: Final = 64
MAX_PASSAGE_COUNT: Final = 200
MAX_QUERY_BYTES: Final = 32_768
# A document's text may be as long, and a passage is no longer than its document and title.
MAX_PASSAGE_BYTES: Final = (1 << 20) + 8_192


class RerankerService(RerankerServiceServicer):
    """Serves RerankerService with one bundle."""

    def __init__(
        self,
        settings: RerankerSettings,
        instance_id: str = "",
        load: Callable[[RerankerSettings], Backend] = load_backend,
    ) -> None:
        """load: makes the model from the settings; called at the start, in a thread."""
        self.follower = TopologyFollower(instance_id, describe=self._describe)
        self._settings = settings
        self._load = load
        self._core: RerankerCore | None = None

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the handlers to a server."""
        add_RerankerServiceServicer_to_server(self, server)
        return [DESCRIPTOR.services_by_name["RerankerService"].full_name]

    async def start(self) -> None:
        """Load the bundle and run it once. Raises what the bundle is refused with."""
        backend = await asyncio.to_thread(self._load, self._settings)
        core = RerankerCore(backend, self._settings)
        await core.start()
        self._core = core

    async def drain(self) -> None:
        """Take nothing new; return when what was taken is scored."""
        if self._core is not None:
            await self._core.drain()

    async def stop(self) -> None:
        """End the model's thread and let go of the model."""
        if self._core is not None:
            await self._core.stop()
            self._core = None

    async def Rerank(
        self, request: RerankRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> RerankResponse:
        """Score the passages of one or more queries."""
        core = self._core
        if core is None:
            raise ServiceError(
                Reason.REASON_NOT_READY, "the reranker has no model: ask another one"
            )
        if not 1 <= len(request.items) <= MAX_ITEM_COUNT:
            raise InvalidFieldError(
                "items", f"must be 1 to {MAX_ITEM_COUNT}, not {len(request.items)}"
            )
        questions = [_question(item, f"items[{at}]") for at, item in enumerate(request.items)]
        scores = await core.rerank(questions, Deadline.of(context))
        items = [
            RerankScores(
                rerank_scores=pack(each.rerank, FLOAT32), scores=pack(each.blended, FLOAT32)
            )
            for each in scores
        ]
        return RerankResponse(items=items, model=core.backend.model)

    def _describe(self, response: PublishTopologyResponse) -> None:
        if self._core is not None:
            response.model = self._core.backend.model
            response.problem = self._core.problem


def _question(item: RerankItem, path: str) -> Question:
    _check_length(item.query, MAX_QUERY_BYTES, f"{path}.query")
    count = len(item.passages)
    if not 1 <= count <= MAX_PASSAGE_COUNT:
        raise InvalidFieldError(
            f"{path}.passages", f"must be 1 to {MAX_PASSAGE_COUNT}, not {count}"
        )
    for at, passage in enumerate(item.passages):
        _check_length(passage, MAX_PASSAGE_BYTES, f"{path}.passages[{at}]")
    dense_scores = unpack(item.dense_scores, FLOAT32, f"{path}.dense_scores")
    if len(dense_scores) != count:
        raise InvalidFieldError(
            f"{path}.dense_scores", f"holds {len(dense_scores)} scores for {count} passages"
        )
    if not np.isfinite(dense_scores).all():
        raise InvalidFieldError(f"{path}.dense_scores", "holds a NaN or an infinity")
    return Question(item.query, item.passages, dense_scores, _similarities(item, path))


def _similarities(item: RerankItem, path: str) -> NDArray[np.float32] | None:
    if not item.similarities:
        return None
    path, count = f"{path}.similarities", len(item.passages)
    values = unpack(item.similarities, FLOAT32, path)
    if len(values) != count * count:
        raise InvalidFieldError(path, f"holds {len(values)} numbers for {count} passages")
    if not np.isfinite(values).all():
        raise InvalidFieldError(path, "holds a NaN or an infinity")
    return values.reshape(count, count)


def _check_length(text: str, limit_bytes: int, path: str) -> None:
    # Only a text that might be too long is encoded to be measured.
    if len(text) * 4 > limit_bytes and len(text.encode()) > limit_bytes:
        raise InvalidFieldError(path, f"is longer than {limit_bytes} bytes")
