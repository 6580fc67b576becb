"""Starts one encoder: `python -m shoal.encoder --bundle FOLDER --listen 127.0.0.1:0`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from shoal.bundle import BundleError
from shoal.encoder.config import EncoderSettings
from shoal.encoder.server import EncoderService
from shoal.rpc.command_line import parse_settings, serve_until_stopped


def main(
    bundle: Annotated[Path, typer.Option(help="Folder of the encoder's bundle.")],
    listen: Annotated[str, typer.Option(help="host:port; port 0 takes a free one.")] = (
        "127.0.0.1:0"
    ),
    instance_id: Annotated[str, typer.Option(help="Name in a topology, such as encoder-0.")] = "",
    threads: Annotated[int, typer.Option(help="Threads for one run of the model.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting: key=value.")
    ] = None,
) -> None:
    """Serve an encoder until it is told to stop; print the address that it took."""
    settings = parse_settings(
        EncoderSettings, {"bundle": bundle, "threads": threads, "device": device}, setting or []
    )
    serve_until_stopped(EncoderService(settings, instance_id), listen, expected=(BundleError,))


if __name__ == "__main__":
    typer.run(main)
