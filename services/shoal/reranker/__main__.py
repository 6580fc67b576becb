"""Starts one reranker: `python -m shoal.reranker --bundle FOLDER --listen 127.0.0.1:0`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from shoal.bundle import BundleError
from shoal.reranker.config import RerankerSettings
from shoal.reranker.server import RerankerService
from shoal.rpc.command_line import parse_settings, serve_until_stopped


def main(
    bundle: Annotated[Path, typer.Option(help="Folder of the reranker's bundle.")],
    listen: Annotated[str, typer.Option(help="host:port; port 0 takes a free one.")] = (
        "127.0.0.1:0"
    ),
    instance_id: Annotated[str, typer.Option(help="Name in a topology, such as reranker-0.")] = "",
    threads: Annotated[int, typer.Option(help="Threads for one run of the model.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting: key=value.")
    ] = None,
) -> None:
    """Serve a reranker until it is told to stop; print the address that it took."""
    settings = parse_settings(
        RerankerSettings, {"bundle": bundle, "threads": threads, "device": device}, setting or []
    )
    serve_until_stopped(RerankerService(settings, instance_id), listen, expected=(BundleError,))


if __name__ == "__main__":
    typer.run(main)
