"""How does the cluster show itself, and how is it steered?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import grpc
from shoal.broker.controlling import AWAY, reach_controller
from shoal.broker.targets import Targets
from shoal.internal.v1.topology_pb2 import (
    GetControllerStatusRequest,
    GetControllerStatusResponse,
    SetScaleRequest,
    Topology,
)
from shoal.internal.v1.topology_pb2_grpc import ControllerServiceStub
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.v1.cluster_pb2 import (
    GetClusterStatusRequest,
    GetClusterStatusResponse,
    InstanceState,
    ScaleClusterRequest,
    ScaleClusterResponse,
)
from shoal.v1.cluster_pb2_grpc import ClusterServiceServicer

_Context = grpc.aio.ServicerContext[Any, Any]

STATUS_BUDGET_S: Final = 1.0


class ClusterServer(ClusterServiceServicer):
    """ClusterService."""

    def __init__(self, topology: Callable[[], Topology], controllers: Targets) -> None:
        """topology: gives the one that is followed now."""
        self._topology, self._controllers = topology, controllers

    async def GetClusterStatus(
        self, request: GetClusterStatusRequest, context: _Context
    ) -> GetClusterStatusResponse:
        """Say what the controller says; what this broker knows, while that one is away."""
        del request
        status = await self._ask(Deadline.of(context))
        if status is not None:
            return _status(status.topology, status.whole, list(status.problems))
        topology = Topology()
        topology.CopyFrom(self._topology())
        for instance in topology.instances:
            if self._controllers.get(instance.id) is not None:
                instance.state = InstanceState.INSTANCE_STATE_UNAVAILABLE
        return _status(topology, False, [AWAY])

    async def ScaleCluster(
        self, request: ScaleClusterRequest, context: _Context
    ) -> ScaleClusterResponse:
        """Have the controller declare new numbers."""
        change = SetScaleRequest(scale=request.scale, index=request.index)
        response = await reach_controller(
            self._controllers,
            lambda stub, budget_s: stub.SetScale(change, timeout=budget_s),
            Deadline.of(context),
        )
        return ScaleClusterResponse(scale=response.scale)

    async def _ask(self, deadline: Deadline) -> GetControllerStatusResponse | None:
        budget_s = min(STATUS_BUDGET_S, deadline.budget_s / 2)
        target = self._controllers.choose()
        if target is None:
            return None
        try:
            response: GetControllerStatusResponse = await target.call(
                lambda: ControllerServiceStub(target.channel).GetControllerStatus(
                    GetControllerStatusRequest(), timeout=budget_s
                )
            )
        except ServiceError:
            return None
        return response


def _status(topology: Topology, whole: bool, problems: list[str]) -> GetClusterStatusResponse:
    return GetClusterStatusResponse(
        cluster=topology.cluster,
        epoch=topology.epoch,
        desired=topology.desired,
        instances=sorted(topology.instances, key=lambda each: (each.role, each.id)),
        whole=whole,
        problems=problems,
    )
