"""Commands about the vector spaces of an index: add-space, drop-space."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
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
from shoal.cli.output import confirm, note, print_json, print_message, print_table, say
from shoal.cli.versions import wait_for_build

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shoal.v1.indexes_pb2 import Space

COLUMNS: Final = ("space", "state", "passages", "search", "version", "table version", "model", "")
NUMBERS: Final = ("passages", "version", "table version")

SpaceName = Annotated[str, typer.Argument(metavar="SPACE", help="Name of the vector space.")]


def add_space(
    name: IndexName,
    space: SpaceName,
    encoder: Annotated[
        Path,
        typer.Option(
            metavar="BUNDLE",
            help="Folder of the encoder, which all machines reach: another model than the index's.",
        ),
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it is built.")] = False,
    recall: Recall = None,
    kind: Kind = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 86_400.0,
) -> None:
    """Encode an index by another model too, to be searched by either, or by both at once.

    All passages are encoded in the background, and whatever is written from now on by both models.
    If it fails, add it again: it goes on with what is encoded.
    """
    with connected(endpoint) as client:
        version = client.add_space(
            name,
            space,
            str(encoder.resolve()),
            recall_target=recall,
            kind=kind_number(kind or "auto"),
            timeout_s=min(timeout, 120.0),
        )
        if wait:
            version = wait_for_build(client, name, version.number, timeout)
    if as_json:
        print_message(version)
        return
    done = "is built" if wait else "is being built"
    say(f"Space {space} of {name} {done}, by {version.encoder_model}.")
    note(
        f"`shoal index describe {name}` says when it can be searched: "
        f"`shoal search {name} --space default --space {space} ...` asks both."
    )


def drop_space(
    name: IndexName,
    space: SpaceName,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask; needed where there is no terminal.")
    ] = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 30.0,
) -> None:
    """Drop a vector space with its vectors. Documents and other spaces stay."""
    if not yes:
        confirm(f"dropping space {space}", f"Drop space {space} of {name}, with all its vectors?")
    with connected(endpoint) as client:
        client.drop_space(name, space, timeout_s=timeout)
    if as_json:
        print_json({"index": name, "dropped_space": space})
    else:
        say(f"Space {space} of {name} is gone.")


def print_spaces(spaces: Iterable[Space]) -> None:
    """Print the spaces beside the default one as a table, if there are any."""
    from shoal.cli.plain import enum_name
    from shoal.v1.indexes_pb2 import SpaceState
    from shoal.v1.search_pb2 import SearchKind

    rows = [
        (
            each.name,
            enum_name(SpaceState.DESCRIPTOR, each.state),
            f"{each.passage_count:,}",
            enum_name(SearchKind.DESCRIPTOR, each.kind) if each.kind else "",
            each.index_version or "",
            each.table_version or "",
            each.encoder_model,
            each.message,
        )
        for each in spaces
    ]
    if rows:
        say("")
        print_table(COLUMNS, rows, numbers=NUMBERS)
