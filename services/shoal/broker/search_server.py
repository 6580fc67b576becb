"""How are searches served?"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from shoal.broker.answer import Trace, stamp
from shoal.broker.answer_tokens import AnswerTokens
from shoal.broker.cache import answer_key
from shoal.broker.callers import caller_of, is_chosen
from shoal.broker.canary import Canary
from shoal.broker.config import BrokerSettings
from shoal.broker.contexts import ContextStage
from shoal.broker.pipeline import Pipeline
from shoal.broker.rollouts_server import is_loaded
from shoal.broker.routes import IndexRoute, Routes
from shoal.broker.sampling import QuerySampler
from shoal.broker.shadow import Shadow
from shoal.broker.single_flight import SingleFlight
from shoal.broker.space_search import SpaceSearch
from shoal.broker.spaces import route_to_read, spaces_of, weight_of
from shoal.broker.validation import MAX_BATCH, Query, check_context, check_search
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import (
    BatchSearchRequest,
    BatchSearchResponse,
    BatchSearchResult,
    CacheState,
    RetrieveContextRequest,
    RetrieveContextResponse,
    SearchError,
    SearchRequest,
    SearchResponse,
    Stage,
)
from shoal.v1.search_pb2_grpc import SearchServiceServicer
from shoal.v1.status import reason_name

_Context = grpc.aio.ServicerContext[Any, Any]

RETRY_DELAY_S: Final = 0.25
# Part of a deadline that the search may use where what it finds must be read and glued after it.
CONTEXT_SEARCH_SHARE: Final = 0.8
# Part of the searches that a broker takes at once from which on no candidate is compared.
_BUSY_SHARE: Final = 0.25
# So much more time may make a better answer.
ROOM_S: Final = 0.1


class SearchServer(SearchServiceServicer):
    """SearchService."""

    def __init__(
        self,
        settings: BrokerSettings,
        broker_id: str,
        routes: Callable[[], Routes],
        pipeline: Pipeline,
        contexts: ContextStage,
        tokens: AnswerTokens,
        sampler: QuerySampler,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """routes: gives the routes that are followed now. wall_clock: seconds since 1970."""
        self._wall_clock = wall_clock
        self._contexts, self._tokens, self._sampler = contexts, tokens, sampler
        self._settings, self._broker_id = settings, broker_id
        self._routes, self._pipeline = routes, pipeline
        self._spaces = SpaceSearch(pipeline)
        self._flights: SingleFlight[tuple[SearchResponse, Trace, Deadline]] = SingleFlight()
        self.shadow = Shadow(self._run_shadow)
        self.canary = Canary()
        self._active = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def Search(self, request: SearchRequest, context: _Context) -> SearchResponse:
        """Answer one query."""
        deadline = Deadline.of(context, self._settings.default_budget_s)
        return await self._admitted(request, deadline, caller_of(context))

    async def BatchSearch(
        self, request: BatchSearchRequest, context: _Context
    ) -> BatchSearchResponse:
        """Answer many queries; each succeeds or fails by itself."""
        if not 1 <= len(request.searches) <= MAX_BATCH:
            raise InvalidFieldError(
                "searches", f"holds {len(request.searches)} searches; give 1 to {MAX_BATCH}"
            )
        deadline = Deadline.of(context, self._settings.default_budget_s)
        caller = caller_of(context)
        results = await asyncio.gather(
            *(self._one_of_many(search, deadline, caller) for search in request.searches)
        )
        return BatchSearchResponse(results=results)

    async def RetrieveContext(
        self, request: RetrieveContextRequest, context: _Context
    ) -> RetrieveContextResponse:
        """Search, and glue what was found."""
        token_budget, neighbours = check_context(request)
        deadline = Deadline.of(context, self._settings.default_budget_s)
        # The texts are read with their neighbours.
        request.search.omit_text = True
        found = await self._admitted(
            request.search, deadline.share(CONTEXT_SEARCH_SHARE), caller_of(context)
        )
        route = route_to_read(found, self._routes().index(request.search.index))
        at_least = request.search.min_table_version
        contexts = await self._contexts.glue(
            route, found, token_budget, neighbours, deadline, at_least
        )
        response = RetrieveContextResponse(
            contexts=contexts,
            token_count=sum(each.token_count for each in contexts),
            hits_left_out=len(found.hits) - sum(len(each.citations) for each in contexts),
            coverage=found.coverage,
            table_version=found.table_version,
            index_version=found.index_version,
            encoder_model=found.encoder_model,
            spaces=found.spaces,
        )
        if request.search.explain:
            response.explanation.CopyFrom(found.explanation)
        return response

    async def drained(self) -> None:
        """Take no more searches, and wait until none is under way."""
        self._draining = True
        await self._idle.wait()

    async def _one_of_many(
        self, request: SearchRequest, deadline: Deadline, caller: str
    ) -> BatchSearchResult:
        try:
            return BatchSearchResult(response=await self._admitted(request, deadline, caller))
        except TimeoutError:
            failure = ServiceError(Reason.REASON_DEADLINE_EXCEEDED, "the deadline passed").failure
        except ServiceError as error:
            failure = error.failure
        code: int = failure.code.value[0]
        error_message = SearchError(
            code=code, reason=reason_name(failure.reason), message=failure.message
        )
        return BatchSearchResult(error=error_message)

    async def _admitted(
        self, request: SearchRequest, deadline: Deadline, caller: str
    ) -> SearchResponse:
        """Refuse early what could not be finished in time: a queue would only time out."""
        if self._draining:
            raise ServiceError(Reason.REASON_DRAINING, "this broker stops: ask another one")
        weight, most = weight_of(request), self._settings.max_concurrent
        # Where nothing else is under way, there is room for any.
        if self._active and self._active + weight > most:
            raise ServiceError(
                Reason.REASON_OVERLOADED,
                f"{self._active} searches are under way here, one in several spaces counted in "
                f"each, and this broker takes {most}: come back after the retry delay, or add "
                f"brokers",
                retry_delay_s=RETRY_DELAY_S,
            )
        self._active += weight
        self._idle.clear()
        try:
            return await self._search(request, deadline, caller)
        finally:
            self._active -= weight
            if self._active == 0:
                self._idle.set()

    async def _search(
        self, request: SearchRequest, deadline: Deadline, caller: str
    ) -> SearchResponse:
        started_s = time.monotonic()
        routes = self._routes()
        if not request.index:
            raise InvalidFieldError("index", "is required: name the index to search")
        serving = routes.index(request.index)
        spaces = spaces_of(request, serving)
        named = [each for each in spaces if each is not serving]
        route = spaces[0] if named else self._version(request, serving, caller)
        query = check_search(request, route, self._settings)
        if not all(each.groups for each in [route, *spaces]):
            raise ServiceError(
                Reason.REASON_NOT_READY,
                f"index {route.name} is being loaded: try again in a moment",
            )
        if len(spaces) > 1:
            trace = Trace()
            response = await self._spaces.search(request, spaces, query, deadline, trace)
        else:
            with self.canary.watching(request, serving, route) as watched:
                if request.bypass_cache:
                    response, trace = await self._compute(request, route, query, deadline)
                else:
                    response, trace = await self._cached(request, route, query, deadline)
                watched.answered(response, trace)
        if not request.no_feedback:
            # Of this very call, also when the answer was cached.
            response.answer_token = self._tokens.make(
                request.text, response, route, routes.reranker_models
            )
            alone = route is serving and len(spaces) <= 1
            if alone and not request.HasField("index_version"):
                # Drift is of what serves: a version on trial is asked by a chosen few.
                self._sampler.offer(route, request.text, trace.vector, response)
        if request.explain:
            stamp(
                response,
                trace,
                total_s=time.monotonic() - started_s,
                epoch=routes.epoch,
                broker=self._broker_id,
            )
        return response

    def _version(self, request: SearchRequest, route: IndexRoute, caller: str) -> IndexRoute:
        """The version that answers: the one that is asked for, or by who asks.

        Raises VERSION_NOT_READY, VERSION_OF_SPACE.
        """
        if request.HasField("index_version"):
            return route.version(request.index_version)
        rollout, candidate = route.rollout, route.candidate
        if rollout is None or candidate is None or not request.text:
            return route
        chosen = is_chosen(caller, route.uid, candidate.index_version, rollout.canary_share)
        if not chosen:
            return route
        if is_loaded(candidate, self._pipeline.probe):
            return candidate
        self.canary.missed(route)
        return route

    async def _run_shadow(
        self, request: SearchRequest, route: IndexRoute, deadline: Deadline
    ) -> SearchResponse:
        query = check_search(request, route, self._settings)
        return await self._pipeline.search(request, route, query, deadline, Trace())

    async def _compute(
        self, request: SearchRequest, route: IndexRoute, query: Query, deadline: Deadline
    ) -> tuple[SearchResponse, Trace]:
        trace = Trace()
        if not request.bypass_cache and self._pipeline.cache.available:
            trace.cache = CacheState.CACHE_STATE_MISS
        started_s = time.monotonic()
        response = await self._pipeline.search(request, route, query, deadline, trace)
        if not request.HasField("index_version"):
            took_s = time.monotonic() - started_s
            if trace.cache == CacheState.CACHE_STATE_VECTOR_HIT:
                took_s = math.nan  # The candidate encodes the question, and is to be compared.
            busy = self._active > _BUSY_SHARE * self._settings.max_concurrent
            self.shadow.consider(request, route, response, took_s, busy=busy)
        return response, trace

    async def _cached(
        self, request: SearchRequest, route: IndexRoute, query: Query, deadline: Deadline
    ) -> tuple[SearchResponse, Trace]:
        """Answer from the cache, or together with an identical search, or compute."""
        cache, known = self._pipeline.cache, self._pipeline.probe.applied_versions(route)
        # Of the routes that this search follows: they may change while it runs.
        models = (route.encoder_model, *self._routes().reranker_models)
        fresh = known is not None and min(known, default=0) >= request.min_table_version
        if fresh and known is not None and cache.available:
            started_s = time.monotonic()
            key = answer_key(request, route, known, models, query.rerank_count, query.hybrid)
            answer = _read(await cache.get(key))
            if answer is not None:
                trace = Trace(cache=CacheState.CACHE_STATE_HIT)
                trace.timings.append((Stage.STAGE_CACHE, time.monotonic() - started_s))
                return answer, trace
        flight = (request.SerializeToString(deterministic=True), route.key, known)

        async def compute() -> tuple[SearchResponse, Trace, Deadline]:
            response, trace = await self._compute(request, route, query, deadline)
            if response.coverage.complete and cache.available:
                versions = tuple(trace.versions[shard] for shard in range(route.shard_count))
                key = answer_key(request, route, versions, models, query.rerank_count, query.hybrid)
                ttl_s = trace.holds_until_s - self._wall_clock()
                cache.put(key, response.SerializeToString(), ttl_s)
            return response, trace, deadline

        (response, trace, theirs), shared = await self._flights.run(flight, compute, deadline)
        if shared and not response.coverage.complete and deadline.at_s > theirs.at_s + ROOM_S:
            # Perhaps cut for want of time, of which there is more here, and among others like this.
            (response, trace, _), shared = await self._flights.run(flight, compute, deadline)
        if shared and trace.holds_until_s <= self._wall_clock():
            # Something has expired since it was searched, perhaps before this one asked.
            return await self._compute(request, route, query, deadline)
        if not shared:
            return response, trace
        # Others hold the same message: each writes its own timings into a copy.
        own = SearchResponse()
        own.CopyFrom(response)
        return own, Trace(timings=trace.timings, cache=CacheState.CACHE_STATE_SHARED)


def _read(stored: bytes | None) -> SearchResponse | None:
    try:
        return None if stored is None else SearchResponse.FromString(stored)
    except DecodeError:
        return None  # Somebody else's bytes, or damaged ones: as good as nothing.
