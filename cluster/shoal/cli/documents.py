"""Commands about documents: ingest, get, delete, purge."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from shoal.cli.options import AsJson, Endpoint, IndexName, Timeout, connected
from shoal.cli.output import confirm, note, print_json, print_message, printable, say

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from shoal.cli.ingestion import Ingested

Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of documents.")]


class OnError(StrEnum):
    """What a bad line means."""

    ABORT = "abort"
    SKIP = "skip"


def ingest(
    index: IndexName,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="JSONL files, plain or gzipped; - is stdin."),
    ],
    on_error: Annotated[
        OnError,
        typer.Option(
            help="What a bad line means. abort: everything is checked first, and nothing is "
            "ingested. skip: the rest is ingested."
        ),
    ] = OnError.ABORT,
    create: Annotated[
        bool, typer.Option("--create", help="Make the index if it is not there.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Return only when the documents can be found.")] = True,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 60.0,
) -> None:
    """Bring documents into an index; each replaces the one that has its id.

    A line is a JSON object with _id (or id), text, and perhaps title, metadata (an object), vector
    and expires_at (RFC 3339, or seconds since 1970). Every bad line is reported as FILE:LINE:
    reason, and makes the exit code 1. --timeout bounds the waiting at the end; the ingestion itself
    goes on for as long as it gets on.
    """
    from shoal.cli.ingestion import Ingestion, await_searchable

    with connected(endpoint) as client:
        ingestion = Ingestion(client, index, lambda bad: note(str(bad), "red"))
        result = ingestion.run(files, abort=on_error is OnError.ABORT, create=create)
        if wait and result.documents:
            result.searchable = await_searchable(client, index, result.table_version, timeout)
    if as_json:
        print_json(result.as_json())
    else:
        print_ingested(result)
    if wait and result.documents and not result.searchable:
        note(f"not every shard has them after {timeout:.0f} s: see `shoal index describe {index}`")
    if result.bad_count or (wait and result.documents and not result.searchable):
        raise typer.Exit(1)


def print_ingested(result: Ingested) -> None:
    """Say what was ingested."""
    if result.bad_count and not result.documents:
        say(f"Nothing was ingested: {result.bad_count:,} bad lines.")
        return
    rate = result.documents / result.seconds if result.seconds else 0.0
    say(
        f"{result.documents:,} documents, {result.passages:,} passages in {result.seconds:.1f} s "
        f"({rate:,.0f} documents/s); table version {result.table_version}"
    )
    if result.bad_count:
        say(f"{result.bad_count:,} bad lines were left out.")


def delete(
    index: IndexName,
    ids: Ids,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 30.0,
) -> None:
    """Delete documents by id. Ids that are not there are no error."""
    with connected(endpoint) as client:
        version = client.delete(index, ids, timeout_s=timeout)
    if as_json:
        print_json({"index": index, "document_ids": ids, "table_version": version})
    else:
        say(f"They are not in {index} from table version {version} on.")


def purge(
    index: IndexName,
    ids: Ids,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask; needed where there is no terminal.")
    ] = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 120.0,
) -> None:
    """Delete documents and take them out of storage. There is no way back.

    Says where something of them may still be: snapshots and other copies are not touched.
    """
    if not yes:
        confirm(f"purging documents of {index}", f"Purge {len(ids)} documents of {index}?")
    with connected(endpoint) as client:
        purged = client.purge(index, ids, timeout_s=timeout)
    if as_json:
        print_message(purged)
        return
    say(
        f"They are gone from {index} and from its storage: {purged.rows_removed:,} rows, "
        f"{purged.bytes_removed / 1e6:.1f} MB."
    )
    for unknown in purged.unknown_ids:
        note(f"{printable(unknown)} was not in {index}")
    if purged.remains:
        say("Something of them may remain in:")
    for each in purged.remains:
        say(f"- {printable(each)}")


def get(
    index: IndexName,
    ids: Ids,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 10.0,
) -> None:
    """Show documents by id. The exit code is 1 if one of them is not there."""
    with connected(endpoint) as client:
        found = client.get(index, ids, timeout_s=timeout)
    if as_json:
        print_message(found)
    else:
        for document in found.documents:
            say(f"{printable(document.id)}  {printable(document.title)}".rstrip(), "bold")
            spans = ", ".join(f"{each.start}-{each.end}" for each in document.passages)
            say(f"  written {document.update_time.ToJsonString()}  passages {spans}", "dim")
            say(f"  sha-256 {document.content_hash.hex()}", "dim")
            if document.HasField("expires_at"):
                say(f"  expires {document.expires_at.ToJsonString()}", "dim")
            if document.HasField("metadata"):
                say(f"  {printable(str(_metadata(document)))}", "dim")
            say(printable(document.text, keep="\n\t"))
            say("")
    for missing in found.missing_ids:
        note(f"{printable(missing)} is not in {index}", "red")
    if found.missing_ids:
        raise typer.Exit(1)


def _metadata(document: Message) -> object:
    from shoal.cli.plain import as_plain

    return as_plain(document)["metadata"]
