"""How does a whole cluster come up over a table that is there already?

A data root is made whose catalogue names the table of the cache folder, whose files are linked, not
copied: Lance never changes a file, and what a run removes is its own link. Then `shoal up` starts a
cluster on it, Ray included, in a home of its own, as an operator would; `shoal down` ends it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from shoal.table import Catalogue

_START_TIMEOUT_S: Final = 240.0
_STOP_TIMEOUT_S: Final = 120.0


def adopt(root: Path, index: str, table: Path, dimension: int) -> None:
    """Make a data root with one index, whose table is that of the cache."""

    def link(uri: str, dimension: int) -> None:
        del dimension
        link_table(table, Path(uri))

    root.mkdir(parents=True)
    catalogue = Catalogue(root)
    try:
        catalogue.create(
            index, dimension=dimension, encoder_model="", request_id="", make_table=link
        )
    finally:
        catalogue.close()


def link_table(table: Path, target: Path) -> None:
    """Give a table another place, where it can be written to without changing the first."""
    shutil.copytree(table, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # Another file system.
        shutil.copy2(source, target)


class LocalCluster:
    """A cluster that was started by the command line, in a temporary home."""

    def __init__(self, data: Path, declared: Mapping[str, Any], port: int = 0) -> None:
        """declared: of the topology file, beside data and port. port: 0 takes a free one.

        Raises SystemExit with the command's own words if it does not come up.
        """
        # Not in the cache folder: Ray keeps sockets in its home, whose paths may have 107 bytes.
        self.home = Path(tempfile.mkdtemp(prefix="living-"))
        port = port or _free_port()
        self.endpoint = f"127.0.0.1:{port}"
        topology = self.home / "topology.yaml"
        topology.write_text(
            yaml.safe_dump({"data": str(data), "broker_port": port, **declared}), encoding="utf-8"
        )
        try:
            self._shoal("up", str(topology), timeout_s=_START_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop it, and remove its home."""
        try:
            self._shoal("down", timeout_s=_STOP_TIMEOUT_S)
        finally:
            shutil.rmtree(self.home, ignore_errors=True)

    def _shoal(self, *arguments: str, timeout_s: float) -> None:
        command = [str(Path(sys.executable).with_name("shoal")), *arguments]
        environment = dict(os.environ) | {"SHOAL_HOME": str(self.home)}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode:
            raise SystemExit(f"{json.dumps(arguments)} failed: {done.stdout}{done.stderr}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
