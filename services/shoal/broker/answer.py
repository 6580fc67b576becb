"""What does the caller get to see of a search?"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from shoal.broker.routes import IndexRoute
from shoal.internal.v1.shard_pb2 import ShardState
from shoal.v1.search_pb2 import (
    CacheState,
    Coverage,
    Explanation,
    Hit,
    Provenance,
    SearchRequest,
    SearchResponse,
    ShardExplanation,
    SpaceAnswer,
    SpaceRank,
    Stage,
    StageCut,
)


@dataclass
class Ranked:
    """A candidate on its way into the answer."""

    hit: Hit
    """Without scores, until the answer is made."""
    shard: int
    server: str
    dense_score: float
    score: float
    reranked: bool = False
    rerank_score: float | None = None
    """None also for one that stood too far down to be read."""
    lexical_score: float | None = None
    dense_rank: int = 0
    lexical_rank: int = 0
    vector: NDArray[np.float32] | None = None
    """Of those that are to be reranked, as far as they came along."""
    spaces: list[SpaceRank] = field(default_factory=list)
    """The spaces that found it, best rank first; empty where none was named."""


@dataclass
class Trace:
    """What is noted while a search runs."""

    timings: list[tuple[Stage.ValueType, float]] = field(default_factory=list)
    cuts: list[StageCut] = field(default_factory=list)
    cache: CacheState.ValueType = CacheState.CACHE_STATE_BYPASS
    encoder_model: str = ""
    reranker_model: str = ""
    vector: bytes = b""
    """The question's, float32; empty if it was not needed."""
    versions: dict[int, int] = field(default_factory=dict)
    """Table version that each shard had applied when it answered."""
    matching_counts: dict[int, int] = field(default_factory=dict)
    """Passages of each shard that match the filter; empty if there is none."""
    holds_until_s: float = math.inf
    """When the next passage of the shards that answered expires, in seconds since 1970: what was
    found holds no longer."""


@contextmanager
def timed(trace: Trace, stage: Stage.ValueType) -> Iterator[None]:
    """Note how long a stage takes, whether it succeeds or not."""
    started_s = time.monotonic()
    try:
        yield
    finally:
        trace.timings.append((stage, time.monotonic() - started_s))


def build_response(
    request: SearchRequest,
    route: IndexRoute,
    ranked: Sequence[Ranked],
    states: Sequence[tuple[str, ShardState]],
    coverage: Coverage,
    trace: Trace,
) -> SearchResponse:
    """Put the answer together. states: server and state of each shard that was asked."""
    versions = {state.shard: state.table_version for _, state in states if state.ready}
    response = SearchResponse(
        coverage=coverage,
        table_version=min(versions.values(), default=0),
        index_version=route.index_version,
        encoder_model=route.encoder_model,
    )
    for each in ranked:
        _fill(each, request)
        if request.explain:
            each.hit.provenance.CopyFrom(
                Provenance(
                    index=route.name,
                    index_version=route.index_version,
                    table_version=versions.get(each.shard, 0),
                    encoder_model=trace.encoder_model,
                    reranker_model=trace.reranker_model if each.reranked else "",
                    shard=each.shard,
                    shard_server=each.server,
                    dense_rank=each.dense_rank,
                    lexical_rank=each.lexical_rank,
                    spaces=each.spaces,
                )
            )
    response.hits.extend([each.hit for each in ranked])
    if request.spaces:
        response.spaces.append(
            SpaceAnswer(
                space=route.space,
                index_version=route.index_version,
                encoder_model=route.encoder_model,
                coverage=coverage,
                table_version=response.table_version,
            )
        )
    if request.explain:
        response.explanation.CopyFrom(
            Explanation(
                encoder_model=trace.encoder_model,
                reranker_model=trace.reranker_model,
                index_version=route.index_version,
                shards=[
                    ShardExplanation(
                        shard=state.shard,
                        shard_server=server,
                        table_version=state.table_version if state.ready else 0,
                        passages=state.passage_count,
                        kind=state.kind,
                        passages_matching=(
                            trace.matching_counts.get(state.shard) if state.ready else None
                        ),
                        space=route.space if request.spaces else "",
                    )
                    for server, state in sorted(states, key=lambda each: each[1].shard)
                ],
            )
        )
    return response


def _fill(ranked: Ranked, request: SearchRequest) -> None:
    hit = ranked.hit
    hit.score = ranked.score
    hit.dense_score = ranked.dense_score
    if ranked.rerank_score is not None:
        hit.rerank_score = ranked.rerank_score
    if ranked.lexical_score is not None:
        hit.lexical_score = ranked.lexical_score
    if request.omit_text:  # The reranker has read them, the caller does not want them.
        for name in ("title", "text", "metadata"):
            hit.ClearField(name)


def stamp(
    response: SearchResponse, trace: Trace, *, total_s: float, epoch: int, broker: str
) -> None:
    """Write into an explanation what is true of this very call, also when the answer was cached."""
    explanation = response.explanation
    del explanation.timings[:]
    for stage, duration_s in trace.timings:
        timing = explanation.timings.add(stage=stage)
        timing.duration.FromNanoseconds(int(duration_s * 1e9))
    explanation.total.FromNanoseconds(int(total_s * 1e9))
    explanation.cache = trace.cache
    explanation.epoch = epoch
    explanation.broker = broker
