"""How is the controller asked and told?"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from pydantic import ValidationError
from shoal.cluster.config import ClusterConfig, IndexScale, Scale
from shoal.cluster.controller_loop import ControllerLoop, Platform, own_entry
from shoal.cluster.placement import CONTROLLER
from shoal.internal.v1.topology_pb2 import (
    DESCRIPTOR,
    GetControllerStatusRequest,
    GetControllerStatusResponse,
    ListBuildsRequest,
    ListBuildsResponse,
    SetScaleRequest,
    SetScaleResponse,
    StartBuildRequest,
    StartBuildResponse,
)
from shoal.internal.v1.topology_pb2_grpc import (
    ControllerServiceServicer,
    add_ControllerServiceServicer_to_server,
)
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.rpc.topology import TopologyFollower
from shoal.v1.errors_pb2 import Reason

_Context = grpc.aio.ServicerContext[Any, Any]


class ControllerService(ControllerServiceServicer):
    """The controller as a service."""

    def __init__(self, config: ClusterConfig, home: Path, platform: Platform) -> None:
        """home: Shoal's folder on this machine."""
        self.follower = TopologyFollower(CONTROLLER)
        self._config, self._home, self._platform = config, home, platform
        self._loop: ControllerLoop | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def loop(self) -> ControllerLoop:
        """The control loop. Only once the service has started."""
        assert self._loop is not None
        return self._loop

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the handlers."""
        add_ControllerServiceServicer_to_server(self, server)
        return [DESCRIPTOR.services_by_name["ControllerService"].full_name]

    async def start(self) -> None:
        """Begin to control."""
        self._loop = ControllerLoop(self._config, self._home, self._platform)
        self._task = asyncio.create_task(self._loop.run())

    def introduce(self, address: str) -> None:
        """Have the topology say where the controller listens, so that brokers find it."""
        self.loop.introduce(own_entry(address, os.getpid()))

    async def drain(self) -> None:
        """Stop controlling; what runs goes on."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def stop(self) -> None:
        """Let go of the instances."""
        await self.loop.close()

    async def remove_all(self) -> None:
        """Stop controlling, then stop every instance: the end of the cluster."""
        await self.drain()
        await self.loop.remove_all()

    async def SetScale(self, request: SetScaleRequest, context: _Context) -> SetScaleResponse:
        """Declare new numbers, for the cluster or for one index."""
        del context
        try:
            scale = self._set_index_scale(request) if request.index else self._set_scale(request)
        except ValidationError as error:
            problem = error.errors()[0]
            raise InvalidFieldError(f"scale.{problem['loc'][0]}", problem["msg"]) from error
        except OSError as error:
            raise ServiceError(
                Reason.REASON_STORAGE_FULL, f"the new numbers cannot be stored: {error}"
            ) from error
        return SetScaleResponse(scale=scale.to_proto())

    def _set_scale(self, request: SetScaleRequest) -> Scale:
        scale = self.loop.scale.changed_by(request.scale)
        self.loop.set_scale(scale)
        return scale

    def _set_index_scale(self, request: SetScaleRequest) -> Scale:
        foreign = [
            field.name
            for field, _ in request.scale.ListFields()
            if field.name not in IndexScale.model_fields
        ]
        if foreign:
            raise InvalidFieldError(
                f"scale.{foreign[0]}", "is the cluster's: an index has shards and replicas"
            )
        uid = self.loop.uid_of(request.index)
        if uid is None:
            raise ServiceError(
                Reason.REASON_INDEX_NOT_FOUND,
                f"there is no index {request.index}: `shoal index list` shows which there are",
            )
        scale = self.loop.index_scale(uid).changed_by(request.scale)
        most = self.loop.scale.replicas
        if (scale.replicas or 0) > most:
            raise InvalidFieldError(
                "scale.replicas", f"the cluster has {most}: raise that number first"
            )
        return self.loop.set_index_scale(uid, scale)

    async def GetControllerStatus(
        self, request: GetControllerStatusRequest, context: _Context
    ) -> GetControllerStatusResponse:
        """Say what is published and what is not as it should be."""
        del request, context
        found = self.loop.problems
        return GetControllerStatusResponse(
            topology=self.loop.topology, whole=not found, problems=found
        )

    async def StartBuild(self, request: StartBuildRequest, context: _Context) -> StartBuildResponse:
        """Begin to build a version of an index."""
        del context
        version = await self.loop.start_build(
            request.name,
            promote=request.promote,
            recall_target=request.recall_target,
            kind=request.kind,
            encoder_bundle=request.encoder_bundle,
            space=request.space,
        )
        return StartBuildResponse(version=version)

    async def ListBuilds(self, request: ListBuildsRequest, context: _Context) -> ListBuildsResponse:
        """Say how far the builds are."""
        del request, context
        return ListBuildsResponse(builds=await self.loop.builds())
