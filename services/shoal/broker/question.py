"""How does a question become what the shards are asked: a vector, and words?

The vector comes from the cache or an encoder. Where several servers share an index its words are
counted beside that; the two wait for nothing of each other.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from shoal.broker.answer import Trace, timed
from shoal.broker.budget import Budget
from shoal.broker.cache import Cache, vector_key
from shoal.broker.coverage import cut
from shoal.broker.encoding import EncodeStage, QueryVector
from shoal.broker.probe import Probe
from shoal.broker.routes import IndexRoute
from shoal.broker.statistics import StatisticsStage
from shoal.broker.validation import Query
from shoal.internal.v1.shard_pb2 import LexicalQuery
from shoal.rpc.arrays import FLOAT32
from shoal.rpc.errors import ServiceError
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import CacheState, SearchRequest, Stage


@dataclass(frozen=True)
class QuestionReader:
    """Reads questions."""

    cache: Cache
    encoders: EncodeStage
    statistics: StatisticsStage
    probe: Probe

    async def read(
        self,
        request: SearchRequest,
        route: IndexRoute,
        query: Query,
        budget: Budget,
        trace: Trace,
    ) -> tuple[bytes, LexicalQuery | None]:
        """A question's vector and words. Both are got side by side, where servers must be asked."""
        if query.hybrid is None:
            return await self._encode(request, route, query, budget, trace), None
        if len(route.groups) == 1:
            vector = await self._encode(request, route, query, budget, trace)
            return vector, LexicalQuery(text=query.text)
        version = self.version_to_wait_for(request, route)
        counting = asyncio.create_task(self._count(route, query.text, version, budget, trace))
        try:
            vector = await self._encode(request, route, query, budget, trace)
            with timed(trace, Stage.STAGE_STATISTICS):
                return vector, await counting
        finally:
            counting.cancel()

    async def _count(
        self, route: IndexRoute, text: str, version: int, budget: Budget, trace: Trace
    ) -> LexicalQuery | None:
        versions = self.probe.applied_versions(route)
        try:
            counted = await self.statistics.count(route, text, versions, budget.encode(), version)
        except ServiceError as error:
            trace.cuts.append(cut(Stage.STAGE_STATISTICS, error.reason, str(error)))
            return None
        return None if counted is None else LexicalQuery(text=text, statistics=counted)

    def version_to_wait_for(self, request: SearchRequest, route: IndexRoute) -> int:
        """The table version that is asked for; 0 if all shards are known to have applied it."""
        wanted = request.min_table_version
        return 0 if wanted == 0 or self.probe.reached(route, wanted) else wanted

    async def _encode(
        self,
        request: SearchRequest,
        route: IndexRoute,
        query: Query,
        budget: Budget,
        trace: Trace,
    ) -> bytes:
        trace.encoder_model = route.encoder_model
        if query.vector:
            return query.vector
        if not route.encoder_model:
            raise ServiceError(
                Reason.REASON_MODEL_MISMATCH,
                f"index {route.name} holds vectors of its callers' own; ask it with a vector",
            )
        key = vector_key(route.encoder_model, query.text)
        if not request.bypass_cache:
            with timed(trace, Stage.STAGE_CACHE):
                stored = await self.cache.get(key)
            if stored is not None and len(stored) == route.dimension * FLOAT32.itemsize:
                trace.cache = CacheState.CACHE_STATE_VECTOR_HIT
                return stored
        if query.unencoded:
            raise ServiceError(
                Reason.REASON_ENCODER_UNAVAILABLE,
                f"no encoder of {route.encoder_model} has answered for a while",
            )
        with timed(trace, Stage.STAGE_ENCODE):
            vector = await self.encoders.encode(query.text, budget.encode(), route.encoders)
        self._require_model(route, vector)
        if not request.bypass_cache:
            self.cache.put(key, vector.values)
        return vector.values

    def _require_model(self, route: IndexRoute, vector: QueryVector) -> None:
        if vector.model != route.encoder_model:
            raise ServiceError(
                Reason.REASON_MODEL_MISMATCH,
                f"index {route.name} was encoded by {route.encoder_model}, but the cluster's "
                f"encoder is {vector.model}: serve the index's model, or make the index anew",
            )
