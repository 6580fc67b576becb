"""How does an instance follow the topology?

The controller publishes it to everyone, over and over. An instance keeps the newest that it could
follow, and goes on with that one while the controller is away.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from shoal.internal.v1.topology_pb2 import (
    IndexPlacement,
    Layout,
    PublishTopologyRequest,
    PublishTopologyResponse,
    SpacePlacement,
    Topology,
)
from shoal.internal.v1.topology_pb2_grpc import TopologyServiceServicer

_log = logging.getLogger(__name__)


class RefusedTopologyError(Exception):
    """A topology that an instance cannot follow, with the reason."""


class TopologyFollower(TopologyServiceServicer):
    """Holds the latest topology of one instance and tells the service when it changes.

    `follow` is called with each newer topology, on the event loop; it must not block, and raises
    RefusedTopologyError to stay on the one before. `describe` adds what the service says of itself
    to the answer.
    """

    def __init__(
        self,
        instance_id: str,
        *,
        follow: Callable[[Topology], None] | None = None,
        describe: Callable[[PublishTopologyResponse], None] | None = None,
    ) -> None:
        """instance_id: such as `encoder-0`; an empty one accepts whatever it is called."""
        self.instance_id = instance_id
        self.topology = Topology()
        self._follow = follow
        self._describe = describe
        self._start_ns = time.time_ns()

    async def PublishTopology(
        self, request: PublishTopologyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> PublishTopologyResponse:
        """Take the topology if it is newer, and say how this instance is."""
        del context
        refusal = self._refusal_of(request)
        response = PublishTopologyResponse(
            epoch=self.topology.epoch,
            refusal=refusal,
            pid=os.getpid(),
            instance_id=self.instance_id,
        )
        response.start_time.FromNanoseconds(self._start_ns)
        if self._describe is not None:
            self._describe(response)
        return response

    def _refusal_of(self, request: PublishTopologyRequest) -> str:
        if self.instance_id and request.instance_id != self.instance_id:
            return f"this is {self.instance_id}, not {request.instance_id}"
        return self.accept(request.topology)

    def accept(self, topology: Topology) -> str:
        """Follow a topology if it is newer. Returns why not, or an empty string."""
        if topology.epoch <= self.topology.epoch:
            return ""
        try:
            if self._follow is not None:
                self._follow(topology)
        except RefusedTopologyError as error:
            _log.warning("refused topology %d: %s", topology.epoch, error)
            return str(error)
        self.topology = topology
        return ""


def placed_spaces(index: IndexPlacement) -> list[IndexPlacement | SpacePlacement]:
    """Where each vector space of an index is: that of the default one is the index's own."""
    return [index, *index.spaces]


def layouts_of(index: IndexPlacement) -> Iterator[Layout]:
    """Every layout of an index that shard servers hold: what serves, in each space, or may."""
    for placed in placed_spaces(index):
        if placed.HasField("serving"):
            yield placed.serving
        if placed.HasField("preparing"):
            yield placed.preparing
    if index.HasField("standby"):
        yield index.standby
    if index.HasField("candidate"):
        yield index.candidate
    yield from index.dividing
