"""What does a process need to know to host one service, and where does it listen?"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.cluster.config import ClusterConfig
from shoal.cluster.placement import broker_port
from shoal.cluster.roles import build_service, settings_for
from shoal.rpc.server import ServiceHost
from shoal.v1.cluster_pb2 import Role


@dataclass(frozen=True)
class InstanceSpec:
    """All that is needed to start an instance, again and again."""

    id: str
    role: Role.ValueType
    host: str
    """Address to bind, or `node` for the one that Ray knows the machine by."""
    port: int
    """Declared port, or 0 for a free one that is then kept."""
    state_folder: str
    """Folder on the machine, for what survives a restart of the process."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the role's settings class."""


class InstanceDiedError(Exception):
    """An instance that will not come back by itself; the message says why."""


@dataclass(frozen=True)
class Placed:
    """An instance that was placed, and what the platform knows it by."""

    id: str
    handle: Any


def build_host(spec: InstanceSpec, listen: str) -> ServiceHost:
    """Make the service of a spec, ready to start."""
    return ServiceHost(build_service(spec.role, spec.settings, spec.id), listen)


class PortFile:
    """Remembers the port that an instance took, so that it takes it again.

    Then whoever talks to it finds it again without being told, even while the controller is away.
    """

    def __init__(self, path: Path) -> None:
        """path: of the file; its folder is made when it is needed."""
        self._path = path

    def listen_address(self, host: str, port: int) -> str:
        """Where to listen: the declared port, the one of the last time if it is free, or any."""
        if port:
            return f"{host}:{port}"
        with contextlib.suppress(OSError, ValueError):
            last = int(self._path.read_text())
            with socket.socket() as probe:
                # As gRPC does: a port whose old connections linger may be bound again.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, last))
            return f"{host}:{last}"
        return f"{host}:0"

    def remember(self, address: str) -> None:
        """Note the port of `host:port`."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(address.rpartition(":")[2])


def instance_spec(
    config: ClusterConfig, instance_id: str, role: Role.ValueType, home: Path, bundle: str = ""
) -> InstanceSpec:
    """Say how an instance is to be started. bundle: as for `settings_for`."""
    is_broker = role == Role.ROLE_BROKER
    return InstanceSpec(
        id=instance_id,
        role=role,
        host=config.listen_host,
        port=broker_port(config, instance_id) if is_broker else 0,
        state_folder=str(home / "run"),
        settings=settings_for(config, role, instance_id, home, bundle),
    )
