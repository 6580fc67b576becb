"""How does a query become an answer?

The only module that awaits the stages: encode, search, merge, fetch, rerank, answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.broker.answer import Ranked, Trace, build_response, timed
from shoal.broker.budget import Budget
from shoal.broker.cache import Cache
from shoal.broker.config import BrokerSettings
from shoal.broker.coverage import coverage_of, cut, shards_text
from shoal.broker.fan_out import FanOut, Found, ShardQuery
from shoal.broker.fetching import FetchStage
from shoal.broker.fusion import fuse
from shoal.broker.grouping import best_documents, best_passages, look_for_documents
from shoal.broker.merge import Candidates, Lexical, have_words, merge
from shoal.broker.probe import Probe
from shoal.broker.question import QuestionReader
from shoal.broker.reranking import RerankStage
from shoal.broker.routes import IndexRoute
from shoal.broker.spaces import note_space
from shoal.broker.validation import Query
from shoal.internal.v1.reranker_pb2 import RerankItem
from shoal.internal.v1.shard_pb2 import Fill, LexicalQuery, ShardState
from shoal.rpc.arrays import FLOAT32, pack
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import Coverage, Hit, SearchRequest, SearchResponse, Stage

# Of what all shard servers say, that which the caller can do something about.
_PASSED_ON: Final = (
    Reason.REASON_TABLE_VERSION_AHEAD,
    Reason.REASON_INVALID_FIELD,
    Reason.REASON_INVALID_FILTER,
    Reason.REASON_OVERLOADED,
)


@dataclass(frozen=True)
class Looked:
    """What was found in one vector space."""

    route: IndexRoute
    found: Found
    ranked: list[Ranked]
    """Best first, before reranking."""


@dataclass(frozen=True)
class Pipeline:
    """The stages of a search."""

    settings: BrokerSettings
    cache: Cache
    questions: QuestionReader
    shards: FanOut
    fetcher: FetchStage
    rerankers: RerankStage
    probe: Probe

    async def search(
        self,
        request: SearchRequest,
        route: IndexRoute,
        query: Query,
        deadline: Deadline,
        trace: Trace,
    ) -> SearchResponse:
        """Answer a query. Raises ServiceError if there is nothing to answer with."""
        budget = Budget(deadline)
        looked = await self.look(request, route, query, budget, trace)
        ranked = await self.rerank(query, looked.ranked, budget, trace)
        best = best_documents if query.per_document else best_passages
        return self.answer(request, looked, best(ranked, query.top_k), trace)

    async def look(
        self,
        request: SearchRequest,
        route: IndexRoute,
        query: Query,
        budget: Budget,
        trace: Trace,
        depth: int = 0,
    ) -> Looked:
        """Find the candidates, best first and not reranked. Raises ServiceError if nobody can.

        depth: how many to look for; 0 for as many as the query needs.
        """
        vector, words = await self.questions.read(request, route, query, budget, trace)
        trace.vector = vector
        look = partial(self._search, request, route, query, vector, words, budget, trace)
        rank = partial(self._ranked, query, words, trace)
        depth = depth or self.depth(query)
        if query.per_document:
            found, candidates = await look_for_documents(query, depth, look, rank, trace)
            if self._needed(request, query) == Fill.FILL_TEXT:
                candidates = candidates.unread()
        else:
            found = await look(depth, self._fill(request, route, query))
            candidates = rank(found, depth)
        hits, vectors = await self._fetch(request, route, query, found, candidates, budget, trace)
        ranked = self._in_order(found, candidates, hits, vectors)
        if request.spaces:
            note_space(ranked, route.space)
        return Looked(route, found, ranked)

    def depth(self, query: Query) -> int:
        """Candidates that are looked at: what is reranked, and no fewer than are wanted."""
        return max(query.top_k, self.rerank_count(query))

    def rerank_count(self, query: Query) -> int:
        """Candidates to rerank; 0 where there is no reranker."""
        return query.rerank_count if self.rerankers.exists else 0

    async def _search(
        self,
        request: SearchRequest,
        route: IndexRoute,
        query: Query,
        vector: bytes,
        words: LexicalQuery | None,
        budget: Budget,
        trace: Trace,
        depth: int,
        fill: Fill.ValueType,
    ) -> Found:
        wanted = request.min_table_version
        waits = self.questions.version_to_wait_for(request, route)
        if words is not None:
            depth = _fused_depth(query, depth)
        shard_query = ShardQuery(vector, depth, fill, waits, query.filter, words)
        with timed(trace, Stage.STAGE_SEARCH):
            found = await self.shards.search(route, shard_query, budget.search())
            if not waits and found.is_behind(wanted):
                # A server has restarted from an older snapshot since the probe looked.
                shard_query = replace(shard_query, min_table_version=wanted)
                found = await self.shards.search(route, shard_query, budget.search())
        for group, error in found.failures:
            reason, why = _why(error)
            where = f"{shards_text(group.shards)} on {' and '.join(group.servers)}"
            trace.cuts.append(cut(Stage.STAGE_SEARCH, reason, f"{where} {why}"))
        if not found.answers:
            raise _nobody_answered(found)
        return found

    def _ranked(
        self, query: Query, words: LexicalQuery | None, trace: Trace, found: Found, depth: int
    ) -> Candidates:
        """The best candidates of all servers together."""
        lists = [answer.candidates for answer in found.answers]
        if query.hybrid is None or words is None:
            return merge(lists, depth)
        if not have_words(lists):
            if any(each.lexical_scores for each in lists):
                trace.cuts.append(
                    cut(
                        Stage.STAGE_SEARCH,
                        Reason.REASON_LEXICAL_UNAVAILABLE,
                        "not every shard server looks at words: the order is that of the vectors",
                    )
                )
            return merge(lists, depth)
        return fuse(lists, query.hybrid, _fused_depth(query, depth), depth)

    def _fill(self, request: SearchRequest, route: IndexRoute, query: Query) -> Fill.ValueType:
        """What comes along with the candidates: all that is needed, if one server holds them all.

        Then there is one call where there would be two, for text of a few candidates too many. Of
        candidates that are to be fused there would be hundreds too many, and vectors, which
        reranking makes use of, come with a fetch alone.
        """
        reranks = self.rerank_count(query) > 0
        if len(route.groups) > 1 or query.hybrid is not None or reranks:
            return Fill.FILL_UNSPECIFIED
        return self._needed(request, query)

    def _needed(self, request: SearchRequest, query: Query) -> Fill.ValueType:
        reads_text = not request.omit_text or self.rerank_count(query) > 0
        return Fill.FILL_TEXT if reads_text else Fill.FILL_REFERENCE

    async def _fetch(
        self,
        request: SearchRequest,
        route: IndexRoute,
        query: Query,
        found: Found,
        candidates: Candidates,
        budget: Budget,
        trace: Trace,
    ) -> tuple[Sequence[Hit | None], Mapping[int, NDArray[np.float32]]]:
        """The hit of each candidate, and the vectors of those to be reranked, by position."""
        if None not in candidates.hits:
            return candidates.hits, {}
        with timed(trace, Stage.STAGE_FETCH):
            fetched = await self.fetcher.fetch(
                route,
                candidates,
                found.answers,
                self._needed(request, query),
                budget.fetch(),
                self.rerank_count(query),
            )
        for failure in fetched.failures:
            reason, why = _why(failure.error)
            message = f"{failure.count} passages that {failure.server} had found were left out: it"
            trace.cuts.append(cut(Stage.STAGE_FETCH, reason, f"{message} {why}"))
        return fetched.hits, fetched.vectors

    def _in_order(
        self,
        found: Found,
        candidates: Candidates,
        hits: Sequence[Hit | None],
        vectors: Mapping[int, NDArray[np.float32]],
    ) -> list[Ranked]:
        """Leave out what was deleted or replaced since it was found."""
        rows = zip(
            hits,
            candidates.shards.tolist(),
            candidates.sources.tolist(),
            candidates.scores.tolist(),
            strict=True,
        )
        ranked = [
            None if hit is None else Ranked(hit, shard, found.answers[source].server, score, score)
            for hit, shard, source, score in rows
        ]
        if candidates.lexical is not None:
            _add_words(ranked, candidates.lexical)
        for position, vector in vectors.items():
            if (each := ranked[position]) is not None:
                each.vector = vector
        return [each for each in ranked if each is not None]

    async def rerank(
        self, query: Query, ranked: list[Ranked], budget: Budget, trace: Trace
    ) -> list[Ranked]:
        """Order the best candidates a second time, as far as there is time for it."""
        wanted = min(self.rerank_count(query), len(ranked))
        if wanted == 0:
            return ranked
        deadline = budget.rerank(self.settings.rerank_s)
        count = self.rerankers.cost.affordable(wanted, deadline.budget_s)
        if count < wanted:
            trace.cuts.append(
                cut(
                    Stage.STAGE_RERANK,
                    Reason.REASON_DEADLINE_SHARE_SPENT,
                    f"{count} of {wanted} candidates were reranked in the time left",
                )
            )
        if count == 0:
            return ranked
        head, tail = ranked[:count], ranked[count:]
        item = RerankItem(
            query=query.text,
            passages=[_read_as(each.hit) for each in head],
            dense_scores=pack(_scores(head), FLOAT32),
            similarities=_similarities(head),
        )
        try:
            with timed(trace, Stage.STAGE_RERANK):
                reranked = await self.rerankers.rerank(item, deadline)
        except (ServiceError, TimeoutError) as error:
            trace.cuts.append(
                cut(
                    Stage.STAGE_RERANK,
                    Reason.REASON_RERANKER_UNAVAILABLE,
                    f"the order is that before reranking: {str(error) or 'none answered'}",
                )
            )
            return ranked
        trace.reranker_model = reranked.model
        for each, rerank_score, score in zip(
            head,
            reranked.rerank_scores.tolist(),
            reranked.scores.tolist(),
            strict=True,
        ):
            each.rerank_score = None if math.isnan(rerank_score) else rerank_score
            each.score, each.reranked = score, True
        head.sort(key=lambda each: -each.score)
        # What was not reranked follows in the order before it; its score never exceeds what is
        # above it.
        for each in tail:
            each.score = min(each.score, head[-1].score)
        return head + tail

    def answer(
        self, request: SearchRequest, looked: Looked, ranked: Sequence[Ranked], trace: Trace
    ) -> SearchResponse:
        """Put the answer together. Raises COVERAGE_INCOMPLETE if all or nothing was asked for."""
        route, found = looked.route, looked.found
        states = [(answer.server, state) for answer in found.answers for state in answer.states]
        trace.matching_counts = {
            state.shard: count
            for answer in found.answers
            for state, count in zip(answer.states, answer.candidates.matching_counts, strict=False)
        }
        trace.versions = {state.shard: state.table_version for _, state in states if state.ready}
        trace.holds_until_s = min(
            (
                state.next_expiry.ToNanoseconds() / 1e9
                for _, state in states
                if state.HasField("next_expiry")
            ),
            default=math.inf,
        )
        for server, state in states:
            if not state.ready:
                message = f"shard {state.shard} on {server} is not ready: {state.message}"
                trace.cuts.append(cut(Stage.STAGE_SEARCH, Reason.REASON_SHARD_UNAVAILABLE, message))
        coverage = coverage_of(
            route.shard_count,
            [state for _, state in states],
            lambda: self.probe.known_counts(route),
            trace.cuts,
        )
        require_coverage(request, coverage)
        states += self._unanswered(route, found)
        return build_response(request, route, ranked, states, coverage, trace)

    def _unanswered(self, route: IndexRoute, found: Found) -> list[tuple[str, ShardState]]:
        """The shards that nobody answered for, by what was last known of them."""
        if not found.failures:
            return []
        counts = self.probe.known_counts(route)
        return [
            (" and ".join(group.servers), ShardState(shard=each, passage_count=counts.get(each, 0)))
            for group, _ in found.failures
            for each in group.shards
        ]


def require_coverage(request: SearchRequest, coverage: Coverage) -> None:
    """Raises COVERAGE_INCOMPLETE if all or nothing was asked for."""
    if request.require_complete and not coverage.complete:
        missing = "; ".join(each.message for each in coverage.cuts)
        raise ServiceError(
            Reason.REASON_COVERAGE_INCOMPLETE,
            f"the answer would be incomplete ({missing}): try again, or take a partial answer",
        )


def _read_as(hit: Hit) -> str:
    return f"{hit.title}. {hit.text}" if hit.title else hit.text


def _fused_depth(query: Query, depth: int) -> int:
    """Candidates of either kind: some more than are wanted make the better ranking."""
    return depth if query.hybrid is None else max(depth, query.hybrid.candidate_count)


def _add_words(ranked: Sequence[Ranked | None], lexical: Lexical) -> None:
    rows = zip(
        ranked,
        lexical.scores.tolist(),
        lexical.fused.tolist(),
        lexical.dense_ranks.tolist(),
        lexical.lexical_ranks.tolist(),
        strict=True,
    )
    for each, score, fused, dense_rank, lexical_rank in rows:
        if each is not None:
            each.lexical_score, each.score = score, fused
            each.dense_rank, each.lexical_rank = dense_rank, lexical_rank


def _scores(ranked: Sequence[Ranked]) -> NDArray[np.float32]:
    """What they are ordered by, in the range of the dense scores."""
    return np.asarray([each.score for each in ranked], dtype=np.float32)


def _similarities(ranked: Sequence[Ranked]) -> bytes:
    """How near each is to each, packed; empty if the vector of one is not known."""
    vectors = [each.vector for each in ranked if each.vector is not None]
    if len(vectors) < len(ranked):
        return b""
    rows = np.stack(vectors)
    return pack(rows @ rows.T, FLOAT32)


def is_late(error: Exception) -> bool:
    """True if there was no answer for want of time."""
    if isinstance(error, ServiceError):
        return error.reason == Reason.REASON_DEADLINE_EXCEEDED
    return isinstance(error, TimeoutError)


def _why(error: Exception) -> tuple[Reason.ValueType, str]:
    if is_late(error):
        return Reason.REASON_DEADLINE_SHARE_SPENT, "did not answer in time"
    return Reason.REASON_SHARD_UNAVAILABLE, f"failed: {error}"


def _nobody_answered(found: Found) -> ServiceError:
    errors = [
        error
        for _, error in found.failures
        if isinstance(error, ServiceError) and not is_late(error)
    ]
    for error in errors:
        if error.reason in _PASSED_ON:
            return error
    if errors:
        return ServiceError(
            Reason.REASON_SHARD_UNAVAILABLE, f"no shard server answered: {errors[0]}. Try again"
        )
    if found.failures:
        return ServiceError(
            Reason.REASON_DEADLINE_EXCEEDED,
            "no shard server answered within the deadline: allow more time",
        )
    return ServiceError(Reason.REASON_NOT_READY, "the index is being loaded: try again in a moment")
