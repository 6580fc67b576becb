"""How are indexes made, shown and dropped?"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any, Final

import grpc
from shoal.broker.probe import Probe
from shoal.broker.rollouts_server import Peers, RolloutHandlers
from shoal.broker.routes import IndexRoute
from shoal.broker.snapshots_server import SnapshotHandlers
from shoal.broker.spaces_server import SpaceHandlers, common_kind, describe_space
from shoal.broker.targets import Targets
from shoal.broker.validation import DEFAULT_PAGE, MAX_PAGE, check_index_name
from shoal.broker.versions_server import VersionHandlers
from shoal.broker.waiting import RoutesBoard
from shoal.broker.writing import reach_writer
from shoal.filters.fields import check_fields, field_messages
from shoal.internal.v1.shard_pb2 import ShardState
from shoal.internal.v1.writer_pb2 import (
    CleanTableRequest,
    CreateTableRequest,
    DropTableRequest,
    DropTableResponse,
    ListTablesRequest,
    UpdateTableRequest,
)
from shoal.rpc.arrays import MAX_DIMENSION
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.rpc.index_goals import check_kind, check_recall_target, target_in_force
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import (
    CleanIndexRequest,
    CleanIndexResponse,
    CreateIndexRequest,
    CreateIndexResponse,
    DescribeIndexRequest,
    DescribeIndexResponse,
    DropIndexRequest,
    DropIndexResponse,
    Index,
    IndexState,
    ListIndexesRequest,
    ListIndexesResponse,
    ShardReplica,
    UpdateIndexRequest,
    UpdateIndexResponse,
)
from shoal.v1.indexes_pb2_grpc import IndexServiceServicer
from shoal.v1.search_pb2 import SearchKind

_Context = grpc.aio.ServicerContext[Any, Any]

# Most that the writer may take to say how many rows a table has.
_ROWS_S: Final = 1.0
_ROWS_SHARE: Final = 0.3


class IndexesServer(
    VersionHandlers, RolloutHandlers, SpaceHandlers, SnapshotHandlers, IndexServiceServicer
):
    """IndexService."""

    def __init__(
        self,
        board: RoutesBoard,
        writers: Targets,
        controllers: Targets,
        probe: Probe,
        peers: Peers,
    ) -> None:
        """board: where the routes are posted. peers: what has been compared, here and elsewhere."""
        self._peers = peers
        self._board, self._probe = board, probe
        self._writers, self._controllers = writers, controllers

    async def CreateIndex(
        self, request: CreateIndexRequest, context: _Context
    ) -> CreateIndexResponse:
        """Have the writer make a table, and wait until its shards serve."""
        check_index_name(request.name)
        if request.dimension > MAX_DIMENSION:
            raise InvalidFieldError("dimension", f"must be 1 to {MAX_DIMENSION}, or 0")
        if len(request.request_id.encode()) > 64:
            raise InvalidFieldError("request_id", "has more than 64 bytes")
        check_recall_target(request.recall_target)
        check_kind(request.kind)
        fields = field_messages(check_fields(request.fields))
        deadline = Deadline.of(context)
        creation = CreateTableRequest(
            name=request.name,
            dimension=request.dimension,
            fields=fields,
            # Repeating a call whose answer was lost must not find its own index in the way.
            request_id=request.request_id or uuid.uuid4().hex,
            recall_target=request.recall_target,
            kind=request.kind,
            feedback_disabled=request.feedback_disabled,
        )
        response = await reach_writer(
            self._writers,
            lambda stub, budget_s: stub.CreateTable(creation, timeout=budget_s),
            deadline,
        )
        entry = response.entry
        # The rest is in hand; a caller with little time gets the index as it is now.
        await self._board.wait_until(
            lambda routes: (
                request.name in routes.indexes
                and routes.indexes[request.name].uid == entry.uid
                and bool(routes.indexes[request.name].groups)
            ),
            deadline.share(0.9),
        )
        route = self._board.routes.indexes.get(request.name)
        if route is not None and route.uid == entry.uid:
            # The shards were ready a moment ago, and the probe has not heard of it yet.
            await self._probe.refresh(deadline.share(0.5))
            return CreateIndexResponse(index=self._index(route))
        return CreateIndexResponse(
            index=Index(
                name=entry.name,
                uid=entry.uid,
                encoder_model=entry.encoder_model,
                dimension=entry.dimension,
                create_time=entry.create_time,
                state=IndexState.INDEX_STATE_LOADING,
                recall_target=target_in_force(entry.recall_target),
                declared_kind=entry.kind,
                fields=entry.fields,
                feedback_disabled=entry.feedback_disabled,
            )
        )

    async def UpdateIndex(
        self, request: UpdateIndexRequest, context: _Context
    ) -> UpdateIndexResponse:
        """Have the writer note what the next versions are to be."""
        check_index_name(request.name)
        check_recall_target(request.recall_target)
        check_kind(request.kind)
        update = UpdateTableRequest(name=request.name)
        if request.HasField("recall_target"):
            update.recall_target = request.recall_target
        if request.HasField("kind"):
            update.kind = request.kind
        if request.HasField("feedback_disabled"):
            update.feedback_disabled = request.feedback_disabled
        response = await reach_writer(
            self._writers,
            lambda stub, budget_s: stub.UpdateTable(update, timeout=budget_s),
            Deadline.of(context),
        )
        entry = response.entry
        index = Index(name=entry.name, uid=entry.uid, dimension=entry.dimension)
        route = self._board.routes.indexes.get(request.name)
        if route is not None and route.uid == entry.uid:
            index = self._index(route)
        # The topology that says so may be on its way.
        index.recall_target = target_in_force(entry.recall_target)
        index.declared_kind = entry.kind
        index.feedback_disabled = entry.feedback_disabled
        return UpdateIndexResponse(index=index)

    async def ListIndexes(
        self, request: ListIndexesRequest, context: _Context
    ) -> ListIndexesResponse:
        """List a page of indexes: the token is the name of the last one before it."""
        del context
        if request.page_size > MAX_PAGE:
            raise InvalidFieldError("page_size", f"is {request.page_size}; at most {MAX_PAGE}")
        if request.page_token:
            check_index_name(request.page_token, "page_token")
        size = request.page_size or DEFAULT_PAGE
        routes = self._board.routes
        names = sorted(name for name in routes.indexes if name > request.page_token)
        return ListIndexesResponse(
            indexes=[self._index(routes.indexes[name]) for name in names[:size]],
            next_page_token=names[size - 1] if len(names) > size else "",
        )

    async def DescribeIndex(
        self, request: DescribeIndexRequest, context: _Context
    ) -> DescribeIndexResponse:
        """Describe an index and every replica of its shards."""
        route = self._board.routes.index(request.name)
        states = self._probe.states(route)
        replicas = [
            _replica(server, shard, states.get((server, shard)))
            for group in route.groups
            for server in group.servers
            for shard in group.shards
        ]
        replicas.sort(key=lambda each: (each.shard, each.shard_server))
        index = self._index(route)
        await self._add_rows(index, Deadline.of(context))
        return DescribeIndexResponse(index=index, shards=replicas)

    async def CleanIndex(self, request: CleanIndexRequest, context: _Context) -> CleanIndexResponse:
        """Have the writer clean an index's storage."""
        check_index_name(request.name)
        cleaning = CleanTableRequest(name=request.name)
        response = await reach_writer(
            self._writers,
            lambda stub, budget_s: stub.CleanTable(cleaning, timeout=budget_s),
            Deadline.of(context),
        )
        cleaned: CleanIndexResponse = response.cleaned
        return cleaned

    async def _add_rows(self, index: Index, deadline: Deadline) -> None:
        """Add what the writer says of the table; without it the description is as good."""
        patience = Deadline.after(min(_ROWS_S, _ROWS_SHARE * deadline.budget_s))
        try:
            response = await reach_writer(
                self._writers,
                lambda stub, budget_s: stub.ListTables(ListTablesRequest(), timeout=budget_s),
                patience,
            )
        except ServiceError:
            return
        for entry in response.entries:
            if entry.uid == index.uid:
                index.row_count = entry.row_count
                index.superseded_row_count = max(0, entry.row_count - index.passage_count)

    async def DropIndex(self, request: DropIndexRequest, context: _Context) -> DropIndexResponse:
        """Have the writer drop a table, and wait until nobody serves it."""
        deadline = Deadline.of(context)
        uid = await self._drop(request.name, deadline)
        gone = await self._board.wait_until(
            lambda routes: all(route.uid != uid for route in routes.indexes.values()),
            deadline.share(0.9),
        )
        if not gone:
            raise ServiceError(
                Reason.REASON_DEADLINE_EXCEEDED,
                f"index {request.name} is dropped, but was still in answers at the deadline: "
                f"it leaves them by itself",
            )
        return DropIndexResponse()

    async def _drop(self, name: str, deadline: Deadline) -> str:
        """Drop a table; return its uid."""
        known = self._board.routes.indexes.get(name)
        attempts = 0

        async def drop(stub: Any, budget_s: float) -> DropTableResponse:
            nonlocal attempts
            attempts += 1
            response: DropTableResponse = await stub.DropTable(
                DropTableRequest(name=name), timeout=budget_s
            )
            return response

        try:
            return (await reach_writer(self._writers, drop, deadline)).uid
        except ServiceError as error:
            # It was there; an attempt before this one dropped it, and its answer was lost.
            lost = error.reason == Reason.REASON_INDEX_NOT_FOUND and attempts > 1
            if known is None or not lost:
                raise
            return known.uid

    def _index(self, route: IndexRoute) -> Index:
        ready: dict[int, ShardState] = {}
        states = self._probe.states(route)
        for (_, shard), state in states.items():
            if state.ready and state.table_version >= ready.get(shard, state).table_version:
                ready[shard] = state
        state_value = IndexState.INDEX_STATE_READY
        if not route.groups:
            state_value = IndexState.INDEX_STATE_LOADING
        elif len(ready) < route.shard_count:
            state_value = IndexState.INDEX_STATE_DEGRADED
        return Index(
            name=route.name,
            uid=route.uid,
            encoder_model=route.encoder_model,
            dimension=route.dimension,
            create_time=route.create_time,
            state=state_value,
            table_version=min((each.table_version for each in ready.values()), default=0),
            index_version=route.index_version,
            kind=common_kind({state.kind for state in ready.values()}),
            document_count=sum(each.document_count for each in ready.values()),
            passage_count=sum(each.passage_count for each in ready.values()),
            shard_count=route.shard_count,
            fields=field_messages(route.fields),
            standby_version=route.standby_version,
            candidate_version=None if route.rollout is None else route.rollout.candidate_version,
            recall_target=target_in_force(route.recall_target),
            declared_kind=SearchKind.ValueType(route.declared_kind),
            live_recall=_live_recall(states.values()),
            feedback_disabled=route.feedback_disabled,
            search_effort=max((each.search_effort for each in states.values()), default=0),
            spaces=[describe_space(route, each, self._probe) for each in route.placed_spaces],
        )


def _live_recall(states: Iterable[ShardState]) -> float | None:
    """Recall over all replicas of all shards, by the neighbours that were wanted of each."""
    known = [each for each in states if each.ready and each.HasField("recall")]
    count = sum(each.recall_neighbour_count for each in known)
    if not count:
        return None
    return sum(each.recall * each.recall_neighbour_count for each in known) / count


def _replica(server: str, shard: int, state: ShardState | None) -> ShardReplica:
    if state is None:
        return ShardReplica(shard=shard, shard_server=server)
    return ShardReplica(
        shard=shard,
        shard_server=server,
        table_version=state.table_version,
        document_count=state.document_count,
        passage_count=state.passage_count,
        kind=state.kind,
        tail_count=state.tail_count,
        memory_bytes=state.memory_bytes,
        ready=state.ready,
        recall=state.recall if state.HasField("recall") else None,
        recall_queries=state.recall_query_count,
    )
