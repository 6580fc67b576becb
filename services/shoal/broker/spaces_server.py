"""How are vector spaces added, shown and dropped?

A space is a version of the index that bears its name: the controller builds it as any other, and
the writer's catalogue lists it.
"""

from __future__ import annotations

from typing import Any, Final

import grpc
from shoal.broker.controlling import reach_controller
from shoal.broker.probe import Probe
from shoal.broker.routes import IndexRoute
from shoal.broker.targets import Targets
from shoal.broker.validation import check_index_name
from shoal.broker.waiting import RoutesBoard
from shoal.broker.writing import reach_writer
from shoal.internal.v1.shard_pb2 import ShardState
from shoal.internal.v1.topology_pb2 import SpacePlacement, StartBuildRequest
from shoal.internal.v1.writer_pb2 import DropTableSpaceRequest
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.rpc.index_goals import check_kind, check_recall_target
from shoal.rpc.space_names import check_space_name
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import (
    AddSpaceRequest,
    AddSpaceResponse,
    DropSpaceRequest,
    DropSpaceResponse,
    IndexVersionState,
    Space,
    SpaceState,
)
from shoal.v1.search_pb2 import SearchKind

_Context = grpc.aio.ServicerContext[Any, Any]

# Part of a call's budget that is spent waiting for the topology to follow.
_WAIT_SHARE: Final = 0.9


class SpaceHandlers:
    """The part of IndexService that is about vector spaces."""

    _board: RoutesBoard
    _writers: Targets
    _controllers: Targets

    async def AddSpace(self, request: AddSpaceRequest, context: _Context) -> AddSpaceResponse:
        """Have the controller begin to build a space."""
        check_index_name(request.name)
        check_space_name(request.space)
        if not request.encoder_bundle:
            raise InvalidFieldError("encoder_bundle", "is required: the model that is to encode it")
        if request.kind != SearchKind.SEARCH_KIND_EXACT:
            check_kind(request.kind)
        build = StartBuildRequest(
            name=request.name,
            kind=request.kind,
            encoder_bundle=request.encoder_bundle,
            space=request.space,
        )
        if request.HasField("recall_target"):
            check_recall_target(request.recall_target)
            build.recall_target = request.recall_target
        response = await reach_controller(
            self._controllers,
            lambda stub, budget_s: stub.StartBuild(build, timeout=budget_s),
            Deadline.of(context),
        )
        return AddSpaceResponse(version=response.version)

    async def DropSpace(self, request: DropSpaceRequest, context: _Context) -> DropSpaceResponse:
        """Have the writer drop a space, and wait until no search finds it here."""
        check_index_name(request.name)
        check_space_name(request.space)
        deadline = Deadline.of(context)
        drop = DropTableSpaceRequest(name=request.name, space=request.space)
        attempts = 0

        async def once(stub: Any, budget_s: float) -> None:
            nonlocal attempts
            attempts += 1
            await stub.DropTableSpace(drop, timeout=budget_s)

        try:
            await reach_writer(self._writers, once, deadline)
        except ServiceError as error:
            # An attempt before this one dropped it, and its answer was lost.
            if error.reason != Reason.REASON_SPACE_NOT_FOUND or attempts == 1:
                raise

        gone = await self._board.wait_until(
            lambda routes: (
                request.name not in routes.indexes
                or request.space
                not in {each.name for each in routes.indexes[request.name].placed_spaces}
            ),
            deadline.share(_WAIT_SHARE),
        )
        if not gone:
            raise ServiceError(
                Reason.REASON_DEADLINE_EXCEEDED,
                f"vector space {request.space} of index {request.name} is dropped, but was still "
                "found at the deadline: it goes by itself",
            )
        return DropSpaceResponse()


def describe_space(index: IndexRoute, placed: SpacePlacement, probe: Probe) -> Space:
    """A space as callers see it."""
    space = Space(
        name=placed.name,
        encoder_model=placed.encoder_model,
        dimension=placed.dimension,
        message=placed.message,
    )
    route = index.spaces.get(placed.name)
    if route is None:
        loading, failed = placed.HasField("preparing"), IndexVersionState.INDEX_VERSION_STATE_FAILED
        space.state = SpaceState.SPACE_STATE_BUILDING
        if loading:
            space.state = SpaceState.SPACE_STATE_LOADING
        elif placed.state == failed:
            space.state = SpaceState.SPACE_STATE_FAILED
        return space
    ready: dict[int, ShardState] = {}
    for (_, shard), state in probe.states(route).items():
        if state.ready and state.table_version >= ready.get(shard, state).table_version:
            ready[shard] = state
    whole = len(ready) == route.shard_count
    space.state = SpaceState.SPACE_STATE_READY if whole else SpaceState.SPACE_STATE_DEGRADED
    space.index_version = route.index_version
    space.kind = common_kind({state.kind for state in ready.values()})
    space.passage_count = sum(each.passage_count for each in ready.values())
    space.table_version = min((each.table_version for each in ready.values()), default=0)
    return space


def common_kind(kinds: set[SearchKind.ValueType]) -> SearchKind.ValueType:
    """How all shards search: a version's kind only once every one of them has it."""
    if len(kinds) == 1:
        return next(iter(kinds))
    exact = SearchKind.SEARCH_KIND_EXACT
    return exact if exact in kinds else SearchKind.SEARCH_KIND_UNSPECIFIED
