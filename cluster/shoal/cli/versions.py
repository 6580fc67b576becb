"""Commands about the versions of an index: build, versions, promote, rollback, drop-version."""

from __future__ import annotations

import time
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
from shoal.cli.output import CliError, note, print_json, print_message, print_table, say

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.v1.indexes_pb2 import IndexVersion, ListIndexVersionsResponse

COLUMNS: Final = (
    "version",
    "state",
    "kind",
    "model",
    "made",
    "passages",
    "recall@10",
    "shards",
    "MB",
    "",
)
NUMBERS: Final = ("version", "passages", "recall@10", "shards", "MB")
# Between two looks at a build.
POLL_S: Final = 0.5
# Steps of the progress bar.
_STEPS: Final = 100

Version = Annotated[
    int, typer.Argument(metavar="VERSION", min=0, help="Number of the version; 0: exact search.")
]


def build(
    name: IndexName,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it is done.")] = False,
    promote: Annotated[
        bool, typer.Option("--promote", help="Make it serve once it is ready.")
    ] = False,
    recall: Recall = None,
    kind: Kind = None,
    encoder: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="Folder of another encoder, which all machines reach, to encode all passages by.",
        ),
    ] = None,
    space: Annotated[
        str,
        typer.Option(
            help="The vector space that it is for, in which it then serves; default: none of them.",
            show_default=False,
        ),
    ] = "",
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 3600.0,
) -> None:
    """Build a version of an index, beside the one that serves."""
    with connected(endpoint) as client:
        version = client.build_index_version(
            name,
            promote=promote,
            recall_target=recall,
            kind=kind_number(kind or "auto"),
            encoder_bundle="" if encoder is None else str(encoder.resolve()),
            space=space,
            timeout_s=min(timeout, 60.0),
        )
        if wait:
            version = wait_for_build(client, name, version.number, timeout)
    if as_json:
        print_message(version)
    elif wait:
        say(
            f"Version {version.number} of {name} is ready: {_kind(version)}, "
            f"{version.passage_count:,} passages, recall@10 {version.recall:.3f}, "
            f"{version.size_bytes / 1e6:.1f} MB."
        )
        if version.message:
            note(f"Version {version.number} is {version.message}.")
        if not promote and not space:
            note(f"Make it serve with `shoal index promote {name} {version.number}`.")
    else:
        say(f"Version {version.number} of {name} is being built.")
        note(f"`shoal index versions {name}` says how far it is.")


def wait_for_build(client: Client, name: str, number: int, timeout_s: float) -> IndexVersion:
    """Wait until a version is READY; show how far it is. Raises CliError if it fails."""
    from shoal.cli.progress import progress
    from shoal.v1.indexes_pb2 import IndexVersionState

    deadline_s = time.monotonic() + timeout_s
    with progress(f"building version {number}", _STEPS, "%") as advance:
        while time.monotonic() < deadline_s:
            version = _find(client, name, number)
            if version.state == IndexVersionState.INDEX_VERSION_STATE_READY:
                return version
            if version.state == IndexVersionState.INDEX_VERSION_STATE_FAILED:
                raise CliError(f"version {number} of {name} failed: {version.message}")
            advance(int(_STEPS * version.progress.done), version.progress.stage)
            time.sleep(POLL_S)
    raise CliError(
        f"version {number} of {name} is still being built after {timeout_s:.0f} s: "
        f"`shoal index versions {name}` says how far it is"
    )


def _find(client: Client, name: str, number: int) -> IndexVersion:
    """A version; failures that pass are waited out, as the build goes on without us."""
    from shoal.client import DeadlineExceededError, UnavailableError

    while True:
        try:
            page = client.index_versions(name)
        except (UnavailableError, DeadlineExceededError):
            time.sleep(POLL_S)
            continue
        for version in page.versions:
            if version.number == number:
                return version
        raise CliError(f"version {number} of {name} was dropped")


def versions(
    name: IndexName, endpoint: Endpoint = None, as_json: AsJson = False, timeout: Timeout = 10.0
) -> None:
    """List the versions of an index: which serves, which is next in line, and what they are."""
    with connected(endpoint) as client:
        found = client.index_versions(name, timeout_s=timeout)
    if as_json:
        print_message(found)
        return
    print_table(COLUMNS, [_row(each, found) for each in found.versions], numbers=NUMBERS)
    if found.serving_version == 0:
        say("Exact search (version 0) serves.")
    if found.promoted_version != found.serving_version:
        say(
            f"Version {found.promoted_version} is being loaded; version "
            f"{found.serving_version} answers until it is there."
        )


def _row(version: IndexVersion, found: ListIndexVersionsResponse) -> tuple[object, ...]:
    from shoal.cli.plain import enum_name
    from shoal.v1.indexes_pb2 import IndexVersionState

    state = enum_name(IndexVersionState.DESCRIPTOR, version.state)
    remark = version.message
    if version.HasField("progress"):
        remark = f"{version.progress.done:.0%}, {version.progress.stage}"
    elif version.number == found.serving_version:
        remark = "serves"
    elif version.space and not remark:
        remark = f"of space {version.space}"
    elif found.HasField("previous_version") and version.number == found.previous_version:
        remark = "served before: `rollback` leads to it"
    ready = version.state == IndexVersionState.INDEX_VERSION_STATE_READY
    return (
        version.number,
        state,
        _kind(version),
        version.encoder_model,
        version.create_time.ToJsonString()[:19],
        f"{version.passage_count:,}" if ready else "",
        f"{version.recall:.3f}" if ready else "",
        version.shard_count if ready else "",
        f"{version.size_bytes / 1e6:.1f}" if ready else "",
        remark,
    )


def _kind(version: IndexVersion) -> str:
    """How it is searched, as `--kind` takes it; empty while that is still to be chosen."""
    from shoal.cli.plain import enum_name
    from shoal.v1.search_pb2 import SearchKind

    if not version.kind:
        return ""
    return enum_name(SearchKind.DESCRIPTOR, version.kind).lower().replace("_", "-")


def promote(
    name: IndexName,
    version: Version,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 60.0,
) -> None:
    """Make a version serve, in one step for all queries."""
    with connected(endpoint) as client:
        serving = client.promote_index_version(name, version, timeout_s=timeout)
    _report(name, version, serving, as_json)


def rollback(
    name: IndexName, endpoint: Endpoint = None, as_json: AsJson = False, timeout: Timeout = 60.0
) -> None:
    """Make the version serve again that did before; a second time takes that back."""
    with connected(endpoint) as client:
        response = client.rollback_index(name, timeout_s=timeout)
    _report(name, response.promoted_version, response.serving_version, as_json)


def _report(name: str, promoted: int, serving: int, as_json: bool) -> None:
    if as_json:
        print_json({"index": name, "promoted_version": promoted, "serving_version": serving})
    elif promoted == serving:
        say(f"Version {serving} of {name} serves.")
    else:
        say(f"Version {promoted} of {name} is being loaded; version {serving} answers until then.")


def drop_version(
    name: IndexName,
    version: Version,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 30.0,
) -> None:
    """Drop a version that does not serve, with its files. Documents stay.

    Version 0 stands for the model that the index was made with: it goes with all its versions, once
    another model serves, and encodes nothing any more.
    """
    with connected(endpoint) as client:
        client.drop_index_version(name, version, timeout_s=timeout)
    if as_json:
        print_json({"index": name, "dropped_version": version})
    else:
        say(f"Version {version} of {name} is gone.")
