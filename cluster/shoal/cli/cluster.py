"""Commands about the cluster as a whole: up, down, status, scale."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
from shoal.cli.index import print_indexes
from shoal.cli.options import AsJson, Endpoint, Home, Timeout, connected, home_folder
from shoal.cli.output import CliError, NoBrokerError, note, print_json, print_table, printable, say
from shoal.cli.progress import progress

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.cluster.lifecycle import ClusterInfo
    from shoal.v1.cluster_pb2 import GetClusterStatusResponse, Scale
    from shoal.v1.indexes_pb2 import Index

POLL_S: Final = 0.25
# Of Ray's names of machines, which have 56: enough to tell a few machines apart.
NODE_LETTERS: Final = 12


def up(
    topology: Annotated[
        Path | None,
        typer.Argument(help="YAML that declares the cluster. None: the defaults, for a laptop."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="A running Ray cluster to join. None: Ray is started on this machine, for this "
            "cluster alone.",
        ),
    ] = None,
    if_down: Annotated[
        bool, typer.Option("--if-down", help="Succeed if this home's cluster is up already.")
    ] = False,
    home: Home = None,
    as_json: AsJson = False,
    timeout: Timeout = 120.0,
) -> None:
    """Bring a cluster up, and return when it is whole."""
    from shoal.cluster import lifecycle

    folder = home_folder(home)
    note("bringing the cluster up", "")
    try:
        with progress("bringing the cluster up") as advance:
            info = lifecycle.up(
                topology, folder, address, report=lambda doing: advance(0, doing), timeout_s=timeout
            )
    except lifecycle.AlreadyUpError:
        known = lifecycle.read_info(folder)
        if not if_down or known is None:
            raise
        info = known
    _print_info(info, folder, as_json=as_json)


def _print_info(info: ClusterInfo, home: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "cluster": info.cluster,
                "endpoint": info.endpoint,
                "ray_address": info.ray_address,
                "started_ray": info.started_ray,
                "home": str(home),
            }
        )
        return
    say(f"Cluster {info.cluster} is up at {info.endpoint} (home {home}).", "bold")
    say("Next: shoal status; shoal index create NAME; shoal ingest NAME FILE; shoal down", "dim")


def down(home: Home = None, as_json: AsJson = False) -> None:
    """Stop the cluster of this home. Its data stays."""
    from shoal.cluster import lifecycle

    folder = home_folder(home)
    with progress("stopping the cluster") as advance:
        stopped = lifecycle.down(folder, report=lambda doing: advance(0, doing))
    if as_json:
        print_json({"stopped": stopped, "home": str(folder)})
    elif stopped:
        say(f"The cluster is down. Its data stays in {folder}.")
    else:
        say(f"There was no cluster of {folder} to stop.")


def status(
    endpoint: Endpoint = None, home: Home = None, as_json: AsJson = False, timeout: Timeout = 10.0
) -> None:
    """Show what runs where, and the indexes. The exit code is 1 if the cluster is not whole."""
    try:
        with connected(endpoint, home) as client:
            found = client.cluster_status(timeout_s=timeout)
            indexes = _indexes(client, timeout)
    except NoBrokerError as error:
        _explain_silence(home_folder(home), error)
    logs = _log_folder(home)
    if as_json:
        print_json(status_json(found, indexes, logs))
    else:
        _print_status(found, indexes, logs)
    if not found.whole:
        raise typer.Exit(1)


def _indexes(client: Client, timeout_s: float) -> list[Index] | None:
    """The indexes; None if they cannot be listed, which is no reason not to show the rest."""
    from shoal.client import ShoalError

    try:
        return list(client.list_indexes(timeout_s=timeout_s))
    except ShoalError as error:
        note(f"the indexes cannot be listed: {error.message} [{error.reason}]", "yellow")
        return None


def _explain_silence(home: Path, error: NoBrokerError) -> NoReturn:
    """Say whether there is no cluster, or one whose broker is away for a moment."""
    from shoal.cluster import lifecycle

    if not lifecycle.is_up(home):
        raise error
    raise CliError(
        f"the cluster of {home} runs, but its broker does not answer: it is restarted by itself, "
        f"try again in a few seconds; logs are in {_log_folder(home)}"
    ) from error


def status_json(
    found: GetClusterStatusResponse, indexes: list[Index] | None, logs: str | None
) -> dict[str, Any]:
    """What `shoal status --json` prints."""
    from shoal.cli.plain import as_plain

    listed = None if indexes is None else [as_plain(each) for each in indexes]
    return as_plain(found) | {"indexes": listed, "logs": logs}


def _log_folder(home: Path | None) -> str | None:
    """Where the logs are, if it is this machine that the cluster was brought up on."""
    folder = home_folder(home)
    if not (folder / "ray").is_dir():
        return None
    from shoal.cluster.local import log_folder

    return str(log_folder(folder))


def _print_status(
    found: GetClusterStatusResponse, indexes: list[Index] | None, logs: str | None
) -> None:
    from shoal.cli.plain import enum_name
    from shoal.v1.cluster_pb2 import InstanceState, Role

    whole = "whole" if found.whole else "not whole"
    say(f"Cluster {found.cluster} is {whole} (epoch {found.epoch}).", "bold")
    for problem in found.problems:
        say(f"  {printable(problem)}", "red")
    say("")
    rows = [
        (
            each.id,
            enum_name(Role.DESCRIPTOR, each.role),
            enum_name(InstanceState.DESCRIPTOR, each.state),
            each.address,
            each.pid or "",
            each.node[:NODE_LETTERS],
            each.message,
        )
        for each in found.instances
    ]
    columns = ("instance", "role", "state", "address", "pid", "node", "")
    print_table(columns, rows, numbers=("pid",))
    say("")
    if indexes:
        print_indexes(indexes)
    elif indexes is not None:
        say("There are no indexes yet.")
    say("")
    say(f"Declared: {_numbers(found.desired)}", "dim")
    if logs is not None:
        say(f"Logs: {logs}", "dim")


def _numbers(scale: Scale) -> str:
    from shoal.cli.plain import as_plain

    return ", ".join(f"{name} {number}" for name, number in as_plain(scale).items())


def _number(help_: str) -> Any:
    return typer.Option(min=0, metavar="N", show_default=False, help=help_)


Shards = Annotated[int | None, _number("Parts that every index is divided into.")]
Replicas = Annotated[int | None, _number("Copies of every shard.")]
ShardServers = Annotated[int | None, _number("Processes that a replica set is spread over.")]
Encoders = Annotated[int | None, _number("Processes that encode.")]
Rerankers = Annotated[int | None, _number("Processes that rerank; with 0, nothing is reranked.")]
Brokers = Annotated[int | None, _number("Processes that answer callers.")]


def scale(
    index: Annotated[
        str | None,
        typer.Argument(
            metavar="[INDEX]",
            help="The index that --shards and --replicas are for; 0 of them means again as the "
            "cluster. None: the numbers are the cluster's.",
        ),
    ] = None,
    shards: Shards = None,
    replicas: Replicas = None,
    shard_servers: ShardServers = None,
    encoders: Encoders = None,
    rerankers: Rerankers = None,
    brokers: Brokers = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return only when the cluster is whole again.")
    ] = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 120.0,
) -> None:
    """Change how many of each there are, while queries run.

    What is not named stays as it is. --timeout bounds --wait. An index is divided anew by moving
    its codes: nothing is encoded or trained again.
    """
    numbers = {
        "shards": shards,
        "replicas": replicas,
        "shard_servers": shard_servers,
        "encoders": encoders,
        "rerankers": rerankers,
        "brokers": brokers,
    }
    if all(number is None for number in numbers.values()):
        raise typer.BadParameter("name at least one number, such as --encoders 2")
    with connected(endpoint) as client:
        in_force = client.scale(**numbers, index=index or "", timeout_s=min(timeout, 10.0))
        if wait:
            _await_scale(client, index, in_force, timeout)
    if as_json:
        from shoal.cli.plain import as_plain

        print_json(({"index": index} if index else {}) | {"scale": as_plain(in_force)})
    else:
        declared = f"{index}: shards {in_force.shards}, replicas {in_force.replicas}"
        say(f"Declared: {declared if index else _numbers(in_force)}")
        if not wait:
            say("The cluster is on its way there: `shoal status` shows how far.", "dim")


def _await_scale(client: Client, index: str | None, in_force: Scale, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    with progress("waiting until the cluster is whole") as advance:
        while True:
            found = client.cluster_status()
            if index is None:
                followed = found.desired == in_force
            else:
                followed = client.describe_index(index).index.shard_count == in_force.shards
            if found.whole and followed:
                return
            problems = "; ".join(found.problems)
            if time.monotonic() > deadline_s:
                raise CliError(
                    f"the numbers are declared, but the cluster is not whole after "
                    f"{timeout_s:.0f} s: {problems or 'it does not follow'}; see `shoal status`"
                )
            advance(0, problems)
            time.sleep(POLL_S)
