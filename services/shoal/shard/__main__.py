"""Starts one shard server, or trains a codebook: `python -m shoal.shard --listen 127.0.0.1:0`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from google.protobuf import json_format
from shoal.internal.v1.topology_pb2 import Topology
from shoal.rpc.command_line import parse_settings, serve_until_stopped
from shoal.rpc.errors import ServiceError
from shoal.shard.codebook import train_codebook
from shoal.shard.config import ShardSettings
from shoal.shard.server import ShardService

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    listen: Annotated[str, typer.Option(help="host:port; port 0 takes a free one.")] = (
        "127.0.0.1:0"
    ),
    instance_id: Annotated[
        str, typer.Option(help="Name in a topology, such as shard-server-0.")
    ] = "",
    threads: Annotated[int, typer.Option(help="Searches that run at once.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    snapshot_dir: Annotated[
        Path | None, typer.Option(help="Folder of this instance's own for its snapshots.")
    ] = None,
    topology: Annotated[
        Path | None, typer.Option(help="A topology as protobuf JSON, in place of a controller.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting: key=value.")
    ] = None,
) -> None:
    """Serve shards until told to stop; print the address that was taken."""
    if context.invoked_subcommand is not None:
        return
    options = {"threads": threads, "device": device, "snapshot_dir": snapshot_dir}
    settings = parse_settings(ShardSettings, options, setting or [])
    followed = None if topology is None else _read_topology(topology)
    serve_until_stopped(ShardService(settings, instance_id, topology=followed), listen)


@app.command()
def train(
    table: Annotated[str, typer.Option(help="URI of the table.")],
    out: Annotated[Path, typer.Option(help="Folder to write the codebook to.")],
    recall_target: Annotated[float, typer.Option(help="Recall at 10 to reach, 0 to 1.")] = 0.95,
    queries: Annotated[
        Path | None,
        typer.Option(help="A .npy file of unit vectors as they are asked, to measure recall on."),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads to use.")] = 2,
    seed: Annotated[int, typer.Option(help="For choosing the sample.")] = 0,
) -> None:
    """Train a codebook, and print what it is as JSON."""

    def report(stage: str, done: float) -> None:
        typer.echo(f"{done:4.0%} {stage}", err=True)

    try:
        manifest = train_codebook(
            table,
            out,
            recall_target=recall_target,
            queries=None if queries is None else np.load(queries),
            threads=threads,
            seed=seed,
            progress=report,
        )
    except (ServiceError, OSError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(manifest.model_dump_json(indent=2))


def _read_topology(path: Path) -> Topology:
    try:
        return json_format.Parse(path.read_text("utf-8"), Topology())
    except (OSError, ValueError, json_format.ParseError) as error:
        raise typer.BadParameter(f"{path} holds no topology: {error}") from error


if __name__ == "__main__":
    app()
