"""Starts one broker: `python -m shoal.broker --topology FILE --listen 127.0.0.1:7600`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import json_format
from shoal.broker.config import BrokerSettings
from shoal.broker.server import BrokerService
from shoal.internal.v1.topology_pb2 import Topology
from shoal.rpc.command_line import parse_settings, serve_until_stopped


def main(
    listen: Annotated[str, typer.Option(help="host:port; port 0 takes a free one.")] = (
        "127.0.0.1:0"
    ),
    instance_id: Annotated[str, typer.Option(help="Name in a topology, such as broker-0.")] = "",
    topology: Annotated[
        Path | None, typer.Option(help="A topology as protobuf JSON, in place of a controller.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting: key=value.")
    ] = None,
) -> None:
    """Serve a broker until it is told to stop; print the address that it took."""
    settings = parse_settings(BrokerSettings, {}, setting or [])
    followed = None if topology is None else _read_topology(topology)
    serve_until_stopped(BrokerService(settings, instance_id, topology=followed), listen)


def _read_topology(path: Path) -> Topology:
    try:
        return json_format.Parse(path.read_text("utf-8"), Topology())
    except (OSError, ValueError, json_format.ParseError) as error:
        raise typer.BadParameter(f"{path} holds no topology: {error}") from error


if __name__ == "__main__":
    typer.run(main)
