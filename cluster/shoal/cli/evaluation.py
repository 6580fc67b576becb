"""The command eval: how well does an index rank, by vectors, by words, by both, and reranked?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from shoal.cli.asking import ask
from shoal.cli.judging import MEASURES, Judgments, Run, judged, measure, read_qrels, read_queries
from shoal.cli.options import AsJson, Endpoint, IndexName, Timeout, connected
from shoal.cli.output import print_json, print_table, say
from shoal.cli.progress import Advance, progress

if TYPE_CHECKING:
    from shoal.client import Client, SearchRequest
    from shoal.v1.search_pb2 import SearchResponse

# Searches in a call: enough to fill the encoder's batches. Reranking takes about a tenth of a
# second each on two cores, and what waits too long is cut: a few at a time keep it busy.
BATCH: Final = 16
RERANKED_BATCH: Final = 4
# Calls at a time.
CALLS: Final = 4
RERANKED_CALLS: Final = 2


@dataclass(frozen=True)
class Way:
    """A way of ranking."""

    name: str
    hybrid: bool = True
    lexical_weight: float | None = None
    rerank: bool = False


WAYS: Final = (
    Way("dense", hybrid=False),
    Way("lexical", lexical_weight=1.0),
    Way("hybrid"),
    # Words and vectors, and then the cross-encoder.
    Way("reranked", rerank=True),
)


@dataclass
class Ranking:
    """What one way of ranking came to."""

    measures: dict[str, float]
    seconds: float
    queries_per_s: float
    incomplete: int
    """Answers whose coverage was incomplete, so that the measures say less than they seem to."""
    reranked: int
    """Answers that a reranker had ordered."""

    def as_json(self) -> dict[str, Any]:
        """As `shoal eval --json` prints it."""
        return self.measures | {
            "seconds": round(self.seconds, 3),
            "queries_per_s": round(self.queries_per_s, 1),
            "incomplete_answers": self.incomplete,
            "reranked_answers": self.reranked,
        }


@dataclass
class _Progressing:
    """Counts the queries that are answered."""

    advance: Advance
    started_s: float = field(default_factory=time.monotonic)
    done: int = 0

    def add(self, count: int) -> None:
        self.done += count
        rate = self.done / max(time.monotonic() - self.started_s, 1e-3)
        self.advance(self.done, f"{rate:.0f} queries/s")


def evaluate(
    index: IndexName,
    queries: Annotated[
        Path, typer.Option(metavar="FILE", help="Queries, JSONL with _id and text.")
    ],
    qrels: Annotated[
        Path, typer.Option(metavar="FILE", help="Judgments: query-id, corpus-id, score by tabs.")
    ],
    k: Annotated[int, typer.Option("-k", "--k", min=1, max=1_000, help="Hits to ask for.")] = 100,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Take the first N queries only.")
    ] = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 120.0,
) -> None:
    """Measure how well an index ranks: by vectors, by words, by both, and reranked.

    Of a document with several passages among the hits, the best counts. The cache is bypassed.
    --timeout is for each call, which asks 16 queries.
    """
    judgments = read_qrels(qrels)
    asked = judged(read_queries(queries), judgments, limit)
    with connected(endpoint) as client:
        rankings = compare(client, index, asked, judgments, top_k=k, timeout_s=timeout)
    if as_json:
        print_json(
            {"index": index, "queries": len(asked), "k": k}
            | {name: ranking.as_json() for name, ranking in rankings.items()}
        )
    else:
        print_rankings(rankings, len(asked))


def compare(
    client: Client,
    index: str,
    queries: Mapping[str, str],
    judgments: Judgments,
    *,
    top_k: int = 100,
    timeout_s: float = 120.0,
) -> dict[str, Ranking]:
    """Rank all queries in each way; measure each."""
    rankings = {}
    for way in WAYS:
        with progress(way.name, len(queries), "queries") as advance:
            ranked = _rank_all(client, index, queries, advance, way, top_k, timeout_s)
        rankings[way.name] = ranked.judged_by(judgments)
    return rankings


def print_rankings(rankings: Mapping[str, Ranking], query_count: int) -> None:
    """Print the measures side by side."""
    rows = [
        (name, *(f"{ranking.measures[name]:.4f}" for ranking in rankings.values()))
        for name in MEASURES
    ]
    rates = ("queries/s", *(f"{ranking.queries_per_s:.0f}" for ranking in rankings.values()))
    print_table((f"{query_count:,} queries", *rankings), [*rows, rates], numbers=rankings)
    for name, ranking in rankings.items():
        if ranking.incomplete:
            say(f"{ranking.incomplete:,} {name} answers were incomplete", "yellow")
    if not rankings["reranked"].reranked:
        say("Nothing was reranked: `shoal status` shows whether there is a reranker.", "yellow")


@dataclass
class _Ranked:
    """The answers to all queries."""

    run: Run = field(default_factory=dict)
    incomplete: int = 0
    reranked: int = 0
    seconds: float = 0.0

    def add(self, query_id: str, response: SearchResponse) -> None:
        self.run[query_id] = best_passages(response)
        self.incomplete += not response.coverage.complete
        self.reranked += any(hit.HasField("rerank_score") for hit in response.hits)

    def judged_by(self, judgments: Judgments) -> Ranking:
        return Ranking(
            measures=measure(self.run, judgments),
            seconds=self.seconds,
            queries_per_s=len(self.run) / self.seconds if self.seconds else 0.0,
            incomplete=self.incomplete,
            reranked=self.reranked,
        )


def _rank_all(
    client: Client,
    index: str,
    queries: Mapping[str, str],
    advance: Advance,
    way: Way,
    top_k: int,
    timeout_s: float,
) -> _Ranked:
    from shoal.client import search_request

    started_s, ranked = time.monotonic(), _Ranked()
    counted = _Progressing(advance)
    requests = {
        query_id: search_request(
            index,
            text,
            top_k=top_k,
            rerank=way.rerank,
            hybrid=way.hybrid,
            lexical_weight=way.lexical_weight,
            omit_text=True,
            bypass_cache=True,
            # Judged questions are not what the index is asked.
            no_feedback=True,
        )
        for query_id, text in queries.items()
    }

    def answer(query_ids: Sequence[str]) -> dict[str, SearchResponse]:
        searches = [requests[query_id] for query_id in query_ids]
        return dict(zip(query_ids, ask(client, searches, timeout_s), strict=True))

    batch, calls_at_a_time = (RERANKED_BATCH, RERANKED_CALLS) if way.rerank else (BATCH, CALLS)
    with ThreadPoolExecutor(calls_at_a_time) as pool:
        calls: list[Future[dict[str, SearchResponse]]] = [
            pool.submit(answer, each) for each in _batches(requests, batch)
        ]
        try:
            for call in calls:
                for query_id, response in call.result().items():
                    ranked.add(query_id, response)
                counted.add(len(call.result()))
        finally:
            for call in calls:
                call.cancel()
    ranked.seconds = time.monotonic() - started_s
    return ranked


def best_passages(response: SearchResponse) -> dict[str, float]:
    """The score of each document's best passage, in the order of the answer.

    Equal scores would be ordered anew by the measures' own rule, so ranks are what they get.
    """
    ranked = dict.fromkeys(hit.document_id for hit in response.hits)
    return {document_id: float(-rank) for rank, document_id in enumerate(ranked)}


def _batches(requests: Mapping[str, SearchRequest], size: int) -> Iterator[list[str]]:
    query_ids = iter(requests)
    while batch := list(islice(query_ids, size)):
        yield batch
