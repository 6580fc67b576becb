"""How are versions of an index built, listed, promoted and dropped?

The writer's catalogue is the truth about them; the controller builds them, and has brokers follow
what is promoted. A promotion is in force for this broker's callers once its own routes say so.
"""

from __future__ import annotations

from typing import Any, Final

import grpc
from shoal.broker.controlling import reach_controller
from shoal.broker.targets import Targets
from shoal.broker.validation import DEFAULT_PAGE, MAX_PAGE, check_index_name
from shoal.broker.waiting import RoutesBoard
from shoal.broker.writing import reach_writer
from shoal.internal.v1.topology_pb2 import ListBuildsRequest, StartBuildRequest
from shoal.internal.v1.writer_pb2 import (
    CatalogEntry,
    DropVersionRequest,
    ListTablesRequest,
    PromoteVersionRequest,
    RollBackVersionRequest,
)
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.rpc.index_goals import check_kind, check_recall_target
from shoal.rpc.space_names import check_space_name
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import (
    BuildIndexVersionRequest,
    BuildIndexVersionResponse,
    BuildProgress,
    DropIndexVersionRequest,
    DropIndexVersionResponse,
    IndexVersionState,
    ListIndexVersionsRequest,
    ListIndexVersionsResponse,
    PromoteIndexVersionRequest,
    PromoteIndexVersionResponse,
    RollbackIndexRequest,
    RollbackIndexResponse,
)
from shoal.v1.search_pb2 import SearchKind

_Context = grpc.aio.ServicerContext[Any, Any]

# Most that the controller may take to say how far a build is: the list does without.
_PROGRESS_S: Final = 1.0
_PROGRESS_SHARE: Final = 0.3
# Part of a call's budget that is spent waiting for what was promoted to serve.
_WAIT_SHARE: Final = 0.9


class VersionHandlers:
    """The part of IndexService that is about versions."""

    _board: RoutesBoard
    _writers: Targets
    _controllers: Targets

    async def BuildIndexVersion(
        self, request: BuildIndexVersionRequest, context: _Context
    ) -> BuildIndexVersionResponse:
        """Have the controller begin a build."""
        check_index_name(request.name)
        further = request.encoder_bundle or request.space
        if not (further and request.kind == SearchKind.SEARCH_KIND_EXACT):
            check_kind(request.kind)
        build = StartBuildRequest(
            name=request.name,
            promote=request.promote,
            kind=request.kind,
            encoder_bundle=request.encoder_bundle,
            space=check_space_name(request.space) if request.space else "",
        )
        if request.space and (request.promote or request.encoder_bundle):
            raise InvalidFieldError(
                "space",
                f"is {request.space!r}, whose versions have its own model, and serve in it as soon "
                "as they are ready: leave out `promote` and `encoder_bundle`, or add another space",
            )
        if request.HasField("recall_target"):
            check_recall_target(request.recall_target)
            build.recall_target = request.recall_target
        response = await reach_controller(
            self._controllers,
            lambda stub, budget_s: stub.StartBuild(build, timeout=budget_s),
            Deadline.of(context),
        )
        return BuildIndexVersionResponse(version=response.version)

    async def ListIndexVersions(
        self, request: ListIndexVersionsRequest, context: _Context
    ) -> ListIndexVersionsResponse:
        """List a page of versions: the token is the number of the last one before it."""
        check_index_name(request.name)
        if request.page_size > MAX_PAGE:
            raise InvalidFieldError("page_size", f"is {request.page_size}; at most {MAX_PAGE}")
        if request.page_token and not request.page_token.isdecimal():
            raise InvalidFieldError("page_token", "is not one that a page came with")
        deadline = Deadline.of(context)
        entry = await self._entry(request.name, deadline)
        after = int(request.page_token or 0)
        size = request.page_size or DEFAULT_PAGE
        versions = [each for each in entry.versions if each.number > after]
        response = ListIndexVersionsResponse(
            versions=versions[:size],
            promoted_version=entry.index_version,
            previous_version=_previous(entry),
            serving_version=self._serving(entry),
            next_page_token=str(versions[size - 1].number) if len(versions) > size else "",
        )
        await self._add_progress(entry.uid, response, deadline)
        return response

    async def PromoteIndexVersion(
        self, request: PromoteIndexVersionRequest, context: _Context
    ) -> PromoteIndexVersionResponse:
        """Have the writer put a version in force, and wait until it serves."""
        check_index_name(request.name)
        deadline = Deadline.of(context)
        promotion = PromoteVersionRequest(name=request.name, version=request.version)
        if request.HasField("expected_serving_version"):
            promotion.expected_version = request.expected_serving_version
        response = await reach_writer(
            self._writers,
            lambda stub, budget_s: stub.PromoteVersion(promotion, timeout=budget_s),
            deadline,
        )
        return PromoteIndexVersionResponse(
            serving_version=await self._followed(response.entry, deadline)
        )

    async def RollbackIndex(
        self, request: RollbackIndexRequest, context: _Context
    ) -> RollbackIndexResponse:
        """Have the writer put the previous version in force, and wait until it serves."""
        check_index_name(request.name)
        deadline = Deadline.of(context)
        if request.HasField("expected_serving_version"):
            left = request.expected_serving_version
        else:
            # Named, so that a call which is repeated, as its answer was lost, is not undone.
            left = (await self._entry(request.name, deadline)).index_version
        rollback = RollBackVersionRequest(name=request.name, from_version=left)
        response = await reach_writer(
            self._writers,
            lambda stub, budget_s: stub.RollBackVersion(rollback, timeout=budget_s),
            deadline,
        )
        return RollbackIndexResponse(
            promoted_version=response.entry.index_version,
            serving_version=await self._followed(response.entry, deadline),
        )

    async def DropIndexVersion(
        self, request: DropIndexVersionRequest, context: _Context
    ) -> DropIndexVersionResponse:
        """Have the writer drop a version."""
        check_index_name(request.name)
        drop = DropVersionRequest(name=request.name, version=request.version)
        attempts = 0

        async def once(stub: Any, budget_s: float) -> None:
            nonlocal attempts
            attempts += 1
            await stub.DropVersion(drop, timeout=budget_s)

        try:
            await reach_writer(self._writers, once, Deadline.of(context))
        except ServiceError as error:
            # An attempt before this one dropped it, and its answer was lost.
            if error.reason != Reason.REASON_VERSION_NOT_FOUND or attempts == 1:
                raise
        return DropIndexVersionResponse()

    async def _entry(self, name: str, deadline: Deadline) -> CatalogEntry:
        """An index as the writer has it. Raises INDEX_NOT_FOUND."""
        response = await reach_writer(
            self._writers,
            lambda stub, budget_s: stub.ListTables(ListTablesRequest(), timeout=budget_s),
            deadline,
        )
        for entry in response.entries:
            if entry.name == name:
                found: CatalogEntry = entry
                return found
        self._board.routes.index(name)  # Says which there are.
        raise ServiceError(Reason.REASON_INDEX_NOT_FOUND, f"index {name} was just dropped")

    async def _followed(self, entry: CatalogEntry, deadline: Deadline) -> int:
        """Wait until what is in force serves here; say what serves."""
        await self._board.wait_until(
            lambda _: self._serving(entry) == entry.index_version, deadline.share(_WAIT_SHARE)
        )
        return self._serving(entry)

    def _serving(self, entry: CatalogEntry) -> int:
        route = self._board.routes.indexes.get(entry.name)
        return 0 if route is None or route.uid != entry.uid else route.index_version

    async def _add_progress(
        self, uid: str, response: ListIndexVersionsResponse, deadline: Deadline
    ) -> None:
        """Say how far builds are, if the controller does."""
        building = IndexVersionState.INDEX_VERSION_STATE_BUILDING
        running = {each.number: each for each in response.versions if each.state == building}
        if not running:
            return
        budget_s = min(_PROGRESS_S, _PROGRESS_SHARE * deadline.budget_s)
        try:
            builds = await reach_controller(
                self._controllers,
                lambda stub, budget_s: stub.ListBuilds(ListBuildsRequest(), timeout=budget_s),
                Deadline.after(budget_s),
            )
        except ServiceError:
            return
        for build in builds.builds:
            if build.index_uid == uid and build.version in running:
                progress: BuildProgress = build.progress
                running[build.version].progress.CopyFrom(progress)


def _previous(entry: CatalogEntry) -> int | None:
    return entry.previous_version if entry.HasField("previous_version") else None
