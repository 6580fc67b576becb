"""Commands about indexes: create, list, describe, drop, and those of their versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from shoal.cli import plan, spaces, versions
from shoal.cli.options import (
    AsJson,
    Endpoint,
    IndexName,
    Kind,
    Recall,
    Timeout,
    connected,
    kind_number,
)
from shoal.cli.output import CliError, confirm, note, print_json, print_message, print_table, say

if TYPE_CHECKING:
    from shoal.v1.indexes_pb2 import DescribeIndexResponse, Index

app = typer.Typer(help="Make, list, describe, build and drop indexes.", no_args_is_help=True)
app.command("build")(versions.build)
app.command("plan")(plan.plan)
app.command("versions")(versions.versions)
app.command("promote")(versions.promote)
app.command("rollback")(versions.rollback)
app.command("drop-version")(versions.drop_version)
app.command("add-space")(spaces.add_space)
app.command("drop-space")(spaces.drop_space)

COLUMNS = (
    *("index", "state", "documents", "passages", "shards", "search", "recall"),
    *("table version", "model"),
)
NUMBERS = ("documents", "passages", "shards", "recall", "table version")


@app.command()
def create(
    name: IndexName,
    dimension: Annotated[
        int,
        typer.Option(
            min=0,
            max=4_096,
            help="Numbers in a vector. 0: those of the cluster's encoder. Any other suits vectors "
            "of your own only.",
        ),
    ] = 0,
    recall: Recall = None,
    kind: Kind = None,
    field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:TYPE",
            help="A field of the documents' metadata to filter by: string, integer, float, boolean,"
            " timestamp or strings. May be repeated; cannot be changed later.",
            show_default=False,
        ),
    ] = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 30.0,
) -> None:
    """Make an empty index."""
    fields = _fields_of(field or [])
    with connected(endpoint) as client:
        index = client.create_index(
            name,
            dimension,
            fields=fields,
            recall_target=recall or 0.0,
            kind=kind_number(kind or "auto"),
            timeout_s=timeout,
        )
    if as_json:
        print_message(index)
    else:
        say(f"{index.name} is there: {index.dimension} dimensions, {index.encoder_model}")
        _print_fields(index)


def _fields_of(declared: list[str]) -> dict[str, str]:
    """Types by name, of fields that were given as NAME:TYPE."""
    from shoal.client._requests import field_type

    fields: dict[str, str] = {}
    for each in declared:
        name, _, type_ = each.partition(":")
        if name in fields:
            raise typer.BadParameter(f"{name!r} is declared twice", param_hint="--field")
        try:
            field_type(type_)
        except ValueError as error:
            raise typer.BadParameter(f"{each!r}: {error}", param_hint="--field") from error
        fields[name] = type_
    return fields


def _print_fields(index: Index) -> None:
    from shoal.cli.plain import enum_name
    from shoal.v1.indexes_pb2 import FieldType

    if index.fields:
        names = (
            f"{each.name}:{enum_name(FieldType.DESCRIPTOR, each.type).lower()}"
            for each in index.fields
        )
        say(f"fields to filter by: {', '.join(names)}", "dim")


@app.command()
def update(
    name: IndexName,
    recall: Recall = None,
    kind: Kind = None,
    feedback: Annotated[
        bool | None,
        typer.Option(
            "--feedback/--no-feedback",
            help="Whether anything of its searches is kept to learn from. What was kept goes with "
            "the next cleaning.",
            show_default=False,
        ),
    ] = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 10.0,
) -> None:
    """Change the recall target or the kind of an index, for the versions that are built next.

    Or, at once, whether it takes feedback.
    """
    from shoal.cli.plain import enum_name
    from shoal.v1.search_pb2 import SearchKind

    if recall is None and kind is None and feedback is None:
        raise CliError("there is nothing to change: give --recall, --kind, or --feedback")
    with connected(endpoint) as client:
        index = client.update_index(
            name,
            recall_target=recall,
            kind=None if kind is None else kind_number(kind),
            feedback_disabled=None if feedback is None else not feedback,
            timeout_s=timeout,
        )
    if as_json:
        print_message(index)
        return
    if feedback is not None:
        kept = "Nothing" if index.feedback_disabled else "Feedback"
        say(f"{kept} of the searches of {name} is kept from now on.")
    if recall is None and kind is None:
        return
    kind_name = enum_name(SearchKind.DESCRIPTOR, index.declared_kind).lower().replace("_", "-")
    say(
        f"The next versions of {name} are built for recall@10 {index.recall_target:g}, of the kind "
        + (f"{kind_name}." if index.declared_kind else "that suits.")
    )
    note(f"What serves is as it was: `shoal index build {name}` makes one.")


@app.command("list")
def list_(endpoint: Endpoint = None, as_json: AsJson = False, timeout: Timeout = 10.0) -> None:
    """List the indexes."""
    from shoal.cli.plain import as_plain

    with connected(endpoint) as client:
        indexes = list(client.list_indexes(timeout_s=timeout))
    if as_json:
        print_json({"indexes": [as_plain(each) for each in indexes]})
    elif indexes:
        print_indexes(indexes)
    else:
        say("There are none yet: make one with `shoal index create`.")


def print_indexes(indexes: list[Index]) -> None:
    """Print indexes as a table."""
    from shoal.cli.plain import enum_name
    from shoal.v1.indexes_pb2 import IndexState
    from shoal.v1.search_pb2 import SearchKind

    rows = [
        (
            each.name,
            enum_name(IndexState.DESCRIPTOR, each.state),
            f"{each.document_count:,}",
            f"{each.passage_count:,}",
            each.shard_count,
            enum_name(SearchKind.DESCRIPTOR, each.kind),
            f"{each.live_recall:.3f}" if each.HasField("live_recall") else "",
            each.table_version,
            each.encoder_model,
        )
        for each in indexes
    ]
    print_table(COLUMNS, rows, numbers=NUMBERS)


@app.command()
def describe(
    name: IndexName, endpoint: Endpoint = None, as_json: AsJson = False, timeout: Timeout = 10.0
) -> None:
    """Show an index's model, counts and versions, and what each of its shards is doing."""
    with connected(endpoint) as client:
        found = client.describe_index(name, timeout_s=timeout)
    if as_json:
        print_message(found)
    else:
        _print_description(found)


def _print_description(found: DescribeIndexResponse) -> None:
    from shoal.cli.plain import enum_name
    from shoal.v1.search_pb2 import SearchKind

    index = found.index
    print_indexes([index])
    version = f"index version {index.index_version}" if index.index_version else "exact search"
    if index.HasField("standby_version"):
        version += f" (version {index.standby_version} stands by)"
    say(
        f"uid {index.uid}  {index.dimension} dimensions  {version}  "
        f"recall target {index.recall_target:g}  "
        f"made {index.create_time.ToJsonString()}",
        "dim",
    )
    _print_fields(index)
    if index.row_count:
        share = index.superseded_row_count / index.row_count
        say(
            f"{index.row_count:,} rows in the table, {index.superseded_row_count:,} of them "
            f"({share:.0%}) replaced, deleted or expired",
            "dim",
        )
    if index.search_effort:
        say(_live_line(index, found), "yellow" if index.search_effort > 1 else "dim")
    spaces.print_spaces(index.spaces)
    say("")
    rows = [
        (
            each.shard,
            each.shard_server,
            "yes" if each.ready else "no",
            f"{each.document_count:,}",
            f"{each.passage_count:,}",
            enum_name(SearchKind.DESCRIPTOR, each.kind),
            f"{each.tail_count:,}",
            each.table_version,
            f"{each.memory_bytes / 1e6:.1f}",
            f"{each.recall:.3f}" if each.HasField("recall") else "",
        )
        for each in found.shards
    ]
    columns = ("shard", "server", "ready", "documents", "passages", "search")
    counts = ("in the tail", "table version", "MB", "recall")
    print_table((*columns, *counts), rows, numbers=("shard", "documents", "passages", *counts))


def _live_line(index: Index, found: DescribeIndexResponse) -> str:
    effort = (
        "searched as it was measured"
        if index.search_effort <= 1
        else f"searched {index.search_effort:g} times as hard as it was measured"
    )
    if not index.HasField("live_recall"):
        return f"too few live queries to tell their recall; {effort}"
    count = max(each.recall_queries for each in found.shards)
    return (
        f"recall of the last {count} live queries without a filter {index.live_recall:.3f}; "
        f"{effort}"
    )


@app.command()
def clean(
    name: IndexName, endpoint: Endpoint = None, as_json: AsJson = False, timeout: Timeout = 600.0
) -> None:
    """Remove now from an index's storage what is not needed any more.

    The writer does so by itself from time to time, as `retention` in the topology file says.
    """
    with connected(endpoint) as client:
        cleaned = client.clean_index(name, timeout_s=timeout)
    if as_json:
        print_message(cleaned)
        return
    say(
        f"{cleaned.rows_removed:,} rows and {cleaned.tombstones_removed:,} tombstones removed, "
        f"{cleaned.bytes_removed / 1e6:.1f} MB freed; {cleaned.documents_expired:,} documents had "
        "expired."
    )
    if cleaned.versions_dropped:
        say(f"Index versions dropped: {', '.join(map(str, cleaned.versions_dropped))}.")


@app.command()
def drop(
    name: IndexName,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask; needed where there is no terminal.")
    ] = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 30.0,
) -> None:
    """Drop an index with all its documents. There is no way back."""
    if not yes:
        confirm(f"dropping {name}", f"Drop {name} with all its documents?")
    with connected(endpoint) as client:
        client.drop_index(name, timeout_s=timeout)
    if as_json:
        print_json({"dropped": name})
    else:
        say(f"{name} is gone.")
