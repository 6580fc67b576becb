"""How is drift asked for?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import grpc
from shoal.broker.routes import Routes
from shoal.broker.targets import Targets
from shoal.broker.writing import reach_writer
from shoal.internal.v1.drift_pb2 import ReadDriftRequest, TakeReferenceRequest
from shoal.rpc.deadline import Deadline
from shoal.v1.drift_pb2 import (
    MeasureDriftRequest,
    MeasureDriftResponse,
    SetDriftReferenceRequest,
    SetDriftReferenceResponse,
)
from shoal.v1.drift_pb2_grpc import DriftServiceServicer

_Context = grpc.aio.ServicerContext[Any, Any]


class DriftServer(DriftServiceServicer):
    """DriftService: the writer has the samples."""

    def __init__(self, routes: Callable[[], Routes], writers: Targets) -> None:
        """routes: gives the routes that are followed now."""
        self._routes, self._writers = routes, writers

    async def MeasureDrift(
        self, request: MeasureDriftRequest, context: _Context
    ) -> MeasureDriftResponse:
        """Have the writer measure."""
        self._routes().index(request.index)
        read = ReadDriftRequest(measure=request)
        response = await reach_writer(
            self._writers,
            lambda stub, budget_s: stub.ReadDrift(read, timeout=budget_s),
            Deadline.of(context),
        )
        return cast(MeasureDriftResponse, response.measured)

    async def SetDriftReference(
        self, request: SetDriftReferenceRequest, context: _Context
    ) -> SetDriftReferenceResponse:
        """Have the writer take a reference."""
        self._routes().index(request.index)
        take = TakeReferenceRequest(set=request)
        response = await reach_writer(
            self._writers,
            lambda stub, budget_s: stub.TakeReference(take, timeout=budget_s),
            Deadline.of(context),
        )
        return cast(SetDriftReferenceResponse, response.taken)
