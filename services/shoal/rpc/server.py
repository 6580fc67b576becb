"""How does a service come up, answer, and go away?

A service is a `Service`: it registers its handlers, starts, drains and stops. `ServiceHost` puts it
behind a port, with health, reflection and error mapping, wherever it runs: in a process of its own,
in a test, or in a Ray actor, which the service does not know of.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Sequence
from typing import Final, Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from shoal.internal.v1.topology_pb2 import DESCRIPTOR as TOPOLOGY
from shoal.internal.v1.topology_pb2_grpc import add_TopologyServiceServicer_to_server
from shoal.rpc.channels import MAX_MESSAGE_BYTES
from shoal.rpc.garbage import spare_what_is_there
from shoal.rpc.interceptors import ErrorInterceptor
from shoal.rpc.topology import TopologyFollower

_log = logging.getLogger(__name__)

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING


class PortInUseError(OSError):
    """The address to listen on is taken, or is not one of this machine's."""


class Service(Protocol):
    """A role: its handlers, and what they need around them."""

    @property
    def follower(self) -> TopologyFollower:
        """What follows the topology for this service."""
        ...

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the handlers to a server; return the full names of their gRPC services."""
        ...

    async def start(self) -> None:
        """Load and open what the handlers need. Called once, before the port opens."""
        ...

    async def drain(self) -> None:
        """Take nothing new; return when what was taken is done."""
        ...

    async def stop(self) -> None:
        """Release everything. Called once, after the port has closed."""
        ...


class ServiceHost:
    """A service behind a port."""

    def __init__(self, service: Service, listen: str) -> None:
        """listen: `host:port`; port 0 takes a free one."""
        self.service = service
        self.address = ""
        self._listen = listen
        self._server: grpc.aio.Server | None = None
        self._health = HealthServicer()
        self._stopped = asyncio.Event()

    async def start(self) -> str:
        """Start the service, open the port, and return the address that it listens on.

        Raises PortInUseError, and whatever the service raises when it cannot load.
        """
        server = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            options=[
                # Two servers on one port would each get half of the calls.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                # Callers may ping as often as our own channels do.
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        names = [
            *self.service.register(server),
            TOPOLOGY.services_by_name["TopologyService"].full_name,
        ]
        add_TopologyServiceServicer_to_server(self.service.follower, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            [
                *names,
                health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
                reflection.SERVICE_NAME,
            ],
            server,
        )
        self.address = self._bind(server)
        try:
            await self.service.start()
        except BaseException:
            # Only a server that was started gives its port back when it stops.
            await server.start()
            await server.stop(None)
            raise
        await server.start()
        for name in ("", *names):
            await self._health.set(name, _SERVING)
        self._server = server
        return self.address

    def _bind(self, server: grpc.aio.Server) -> str:
        host, _, port = self._listen.rpartition(":")
        try:
            bound = server.add_insecure_port(self._listen)
        except RuntimeError:
            bound = 0
        if bound == 0:
            raise PortInUseError(
                f"cannot listen on {self._listen}: the port is in use, or the host is not this "
                f"machine's. Stop what listens there, or choose another port"
                + (" (0 takes a free one)" if port != "0" else "")
            )
        return f"{host}:{bound}"

    async def stop(self, grace_s: float = 5.0) -> None:
        """Drain for up to `grace_s` seconds, then close the port and release everything."""
        if self._server is None:
            return
        server, self._server = self._server, None
        await self._health.enter_graceful_shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.service.drain()
        await server.stop(grace_s)
        await self.service.stop()
        self._stopped.set()

    async def serve(self) -> None:
        """Start, and serve until SIGINT or SIGTERM; then stop."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        address = await self.start()
        spare_what_is_there()
        _log.info("%s listens on %s", self.service.follower.instance_id, address)
        # For whoever started this process and needs the port that was taken.
        print(address, flush=True)
        await stop.wait()
        await self.stop()
