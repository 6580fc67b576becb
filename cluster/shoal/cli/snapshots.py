"""Commands about snapshots: snapshot, restore, snapshots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from shoal.cli.options import AsJson, Endpoint, IndexName, Timeout, connected
from shoal.cli.output import note, print_json, print_message, print_table, say

if TYPE_CHECKING:
    from shoal.v1.indexes_pb2 import CopyProgress, Snapshot

COLUMNS: Final = ("where", "index", "taken", "documents", "passages", "table", "version", "MB")
NUMBERS: Final = ("documents", "passages", "table", "version", "MB")
# Of a copy that nobody limits: more than any takes.
_DAY_S: Final = 86_400.0
_MEGABYTE: Final = 1_000_000

Uri = Annotated[
    str,
    typer.Argument(
        metavar="URI",
        help="A folder that the writer reaches, or a URL of an object store, such as "
        "s3://bucket/folder.",
    ),
]


def snapshot(
    name: IndexName,
    uri: Uri,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = _DAY_S,
) -> None:
    """Copy an index, as it is now, to an empty folder or an object store."""
    with connected(endpoint) as client, _shown(f"copying {name}") as on_progress:
        taken = client.snapshot_index(
            name, place_of(uri), on_progress=on_progress, timeout_s=timeout
        )
    if as_json:
        print_message(taken)
        return
    say(
        f"{name} is in {taken.uri}: {taken.document_count:,} documents at table version "
        f"{taken.table_version}, {_version(taken)}, {taken.size_bytes / 1e6:.1f} MB."
    )
    note(f"Make an index of it with `shoal restore {taken.uri} --as NAME`.")


def restore(
    uri: Uri,
    name: Annotated[
        str,
        typer.Option("--as", metavar="NAME", help="Name of the index to make: by default its own."),
    ] = "",
    shards: Annotated[
        int, typer.Option(min=0, max=1024, help="Shards to divide it into. 0: as the cluster has.")
    ] = 0,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = _DAY_S,
) -> None:
    """Make an index from a snapshot, on any number of shards."""
    from shoal.v1.indexes_pb2 import IndexState

    with connected(endpoint) as client, _shown("restoring") as on_progress:
        index = client.restore_index(
            place_of(uri), name=name, shards=shards, on_progress=on_progress, timeout_s=timeout
        )
    if as_json:
        print_message(index)
    elif index.state == IndexState.INDEX_STATE_READY:
        say(
            f"{index.name} is there: {index.document_count:,} documents in {index.shard_count} "
            f"shards, index version {index.index_version}."
        )
    else:
        say(f"{index.name} is restored and being loaded: `shoal index describe {index.name}`")


def snapshots(
    uri: Uri, endpoint: Endpoint = None, as_json: AsJson = False, timeout: Timeout = 60.0
) -> None:
    """List the snapshots in a folder or an object store."""
    from shoal.cli.plain import as_plain

    with connected(endpoint) as client:
        found = list(client.list_snapshots(place_of(uri), timeout_s=timeout))
    if as_json:
        print_json({"snapshots": [as_plain(each) for each in found]})
    elif found:
        print_table(COLUMNS, [_row(each) for each in found], numbers=NUMBERS)
    else:
        say(f"There are no snapshots in {uri}.")


def place_of(uri: str) -> str:
    """A place as the writer is told of it: it does not know which folder we are in."""
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def _row(each: Snapshot) -> tuple[object, ...]:
    return (
        each.uri,
        each.name,
        each.create_time.ToJsonString()[:19],
        f"{each.document_count:,}",
        f"{each.passage_count:,}",
        each.table_version,
        each.index_version,
        f"{each.size_bytes / 1e6:.1f}",
    )


def _version(taken: Snapshot) -> str:
    return f"index version {taken.index_version}" if taken.index_version else "exact search"


@contextmanager
def _shown(title: str) -> Iterator[Callable[[CopyProgress], None]]:
    """Show how far a copy is, in whole megabytes."""
    from shoal.cli.progress import progress

    with progress(title, unit="MB") as advance:

        def show(said: CopyProgress) -> None:
            whole = f" ({said.total_bytes / _MEGABYTE:,.1f} MB)" if said.total_bytes else ""
            advance(said.done_bytes // _MEGABYTE, said.stage + whole)

        yield show
