"""Which vector spaces does a search ask, and how do their rankings become one?

Each space ranks by a model of its own, whose scores mean nothing beside another's: so ranks are
fused, and not scores (reciprocal rank: Cormack, Clarke and Büttcher, 2009). A passage is the same
in all spaces, as all are made from one table; but one space may have followed it further than
another. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from shoal.broker.answer import Ranked, Trace
from shoal.broker.fusion import RANK_OFFSET
from shoal.broker.routes import IndexRoute
from shoal.rpc.errors import InvalidFieldError
from shoal.rpc.space_names import MAX_SPACES
from shoal.v1.search_pb2 import (
    CacheState,
    Coverage,
    Explanation,
    Hit,
    SearchRequest,
    SearchResponse,
    SpaceAnswer,
    SpaceRank,
    StageCut,
)

# Candidates of each space that take part at least: what two spaces rank 40th goes before what one
# ranks first and the other does not know.
DEPTH: Final = 50
# In place of a greatest score that is not above 0.
_LEAST_RANGE: Final = 1e-3


def spaces_of(request: SearchRequest, route: IndexRoute) -> list[IndexRoute]:
    """The routes to the spaces that a search names; empty if it names none.

    Raises InvalidFieldError, SPACE_NOT_FOUND, VERSION_NOT_READY.
    """
    names = list(request.spaces)
    if not names:
        return []
    if len(set(names)) < len(names):
        raise InvalidFieldError("spaces", "names one of them twice")
    if len(names) > MAX_SPACES + 1:
        raise InvalidFieldError("spaces", f"names {len(names)}; an index has {MAX_SPACES + 1}")
    if request.HasField("index_version"):
        raise InvalidFieldError(
            "index_version", "is of the default space: leave it out, or leave out `spaces`"
        )
    found = [route.in_space(name) for name in names]
    if len(found) > 1 and request.WhichOneof("query") == "vector":
        raise InvalidFieldError(
            "spaces", "names several, and a vector is of one model: name the space that it is of"
        )
    return found


def weight_of(request: SearchRequest) -> int:
    """How many searches one counts as, where there may be only so many: each space is looked in."""
    return min(max(1, len(request.spaces)), MAX_SPACES + 1)


def route_to_read(found: SearchResponse, route: IndexRoute) -> IndexRoute:
    """The route by which the documents of an answer are read: of a space that is known to answer.

    The first that has answered whole, or else the one that has answered most.
    route: to the default space, which is asked where the search named none.
    """
    if not found.spaces:
        return route
    chosen = max(
        found.spaces,
        key=lambda each: (
            each.coverage.complete,
            each.coverage.shards_searched / max(1, each.coverage.shards_total),
        ),
    )
    # One that was dropped since has no documents any more; the default space has the same.
    return route.spaces.get(chosen.space, route)


def note_space(ranked: Sequence[Ranked], space: str) -> None:
    """Note in candidates, best first, where they stand in the ranking of a space."""
    for rank, each in enumerate(ranked, start=1):
        each.spaces = [SpaceRank(space=space, rank=rank, score=each.score)]


def fuse_spaces(rankings: Sequence[Sequence[Ranked]]) -> list[Ranked]:
    """Make one ranking of those of several spaces, each noted and best first.

    A passage that several have found is that of the space which ranks it best. Of a document in two
    states the newer one is kept alone. The score is in the range of those of the first ranking that
    is not empty, so that it means what those do for a reranker's blend.
    """
    newest: dict[str, tuple[int, int]] = {}
    for each in (each for ranking in rankings for each in ranking):
        time = _time(each.hit)
        newest[each.hit.document_id] = max(time, newest.get(each.hit.document_id, time))
    found: dict[tuple[str, int], list[Ranked]] = {}
    for each in (each for ranking in rankings for each in ranking):
        if _time(each.hit) == newest[each.hit.document_id]:
            found.setdefault((each.hit.document_id, each.hit.passage), []).append(each)
    greatest = next((ranking[0].score for ranking in rankings if ranking), 0.0)
    unit = max(greatest, _LEAST_RANGE) / max(1, len(rankings))
    fused = [_fused(same, unit) for same in found.values()]
    # Of equals the better rank first; and whatever comes first in the rankings.
    return sorted(fused, key=lambda each: (-each.score, each.spaces[0].rank))


def _fused(same: Sequence[Ranked], unit: float) -> Ranked:
    """One candidate of all that are the same passage. unit: of a first rank."""
    best = min(same, key=lambda each: each.spaces[0].rank)
    ranks = sorted((rank for each in same for rank in each.spaces), key=lambda each: each.rank)
    summed = sum((RANK_OFFSET + 1.0) / (RANK_OFFSET + each.rank) for each in ranks)
    return replace(best, score=summed * unit, spaces=ranks)


def _time(hit: Hit) -> tuple[int, int]:
    return hit.update_time.seconds, hit.update_time.nanos


def in_space(cut: StageCut, space: str) -> StageCut:
    """The same cut, saying in which space it was."""
    return StageCut(stage=cut.stage, reason=cut.reason, message=f"space {space}: {cut.message}")


def unanswered(route: IndexRoute, passage_count: int, cut: StageCut) -> SpaceAnswer:
    """What is said of a space that did not answer. passage_count: in it, as last known."""
    return SpaceAnswer(
        space=route.space,
        index_version=route.index_version,
        encoder_model=route.encoder_model,
        coverage=Coverage(shards_total=route.shard_count, passages_total=passage_count, cuts=[cut]),
    )


def coverage_of_all(answers: Sequence[SpaceAnswer], cuts: Sequence[StageCut]) -> Coverage:
    """The coverage of all spaces together. cuts: of what comes after them."""
    covered = [each.coverage for each in answers]
    own = [in_space(cut, each.space) for each in answers for cut in each.coverage.cuts]
    return Coverage(
        complete=all(each.complete for each in covered) and not cuts,
        shards_searched=sum(each.shards_searched for each in covered),
        shards_total=sum(each.shards_total for each in covered),
        passages_searched=sum(each.passages_searched for each in covered),
        passages_total=sum(each.passages_total for each in covered),
        cuts=[*own, *cuts],
    )


def joined_response(
    ranked: Sequence[Ranked],
    parts: Sequence[SearchResponse],
    answers: Sequence[SpaceAnswer],
    coverage: Coverage,
    *,
    explain: bool,
) -> SearchResponse:
    """One answer of those of the spaces that answered, each with its own part of the hits.

    ranked: all hits in order; parts: of each space, in the order of `ranked`.
    """
    hits = {part.spaces[0].space: iter(part.hits) for part in parts}
    response = SearchResponse(
        hits=[next(hits[each.spaces[0].space]) for each in ranked],
        coverage=coverage,
        table_version=min(part.table_version for part in parts),
        spaces=answers,
    )
    if explain:
        shards = [shard for part in parts for shard in part.explanation.shards]
        reranker_model = parts[0].explanation.reranker_model
        response.explanation.CopyFrom(Explanation(reranker_model=reranker_model, shards=shards))
    return response


def slowest(traces: Sequence[Trace]) -> Trace:
    """A trace of stages that ran side by side: each took what it took where it took longest."""
    known = all(trace.cache == CacheState.CACHE_STATE_VECTOR_HIT for trace in traces)
    joint = Trace()
    joint.cache = CacheState.CACHE_STATE_VECTOR_HIT if known else CacheState.CACHE_STATE_BYPASS
    stages = dict.fromkeys(stage for trace in traces for stage, _ in trace.timings)
    for stage in stages:
        took_s = [
            sum(each_s for each, each_s in trace.timings if each == stage) for trace in traces
        ]
        joint.timings.append((stage, max(took_s)))
    return joint
