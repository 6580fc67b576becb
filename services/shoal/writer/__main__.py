"""Starts one writer: `python -m shoal.writer --data FOLDER --listen 127.0.0.1:0`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import json_format
from shoal.internal.v1.topology_pb2 import Topology
from shoal.rpc.command_line import parse_settings, serve_until_stopped
from shoal.writer.config import WriterSettings
from shoal.writer.server import WriterService


def main(
    data: Annotated[str, typer.Option(help="Folder of the catalogue and of all indexes.")],
    listen: Annotated[str, typer.Option(help="host:port; port 0 takes a free one.")] = (
        "127.0.0.1:0"
    ),
    instance_id: Annotated[str, typer.Option(help="Name in a topology, such as writer-0.")] = "",
    tokenizer: Annotated[
        Path | None, typer.Option(help="The encoder's bundle, to measure passages with.")
    ] = None,
    topology: Annotated[
        Path | None, typer.Option(help="A topology as protobuf JSON, in place of a controller.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting: key=value.")
    ] = None,
) -> None:
    """Serve a writer until it is told to stop; print the address that it took."""
    settings = parse_settings(WriterSettings, {"data": data, "tokenizer": tokenizer}, setting or [])
    followed = None if topology is None else _read_topology(topology)
    service = WriterService(settings, instance_id, topology=followed)
    serve_until_stopped(service, listen, expected=_expected(tokenizer))


def _expected(tokenizer: Path | None) -> tuple[type[Exception], ...]:
    if tokenizer is None:
        return ()
    # A bundle brings the machinery of models along, which no other part of the writer needs.
    from shoal.bundle import BundleError

    return (BundleError,)


def _read_topology(path: Path) -> Topology:
    try:
        return json_format.Parse(path.read_text("utf-8"), Topology())
    except (OSError, ValueError, json_format.ParseError) as error:
        raise typer.BadParameter(f"{path} holds no topology: {error}") from error


if __name__ == "__main__":
    typer.run(main)
