"""How is a search answered from several vector spaces at once?

    look in each space, side by side ──> fuse the rankings ──> rerank ──> answer

Each space has its own encoder, vector and candidates; the deadline is shared. A space that does not
answer is left out and named; only if none does, there is no answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from shoal.broker.answer import Ranked, Trace
from shoal.broker.budget import Budget
from shoal.broker.coverage import cut
from shoal.broker.grouping import best_documents, best_passages, keep_best
from shoal.broker.pipeline import Looked, Pipeline, is_late, require_coverage
from shoal.broker.routes import IndexRoute
from shoal.broker.spaces import (
    DEPTH,
    coverage_of_all,
    fuse_spaces,
    joined_response,
    slowest,
    unanswered,
)
from shoal.broker.validation import MAX_TOP_K, Query
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import SearchRequest, SearchResponse, SpaceAnswer, Stage

# Seconds that the other spaces are waited for, once one has answered.
PATIENCE_S: Final = 1.0

# What is wrong with the request, or with the caller's picture of the table, is wrong in all spaces.
_OF_THE_REQUEST: Final = (
    Reason.REASON_TABLE_VERSION_AHEAD,
    Reason.REASON_INVALID_FIELD,
    Reason.REASON_INVALID_FILTER,
)


@dataclass(frozen=True)
class _Outcome:
    """What became of one space."""

    route: IndexRoute
    trace: Trace
    looked: Looked | None = None
    error: ServiceError | TimeoutError | None = None


@dataclass(frozen=True)
class SpaceSearch:
    """Searches of several spaces."""

    pipeline: Pipeline

    async def search(
        self,
        request: SearchRequest,
        routes: Sequence[IndexRoute],
        query: Query,
        deadline: Deadline,
        trace: Trace,
    ) -> SearchResponse:
        """Answer a query by text. Raises ServiceError if there is nothing to answer with."""
        budget = Budget(deadline)
        outcomes = await self._look_everywhere(request, routes, query, budget)
        _require_one(outcomes)
        joint = slowest([each.trace for each in outcomes])
        trace.timings, trace.cache = joint.timings, joint.cache
        found = [each.looked.ranked for each in outcomes if each.looked is not None]
        ranked = self._trimmed(query, fuse_spaces(found))
        ranked = await self.pipeline.rerank(query, ranked, budget, trace)
        best = best_documents if query.per_document else best_passages
        return self._answer(request, outcomes, best(ranked, query.top_k), trace)

    async def _look_everywhere(
        self, request: SearchRequest, routes: Sequence[IndexRoute], query: Query, budget: Budget
    ) -> list[_Outcome]:
        """Look in all spaces; once one has answered, wait only a while longer for the others."""
        encoders = self.pipeline.questions.encoders
        away = [encoders.is_away(route.encoders) for route in routes]
        # Where another space answers, only some searches find out whether an encoder is back.
        queries = [replace(query, unencoded=each and not all(away)) for each in away]
        tasks = {
            asyncio.create_task(self._look(request, route, own, budget)): route
            for route, own in zip(routes, queries, strict=True)
        }
        pending, wait_until = set(tasks), budget.deadline
        try:
            while pending and not wait_until.passed:
                done, pending = await asyncio.wait(
                    pending, timeout=wait_until.budget_s, return_when=asyncio.FIRST_COMPLETED
                )
                if wait_until is budget.deadline and any(each.result().looked for each in done):
                    patience_s = min(PATIENCE_S, budget.deadline.budget_s / 2)
                    wait_until = Deadline.after(patience_s, budget.deadline.clock)
        finally:
            for task in pending:
                task.cancel()
        return [
            _Outcome(route, Trace(), error=TimeoutError()) if task in pending else task.result()
            for task, route in tasks.items()
        ]

    async def _look(
        self, request: SearchRequest, route: IndexRoute, query: Query, budget: Budget
    ) -> _Outcome:
        """Find the candidates of one space, with all that is read of them later."""
        depth = min(MAX_TOP_K, max(self.pipeline.depth(query), DEPTH))
        own = SearchRequest()
        own.CopyFrom(request)
        own.omit_text = request.omit_text and self.pipeline.rerank_count(query) == 0
        trace = Trace()
        # Not reranked: vectors of different models say nothing of how near passages are.
        alone = replace(query, rerank_count=0)
        try:
            looked = await self.pipeline.look(own, route, alone, budget, trace, depth)
        except (ServiceError, TimeoutError) as error:
            return _Outcome(route, trace, error=error)
        return _Outcome(route, trace, looked)

    def _trimmed(self, query: Query, ranked: list[Ranked]) -> list[Ranked]:
        """Of each document no more than the query wants, as of a single space."""
        depth = self.pipeline.depth(query)
        if not query.per_document:
            return ranked[:depth]
        documents = [each.hit.document_id for each in ranked]
        return [ranked[at] for at in keep_best(documents, query.per_document, depth)]

    def _answer(
        self,
        request: SearchRequest,
        outcomes: Sequence[_Outcome],
        ranked: Sequence[Ranked],
        trace: Trace,
    ) -> SearchResponse:
        parts: list[SearchResponse] = []
        answers: list[SpaceAnswer] = []
        each_for_itself = SearchRequest()
        each_for_itself.CopyFrom(request)
        each_for_itself.require_complete = False
        for outcome in outcomes:
            if outcome.looked is None:
                answers.append(self._unanswered(outcome))
                continue
            outcome.trace.reranker_model = trace.reranker_model
            own = [each for each in ranked if each.spaces[0].space == outcome.route.space]
            part = self.pipeline.answer(each_for_itself, outcome.looked, own, outcome.trace)
            parts.append(part)
            answers.append(part.spaces[0])
        coverage = coverage_of_all(answers, trace.cuts)
        require_coverage(request, coverage)
        return joined_response(ranked, parts, answers, coverage, explain=request.explain)

    def _unanswered(self, outcome: _Outcome) -> SpaceAnswer:
        error = outcome.error
        assert error is not None
        late = is_late(error)
        reason = Reason.REASON_DEADLINE_SHARE_SPENT
        if isinstance(error, ServiceError) and not late:
            reason = error.reason or Reason.REASON_SHARD_UNAVAILABLE
        why = "did not answer in time" if late else f"did not answer: {error}"
        counts = self.pipeline.probe.known_counts(outcome.route)
        return unanswered(
            outcome.route, sum(counts.values()), cut(Stage.STAGE_SEARCH, reason, f"it {why}")
        )


def _require_one(outcomes: Sequence[_Outcome]) -> None:
    """Raise what keeps all spaces from answering, or what is wrong with the request."""
    errors = [each.error for each in outcomes if each.error is not None]
    for error in errors:
        if isinstance(error, ServiceError) and error.reason in _OF_THE_REQUEST:
            raise error
    if len(errors) == len(outcomes):
        first = errors[0]
        if not isinstance(first, TimeoutError):
            raise first
        raise ServiceError(
            Reason.REASON_DEADLINE_EXCEEDED,
            "no vector space answered within the deadline: allow more time",
        )
