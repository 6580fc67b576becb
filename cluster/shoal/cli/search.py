"""The command search: ranked passages for a question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from shoal.cli.options import AsJson, Endpoint, Filter, IndexName, Timeout, connected
from shoal.cli.output import print_message, print_table, printable, say, snippet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shoal.v1.search_pb2 import Coverage, Explanation, Hit, SearchResponse, SpaceAnswer


def search(
    index: IndexName,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A question or a phrase.")],
    top_k: Annotated[
        int, typer.Option("--top-k", "-k", metavar="N", help="Hits to return, 1 to 1,000.")
    ] = 10,
    rerank: Annotated[
        bool, typer.Option("--rerank/--no-rerank", help="Order the best by the cross-encoder.")
    ] = True,
    candidates: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="How many to rerank, 1 to 200. None: as many as the cluster does by default.",
            show_default=False,
        ),
    ] = None,
    hybrid: Annotated[
        bool, typer.Option("--hybrid/--no-hybrid", help="Let the question's words count too.")
    ] = True,
    lexical_weight: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="WEIGHT",
            help="How much the words count, 0 to 1. None: as the cluster does by default.",
            show_default=False,
        ),
    ] = None,
    lexical_only: Annotated[
        bool, typer.Option("--lexical-only", help="Rank by the words alone: --lexical-weight 1.")
    ] = False,
    per_document: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Gather hits by document, no more than N of each; --top-k counts documents.",
            show_default=False,
        ),
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPACE",
            help="A vector space to search, `default` or another one; given more than once, they "
            "are fused.",
            show_default=False,
        ),
    ] = None,
    min_table_version: Annotated[
        int,
        typer.Option(min=0, metavar="VERSION", help="Answer from this table version or later."),
    ] = 0,
    require_complete: Annotated[
        bool, typer.Option("--require-complete", help="Fail if a part of the index is missing.")
    ] = False,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Whether the cache may be used.")
    ] = True,
    filter: Filter = "",  # noqa: A002  # the option's name
    explain: Annotated[
        bool, typer.Option("--explain", help="Show how the answer was made.")
    ] = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 10.0,
) -> None:
    """Rank the passages of an index for a question.

    --timeout is the budget of the search: what does not fit is cut, and said.
    """
    with connected(endpoint) as client:
        answer = client.search(
            index,
            text,
            top_k=top_k,
            rerank=rerank,
            candidate_count=candidates,
            min_table_version=min_table_version,
            require_complete=require_complete,
            explain=explain,
            hits_per_document=per_document,
            filter=filter,
            hybrid=hybrid,
            lexical_weight=1.0 if lexical_only else lexical_weight,
            bypass_cache=not cache,
            spaces=space or (),
            timeout_s=timeout,
        )
    if as_json:
        print_message(answer)
    else:
        print_answer(answer)


def print_answer(answer: SearchResponse, *, brief: bool = False) -> None:
    """Print hits, what they rest on, and how they came to be.

    brief: of an explanation, the stages' times alone.
    """
    if not answer.hits:
        say("No hits.")
    for rank, hit in enumerate(answer.hits, start=1):
        _print_hit(rank, hit)
        if hit.HasField("provenance") and not brief:
            _print_provenance(hit)
    print_coverage(answer.coverage, always=answer.HasField("explanation"))
    if len(answer.spaces) > 1 and not brief:
        _print_spaces(answer.spaces)
    if answer.HasField("explanation"):
        _print_times(answer.explanation)
        if not brief:
            _print_explanation(answer.explanation)


def _print_hit(rank: int, hit: Hit) -> None:
    words = f"  words {hit.lexical_score:.2f}" if hit.HasField("lexical_score") else ""
    reranked = f"  rerank {hit.rerank_score:.3f}" if hit.HasField("rerank_score") else ""
    where = f"passage {hit.passage}, characters {hit.span.start}-{hit.span.end}"
    say(f"{rank:>3}. {printable(hit.document_id)}  {printable(hit.title)}".rstrip(), "bold")
    say(
        f"     score {hit.score:.4f}  dense {hit.dense_score:.4f}{words}{reranked}  {where}", "cyan"
    )
    if hit.text:
        say(f"     {snippet(hit.text)}")


def _print_provenance(hit: Hit) -> None:
    from_ = hit.provenance
    models = " + ".join(each for each in (from_.encoder_model, from_.reranker_model) if each)
    say(
        f"     {from_.index} index version {from_.index_version}, table version "
        f"{from_.table_version}, shard {from_.shard} on {from_.shard_server}, {models}",
        "dim",
    )
    ranks = ("vectors", from_.dense_rank), ("words", from_.lexical_rank)
    if found := [f"{rank} by {kind}" for kind, rank in ranks if rank]:
        say(f"     rank {', rank '.join(found)}", "dim")
    if from_.spaces:
        where = ", ".join(f"{each.space} (rank {each.rank})" for each in from_.spaces)
        say(f"     found in {where}", "dim")
    say(f"     sha-256 of the document {hit.content_hash.hex()}", "dim")


def print_coverage(coverage: Coverage, *, always: bool = False) -> None:
    """Say what an answer rests on, if that is less than everything, or always."""
    from shoal.cli.plain import enum_name
    from shoal.v1.search_pb2 import Stage

    if coverage.complete and not always:
        return
    say("")
    say(
        f"Coverage: {'complete' if coverage.complete else 'INCOMPLETE'}, "
        f"{coverage.shards_searched} of {coverage.shards_total} shards, "
        f"{coverage.passages_searched:,} of {coverage.passages_total:,} passages",
        "green" if coverage.complete else "bold yellow",
    )
    for cut in coverage.cuts:
        stage = enum_name(Stage.DESCRIPTOR, cut.stage).lower()
        say(f"  {stage} was cut: {printable(cut.message)} [{cut.reason}]", "yellow")


def _print_spaces(answers: Iterable[SpaceAnswer]) -> None:
    for each in answers:
        covered = each.coverage
        say(
            f"Space {each.space}: {each.encoder_model}, index version {each.index_version}, "
            f"{covered.shards_searched} of {covered.shards_total} shards",
            "dim" if covered.complete else "yellow",
        )


def _print_times(explanation: Explanation) -> None:
    from shoal.cli.plain import enum_name, milliseconds
    from shoal.v1.search_pb2 import Stage

    stages = [
        f"{enum_name(Stage.DESCRIPTOR, each.stage).lower()} {milliseconds(each.duration):.1f} ms"
        for each in explanation.timings
    ]
    say(f"Time: {milliseconds(explanation.total):.1f} ms ({', '.join(stages)})")


def _print_explanation(explanation: Explanation) -> None:
    from shoal.cli.plain import enum_name
    from shoal.v1.search_pb2 import CacheState, SearchKind

    spaces = {each.space for each in explanation.shards} or {""}
    cache = enum_name(CacheState.DESCRIPTOR, explanation.cache).lower().replace("_", " ")
    say(
        f"Cache: {cache}. Broker {explanation.broker}, epoch {explanation.epoch}"
        + (f", index version {explanation.index_version}." if len(spaces) == 1 else ".")
    )
    models = (explanation.encoder_model, explanation.reranker_model)
    say(f"Models: {', '.join(each for each in models if each)}")
    named = spaces != {""}
    rows = [
        (
            *((each.space,) if named else ()),
            each.shard,
            each.shard_server,
            f"{each.passages:,}",
            f"{each.passages_matching:,}" if each.HasField("passages_matching") else "all",
            enum_name(SearchKind.DESCRIPTOR, each.kind),
            each.table_version,
        )
        for each in explanation.shards
    ]
    print_table(
        (
            *(("space",) if named else ()),
            *("shard", "server", "passages", "matching", "search", "table version"),
        ),
        rows,
        numbers=("shard", "passages", "matching", "table version"),
    )
