"""How does the controller keep in touch with one instance?"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import grpc
from shoal.cluster.controller import Seen
from shoal.cluster.hosting import InstanceDiedError, Placed
from shoal.internal.v1.topology_pb2 import PublishTopologyRequest, Topology
from shoal.internal.v1.topology_pb2_grpc import TopologyServiceStub
from shoal.rpc.channels import open_channel
from shoal.v1.cluster_pb2 import Role

_log = logging.getLogger(__name__)

HEARTBEAT_S: Final = 0.5
ANSWER_TIMEOUT_S: Final = 1.0
# Ray answers an address call only when the instance is up; ask again if it takes longer.
ADDRESS_TIMEOUT_S: Final = 60.0


class Minder:
    """Learns where an instance listens, publishes the topology to it, and keeps its answers."""

    def __init__(
        self,
        instance_id: str,
        role: Role.ValueType,
        placed: Placed,
        find_address: Callable[[Placed], Awaitable[tuple[str, str]]],
        clock: Callable[[], float],
    ) -> None:
        """Start minding."""
        self.role = role
        self.placed = placed
        self.seen = Seen(instance_id, role, clock())
        self.death: str | None = None
        """Why the instance will not come back by itself; None while it may."""
        self._find_address, self._clock = find_address, clock
        self._topology: Topology | None = None
        self._changed = asyncio.Event()
        self._channel: grpc.aio.Channel | None = None
        self._task = asyncio.create_task(self._run())

    @property
    def channel(self) -> grpc.aio.Channel:
        """A channel to the instance. Only once it has an address."""
        assert self._channel is not None
        return self._channel

    def publish(self, topology: Topology) -> None:
        """Have this topology published, at once if it is new."""
        if self._topology is None or self._topology.epoch != topology.epoch:
            self._changed.set()
        self._topology = topology

    def restarting(self, now_s: float) -> None:
        """Take note that it was killed, and give it the time to come back."""
        self.seen = replace(self.seen, placed_s=now_s)

    async def close(self) -> None:
        """Stop minding."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self._channel is not None:
            await self._channel.close()

    async def _run(self) -> None:
        while True:
            try:
                await self._locate()
                await self._keep_in_touch()
            except ConnectionError as error:
                _log.info("%s: %s", self.seen.id, error)
                await asyncio.sleep(HEARTBEAT_S)
            except InstanceDiedError as error:
                self.death = str(error)
                return
            except Exception:  # noqa: BLE001  # a fault of Ray's that passes
                _log.exception("%s cannot be minded at the moment", self.seen.id)
                await asyncio.sleep(HEARTBEAT_S)

    async def _locate(self) -> None:
        try:
            async with asyncio.timeout(ADDRESS_TIMEOUT_S):
                address, node = await self._find_address(self.placed)
        except TimeoutError as error:
            raise ConnectionError("it has not started yet") from error
        if address != self.seen.address:
            if self._channel is not None:
                await self._channel.close()
            self._channel = open_channel(address)
        self.seen = replace(self.seen, address=address, node=node)

    async def _keep_in_touch(self) -> None:
        """Publish until the instance falls silent; its address may have changed then."""
        while True:
            self._changed.clear()
            if self._topology is not None:
                try:
                    answer = await TopologyServiceStub(self.channel).PublishTopology(
                        PublishTopologyRequest(topology=self._topology, instance_id=self.seen.id),
                        timeout=ANSWER_TIMEOUT_S,
                    )
                except grpc.aio.AioRpcError as error:
                    raise ConnectionError(f"it does not answer: {error.details()}") from error
                if answer.instance_id not in ("", self.seen.id):
                    raise ConnectionError(f"{answer.instance_id} has its port: look for it anew")
                self.seen = replace(self.seen, answer=answer, answered_s=self._clock())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._changed.wait()
