"""How does a cluster come up, and go away again?

`up` brings up Ray (or joins one), has it host the controller, and waits until the cluster is whole.
From then on the controller keeps it so, and nothing here runs any more.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from shoal.bundle import load_bundle
from shoal.cluster import actors, local
from shoal.cluster.config import ClusterConfig, ConfigError, read_config
from shoal.cluster.placement import broker_port
from shoal.cluster.roles import ROLES, settings_for
from shoal.internal.v1.topology_pb2 import (
    GetControllerStatusRequest,
    GetControllerStatusResponse,
)
from shoal.internal.v1.topology_pb2_grpc import ControllerServiceStub
from shoal.v1.cluster_pb2 import Role

INFO_FILE: Final = "cluster.json"
POLL_S: Final = 0.25
START_TIMEOUT_S: Final = 120.0


class ClusterError(Exception):
    """The cluster cannot be brought up or down; the message says why and what to do."""


class AlreadyUpError(ClusterError):
    """There is a cluster in this home already."""


@dataclass(frozen=True)
class ClusterInfo:
    """Where a cluster that was brought up is reached."""

    cluster: str
    endpoint: str
    """`host:port` of the first broker."""
    ray_address: str
    started_ray: bool
    """Whether `up` started Ray itself, so that `down` must stop it."""


def up(
    topology_path: Path | None,
    home: Path,
    address: str | None = None,
    report: Callable[[str], None] = lambda _: None,
    timeout_s: float = START_TIMEOUT_S,
) -> ClusterInfo:
    """Bring up a cluster and wait until it is whole.

    address: of a running Ray cluster to join; None starts Ray on this machine, for this home alone.
    report: told what is being waited for, whenever that changes.
    Raises ConfigError for the topology file or a bundle, AlreadyUpError, and ClusterError if the
    cluster is not whole within `timeout_s`; it is then left as it is, for a look at its logs.
    """
    config = read_config(topology_path)
    _check_bundles(config, home)
    known = read_info(home)
    if known is not None and is_up(home):
        raise AlreadyUpError(
            f"cluster {known.cluster} is up at {known.endpoint}: use it, change it with "
            f"`shoal scale`, or stop it with `shoal down`"
        )
    started_ray = address is None
    if started_ray and config.listen_host != "node":
        _require_free_ports(config)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    if address is None:
        report("starting Ray on this machine")
        try:
            address = local.start_local_ray(home).address
        except local.LocalRayError as error:
            raise ClusterError(str(error)) from error
    try:
        info = _start(config, home, address, started_ray=started_ray, report=report)
        _await_whole(home, report, timeout_s)
    except actors.StartError as error:
        if started_ray:
            local.stop_local_ray(home)
        raise ClusterError(str(error)) from error
    return info


def _start(
    config: ClusterConfig,
    home: Path,
    address: str,
    *,
    started_ray: bool,
    report: Callable[[str], None],
) -> ClusterInfo:
    report("starting the controller")
    with actors.connected(address, home):
        controller = actors.start_controller(config, home)
    host = config.listen_host if config.listen_host != "node" else controller.rpartition(":")[0]
    info = ClusterInfo(
        cluster=config.cluster,
        endpoint=f"{host}:{broker_port(config, 'broker-0')}",
        ray_address=address,
        started_ray=started_ray,
    )
    (home / INFO_FILE).write_text(json.dumps(asdict(info) | {"controller": controller}))
    return info


def down(home: Path, report: Callable[[str], None] = lambda _: None) -> bool:
    """Stop the cluster of a home. Its data stays. Returns False if there was none.

    Whatever was acknowledged is on disk, so that nothing depends on a clean end.
    """
    info = read_info(home)
    if info is not None and (not info.started_ray or local.is_running(home)):
        report("stopping the instances")
        try:
            with actors.connected(info.ray_address, home):
                actors.stop_controller()
        except actors.StartError as error:
            if not info.started_ray:
                raise ClusterError(
                    f"{error}. The cluster's processes run on in that Ray: bring it back and try "
                    f"again"
                ) from error
            report(f"Ray does not answer ({error})")
    stopped = False
    if info is None or info.started_ray:
        report("stopping Ray")
        stopped = local.stop_local_ray(home)
    (home / INFO_FILE).unlink(missing_ok=True)
    return stopped or info is not None


def read_info(home: Path) -> ClusterInfo | None:
    """Where the cluster of a home is reached; None if none was brought up."""
    stored = _read_file(home)
    if stored is None:
        return None
    stored.pop("controller", None)
    return ClusterInfo(**stored)


def is_up(home: Path) -> bool:
    """True if the cluster of a home still runs."""
    info = read_info(home)
    if info is None:
        return False
    return local.is_running(home) if info.started_ray else _controller_status(home) is not None


def _read_file(home: Path) -> dict[str, Any] | None:
    try:
        stored = json.loads((home / INFO_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return stored if isinstance(stored, dict) else None


def _controller_status(home: Path) -> GetControllerStatusResponse | None:
    stored = _read_file(home)
    if stored is None:
        return None
    options = (("grpc.enable_http_proxy", 0),)
    with grpc.insecure_channel(str(stored["controller"]), options=options) as channel:
        try:
            return ControllerServiceStub(channel).GetControllerStatus(
                GetControllerStatusRequest(), timeout=2.0
            )
        except grpc.RpcError:
            return None


def _await_whole(home: Path, report: Callable[[str], None], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    waiting = ""
    while time.monotonic() < deadline_s:
        status = _controller_status(home)
        if status is not None and status.whole:
            return
        now_waiting = "; ".join(status.problems) if status is not None else "the controller starts"
        if now_waiting != waiting:
            waiting = now_waiting
            report(waiting)
        time.sleep(POLL_S)
    raise ClusterError(
        f"the cluster is not whole after {timeout_s:.0f} s: {waiting}. Look at the logs in "
        f"{local.log_folder(home)}, or stop it with `shoal down`"
    )


def _require_free_ports(config: ClusterConfig) -> None:
    """Refuse a port that somebody listens on before anything is started."""
    for number in range(config.scale.brokers):
        port = broker_port(config, f"broker-{number}")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((config.listen_host, port))
            except OSError as error:
                raise ClusterError(
                    f"broker-{number} cannot listen on {config.listen_host}:{port}: "
                    f"{error.strerror}. Stop what listens there, or set broker_port in the "
                    f"topology file"
                ) from error


def _check_bundles(config: ClusterConfig, home: Path) -> None:
    """Refuse a missing or damaged bundle before anything is started."""
    roles = [Role.ROLE_ENCODER] + ([Role.ROLE_RERANKER] if config.scale.rerankers else [])
    for role in roles:
        bundle = settings_for(config, role, "check-0", home)["bundle"]
        try:
            load_bundle(bundle)
        except Exception as error:
            raise ConfigError(f"{ROLES[role].section}.bundle: {error}") from error
