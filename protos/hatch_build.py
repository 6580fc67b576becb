"""Build hook: turns the .proto files into typed Python modules that lie beside them.

Both distributions use it: `shoal-client` builds `shoal/v1`, `shoal` builds `shoal/internal/v1`.
Generated code is never committed. It is made by the oldest grpcio-tools that is supported, since
code made by one release runs on that release and on newer ones, and refuses older ones.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTOS = Path(__file__).resolve().parent


def generate(packages: list[str]) -> list[Path]:
    """Generate the modules of some proto packages, such as `shoal/v1`; return the files made."""
    sources = [
        source for package in packages for source in sorted((PROTOS / package).glob("*.proto"))
    ]
    if not sources:
        raise FileNotFoundError(f"no .proto files in {packages} below {PROTOS}")
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--proto_path={PROTOS}",
        f"--python_out={PROTOS}",
        f"--grpc_python_out={PROTOS}",
        f"--mypy_out=quiet:{PROTOS}",
        f"--mypy_grpc_out=quiet:{PROTOS}",
        *(
            f"--plugin={name}={_plugin(name)}"
            for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
        ),
        *(str(source.relative_to(PROTOS)) for source in sources),
    ]
    subprocess.run(command, check=True, cwd=PROTOS)
    suffixes = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
    return [source.with_name(source.stem + suffix) for source in sources for suffix in suffixes]


def _plugin(name: str) -> str:
    # Installers put a build's scripts on PATH; a plain `python protos/hatch_build.py` has them
    # beside its interpreter.
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        raise FileNotFoundError(f"{name} is not on PATH: pip install mypy-protobuf")
    return path


class ProtoBuildHook(BuildHookInterface[Any]):
    """Generates the packages named in the hook's `packages` option before anything is collected."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate the code and have it packed although git ignores it."""
        for path in generate(self.config["packages"]):
            build_data["artifacts"].append("/" + str(path.relative_to(self.root)))


if __name__ == "__main__":
    generate(["shoal/v1", "shoal/internal/v1"])
