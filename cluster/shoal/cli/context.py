"""The command context: texts with citations, for a generator to answer from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from shoal.cli.options import AsJson, Endpoint, Filter, IndexName, Timeout, connected
from shoal.cli.output import print_message, printable, say
from shoal.cli.search import print_coverage

if TYPE_CHECKING:
    from shoal.v1.search_pb2 import RetrieveContextResponse


def context(
    index: IndexName,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A question or a phrase.")],
    budget: Annotated[
        int, typer.Option("--budget", "-b", metavar="TOKENS", help="Most tokens in all texts.")
    ] = 2_000,
    top_k: Annotated[int, typer.Option("--top-k", "-k", metavar="N", help="Hits to use.")] = 10,
    neighbours: Annotated[
        int, typer.Option(metavar="N", help="Passages on each side of a hit that may come along.")
    ] = 1,
    per_document: Annotated[
        int | None,
        typer.Option(metavar="N", help="Use no more hits of one document.", show_default=False),
    ] = None,
    filter: Filter = "",  # noqa: A002  # the option's name
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 10.0,
) -> None:
    """Glue the passages that answer a question into texts, each with its citations."""
    with connected(endpoint) as client:
        answer = client.retrieve_context(
            index,
            text,
            token_budget=budget,
            neighbours=neighbours,
            top_k=top_k,
            hits_per_document=per_document,
            filter=filter,
            timeout_s=timeout,
        )
    if as_json:
        print_message(answer)
    else:
        print_contexts(answer, budget)


def print_contexts(answer: RetrieveContextResponse, budget: int) -> None:
    """Print the texts whole, as they are made to be read."""
    if not answer.contexts:
        say("No hits.")
    for number, each in enumerate(answer.contexts, start=1):
        say(f"[{number}] {printable(each.document_id)}  {printable(each.title)}".rstrip(), "bold")
        cited = ", ".join(f"passage {one.passage} ({one.score:.3f})" for one in each.citations)
        where = f"characters {each.span.start}-{each.span.end}"
        say(f"    {cited}; {where}; sha-256 {each.content_hash.hex()[:16]}", "cyan")
        say(printable(each.text, keep="\n"))
        say("")
    left = f"; {answer.hits_left_out} hits had no room" if answer.hits_left_out else ""
    say(f"{answer.token_count:,} of {budget:,} tokens{left}", "dim")
    print_coverage(answer.coverage)
