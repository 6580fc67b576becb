"""How is the writer told of index versions? It alone writes the catalogue that lists them."""

from __future__ import annotations

import time
from typing import Any

import grpc
from shoal.internal.v1.writer_pb2 import (
    AdoptVectorsRequest,
    AdoptVectorsResponse,
    BeginVersionRequest,
    BeginVersionResponse,
    ChangeRolloutRequest,
    ChangeRolloutResponse,
    DropTableSpaceRequest,
    DropTableSpaceResponse,
    DropVersionRequest,
    DropVersionResponse,
    FinishVersionRequest,
    FinishVersionResponse,
    PromoteVersionRequest,
    PromoteVersionResponse,
    RollBackVersionRequest,
    RollBackVersionResponse,
)
from shoal.rpc.errors import InvalidFieldError
from shoal.rpc.space_names import check_space_name
from shoal.table.errors import VersionServesError
from shoal.table.spaces import in_force
from shoal.table.versions import EXACT, own_versions
from shoal.v1.search_pb2 import SearchKind
from shoal.writer.indexes import Indexes, describe_index
from shoal.writer.validation import check_index_name
from shoal.writer.versions import ended_version, rollout_record

_Context = grpc.aio.ServicerContext[Any, Any]


class VersionHandlers:
    """The part of WriterService that is about versions."""

    _indexes: Indexes

    def _refuse_while_draining(self) -> None:
        raise NotImplementedError

    def _serving_versions(self, uid: str) -> set[int]:
        raise NotImplementedError

    async def BeginVersion(
        self, request: BeginVersionRequest, context: _Context
    ) -> BeginVersionResponse:
        """Enter a version that is being built."""
        del context
        self._refuse_while_draining()
        index, begun = await self._indexes.begin_version(
            request.uid,
            promote=request.promote,
            encoder_model=request.encoder_model,
            encoder_bundle=request.encoder_bundle,
            dimension=request.dimension,
            space=check_space_name(request.space) if request.space else "",
        )
        return BeginVersionResponse(
            entry=describe_index(index),
            version=begun.number,
            folder=begun.folder,
            vectors_folder=begun.vectors_folder,
        )

    async def AdoptVectors(
        self, request: AdoptVectorsRequest, context: _Context
    ) -> AdoptVectorsResponse:
        """Take over what the steps of a build have encoded."""
        del context
        self._refuse_while_draining()
        adopted, missing = await self._indexes.adopt_vectors(request.uid, request.version)
        return AdoptVectorsResponse(adopted=adopted, missing=missing)

    async def ChangeRollout(
        self, request: ChangeRolloutRequest, context: _Context
    ) -> ChangeRolloutResponse:
        """Begin, change or end a rollout."""
        del context
        self._refuse_while_draining()
        check_index_name(request.name, "name")
        rollout = rollout_record(request.rollout) if request.HasField("rollout") else None
        index = await self._indexes.change_rollout(request.name, rollout)
        return ChangeRolloutResponse(entry=describe_index(index))

    async def FinishVersion(
        self, request: FinishVersionRequest, context: _Context
    ) -> FinishVersionResponse:
        """Enter how a build ended."""
        del context
        self._refuse_while_draining()
        ended = ended_version(request.version, request.codebook_uri, now_ns=time.time_ns())
        if ended is None:
            raise InvalidFieldError("version.state", "must be READY or FAILED")
        exact = ended.kind == SearchKind.SEARCH_KIND_EXACT
        if ended.state == "ready" and not request.codebook_uri and not exact:
            raise InvalidFieldError("codebook_uri", "is empty")
        index = await self._indexes.finish_version(request.uid, ended)
        return FinishVersionResponse(entry=describe_index(index))

    async def PromoteVersion(
        self, request: PromoteVersionRequest, context: _Context
    ) -> PromoteVersionResponse:
        """Put a version in force."""
        del context
        self._refuse_while_draining()
        check_index_name(request.name, "name")
        expected = request.expected_version if request.HasField("expected_version") else None
        index = await self._indexes.promote(request.name, request.version, expected)
        return PromoteVersionResponse(entry=describe_index(index))

    async def RollBackVersion(
        self, request: RollBackVersionRequest, context: _Context
    ) -> RollBackVersionResponse:
        """Put the previous version in force."""
        del context
        self._refuse_while_draining()
        check_index_name(request.name, "name")
        index = await self._indexes.roll_back(request.name, request.from_version)
        return RollBackVersionResponse(entry=describe_index(index))

    async def DropVersion(
        self, request: DropVersionRequest, context: _Context
    ) -> DropVersionResponse:
        """Take a version out."""
        del context
        self._refuse_while_draining()
        check_index_name(request.name, "name")
        entry = self._indexes.get(request.name).entry
        # The one in force may still be loaded, while the one before it answers.
        dropped = own_versions(entry) if request.version == EXACT else {request.version}
        # Of what a space is searched by, the catalogue says more.
        serves = self._serving_versions(entry.uid) - in_force(entry).keys()
        for serving in sorted(dropped & serves):
            raise VersionServesError(request.name, serving)
        index = await self._indexes.drop_version(request.name, request.version)
        return DropVersionResponse(entry=describe_index(index))

    async def DropTableSpace(
        self, request: DropTableSpaceRequest, context: _Context
    ) -> DropTableSpaceResponse:
        """Take a vector space out."""
        del context
        self._refuse_while_draining()
        check_index_name(request.name, "name")
        index = await self._indexes.drop_space(request.name, request.space)
        return DropTableSpaceResponse(entry=describe_index(index))
