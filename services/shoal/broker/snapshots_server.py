"""How are snapshots of an index taken, restored and listed?

The writer copies; what it says on the way is handed on. A restored index is in the catalogue then,
and still to be placed: that is the controller's, and is waited for here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from shoal.broker.controlling import AWAY, reach_controller
from shoal.broker.probe import Probe
from shoal.broker.routes import IndexRoute, Routes
from shoal.broker.targets import Targets
from shoal.broker.validation import DEFAULT_PAGE, MAX_PAGE, check_index_name
from shoal.broker.waiting import RoutesBoard
from shoal.broker.writing import reach_writer, writer_error
from shoal.internal.v1.topology_pb2 import SetScaleRequest
from shoal.internal.v1.writer_pb2 import (
    CatalogEntry,
    FindSnapshotsRequest,
    RestoreTableRequest,
    SnapshotTableRequest,
)
from shoal.internal.v1.writer_pb2_grpc import WriterServiceStub
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.v1.cluster_pb2 import Scale
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import (
    CopyProgress,
    Index,
    IndexState,
    ListSnapshotsRequest,
    ListSnapshotsResponse,
    RestoreIndexRequest,
    RestoreIndexResponse,
    SnapshotIndexRequest,
    SnapshotIndexResponse,
)

_Context = grpc.aio.ServicerContext[Any, Any]

MAX_SHARDS: Final = 1024
# For callers without a deadline: a copy takes as long as it takes.
COPY_BUDGET_S: Final = 86_400.0
# Most that is waited for a restored index to be loaded; it goes on without anybody waiting.
LOADING_S: Final = 600.0


class SnapshotHandlers:
    """The part of IndexService that is about snapshots."""

    _board: RoutesBoard
    _writers: Targets
    _controllers: Targets
    _probe: Probe

    def _index(self, route: IndexRoute) -> Index:
        raise NotImplementedError

    async def SnapshotIndex(
        self, request: SnapshotIndexRequest, context: _Context
    ) -> AsyncIterator[SnapshotIndexResponse]:
        """Have the writer copy an index to a place."""
        check_index_name(request.name)
        _check_uri(request.uri)
        deadline = Deadline.of(context, default_s=COPY_BUDGET_S)
        call = self._writer().SnapshotTable(
            SnapshotTableRequest(name=request.name, uri=request.uri), timeout=deadline.budget_s
        )
        async for response in _handed_on(call):
            yield SnapshotIndexResponse(
                progress=response.progress if response.HasField("progress") else None,
                snapshot=response.snapshot if response.HasField("snapshot") else None,
            )

    async def RestoreIndex(
        self, request: RestoreIndexRequest, context: _Context
    ) -> AsyncIterator[RestoreIndexResponse]:
        """Have the writer make an index from a snapshot, and wait until its shards serve."""
        _check_uri(request.uri)
        if request.name:
            check_index_name(request.name)
        if request.shards > MAX_SHARDS:
            raise InvalidFieldError("shards", f"is {request.shards}; at most {MAX_SHARDS}")
        if request.shards and not self._controllers.all():
            raise ServiceError(Reason.REASON_CONTROLLER_UNAVAILABLE, f"{AWAY}: try again")
        deadline = Deadline.of(context, default_s=COPY_BUDGET_S)
        call = self._writer().RestoreTable(
            RestoreTableRequest(uri=request.uri, name=request.name), timeout=deadline.budget_s
        )
        entry, progress = CatalogEntry(), CopyProgress()
        async for response in _handed_on(call):
            if response.HasField("entry"):
                entry = response.entry
            else:
                progress = response.progress
                yield RestoreIndexResponse(progress=progress)
        yield RestoreIndexResponse(
            progress=CopyProgress(
                stage="loading",
                done_bytes=progress.total_bytes,
                total_bytes=progress.total_bytes,
            )
        )
        yield RestoreIndexResponse(index=await self._served(entry, request.shards, deadline))

    async def ListSnapshots(
        self, request: ListSnapshotsRequest, context: _Context
    ) -> ListSnapshotsResponse:
        """Have the writer list a page of snapshots: the token is the name of the last one."""
        _check_uri(request.uri)
        if request.page_size > MAX_PAGE:
            raise InvalidFieldError("page_size", f"is {request.page_size}; at most {MAX_PAGE}")
        find = FindSnapshotsRequest(
            uri=request.uri, count=request.page_size or DEFAULT_PAGE, after=request.page_token
        )
        found = await reach_writer(
            self._writers,
            lambda stub, budget_s: stub.FindSnapshots(find, timeout=budget_s),
            Deadline.of(context),
        )
        return ListSnapshotsResponse(snapshots=found.snapshots, next_page_token=found.after)

    def _writer(self) -> Any:
        writer = self._writers.choose()
        if writer is None:
            raise writer_error(None)
        return WriterServiceStub(writer.channel)

    async def _served(self, entry: CatalogEntry, shards: int, deadline: Deadline) -> Index:
        """Wait until a restored index serves; without time for that, it is LOADING."""
        waiting = Deadline.after(min(LOADING_S, 0.9 * deadline.budget_s))
        if shards:
            await self._scale(entry, shards, waiting)

        def serves(routes: Routes) -> bool:
            route = routes.indexes.get(entry.name)
            return (
                route is not None
                and (route.uid, route.index_version) == (entry.uid, entry.index_version)
                and bool(route.groups)
                and shards in (0, route.shard_count)
            )

        served = await self._board.wait_until(serves, waiting)
        route = self._board.routes.indexes.get(entry.name)
        if route is not None and route.uid == entry.uid:
            # The shards were ready a moment ago, and the probe has not heard of it yet.
            await self._probe.refresh(Deadline.after(0.5 * deadline.budget_s))
            index = self._index(route)
            if not served:
                index.state = IndexState.INDEX_STATE_LOADING
            return index
        return Index(
            name=entry.name,
            uid=entry.uid,
            encoder_model=entry.encoder_model,
            dimension=entry.dimension,
            create_time=entry.create_time,
            index_version=entry.index_version,
            state=IndexState.INDEX_STATE_LOADING,
        )

    async def _scale(self, entry: CatalogEntry, shards: int, deadline: Deadline) -> None:
        """Have the controller divide an index, once it has heard of it."""
        scale = SetScaleRequest(scale=Scale(shards=shards), index=entry.name)

        def known(routes: Routes) -> bool:
            route = routes.indexes.get(entry.name)
            return route is not None and route.uid == entry.uid

        if not await self._board.wait_until(known, deadline):
            raise ServiceError(
                Reason.REASON_CONTROLLER_UNAVAILABLE,
                f"index {entry.name} is restored, but the controller has not placed it yet: "
                f"scale it to {shards} shards once it has",
            )
        await reach_controller(
            self._controllers,
            lambda stub, budget_s: stub.SetScale(scale, timeout=budget_s),
            deadline,
        )


async def _handed_on(call: Any) -> AsyncIterator[Any]:
    """What the writer says; a caller that leaves has it end what it does."""
    try:
        async for response in call:
            yield response
    except grpc.aio.AioRpcError as error:
        raise writer_error(error) from error
    finally:
        call.cancel()


def _check_uri(uri: str) -> None:
    if not uri:
        raise InvalidFieldError("uri", "is empty: say where the snapshot is, or is to be")
