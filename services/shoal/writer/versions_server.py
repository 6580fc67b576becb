"""How is the writer told of index versions? It alone writes the catalogue that lists them."""

from __future__ import annotations

import time
from typing import Any

import grpc
from shoal.internal.v1.writer_pb2 import (
    BeginVersionRequest,
    BeginVersionResponse,
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
from shoal.table.errors import IndexNotFoundError, VersionServesError
from shoal.writer.indexes import Indexes, describe_index
from shoal.writer.validation import check_index_name
from shoal.writer.versions import ended_version

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
        index, number, folder = await self._indexes.begin_version(
            request.uid, promote=request.promote
        )
        return BeginVersionResponse(entry=describe_index(index), version=number, folder=folder)

    async def FinishVersion(
        self, request: FinishVersionRequest, context: _Context
    ) -> FinishVersionResponse:
        """Enter how a build ended."""
        del context
        self._refuse_while_draining()
        model = self._model_of(request.uid)
        ended = ended_version(
            request.version, request.codebook_uri, encoder_model=model, now_ns=time.time_ns()
        )
        if ended is None:
            raise InvalidFieldError("version.state", "must be READY or FAILED")
        if ended.state == "ready" and not request.codebook_uri:
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
        if request.version in self._serving_versions(entry.uid):
            raise VersionServesError(request.name, request.version)
        index = await self._indexes.drop_version(request.name, request.version)
        return DropVersionResponse(entry=describe_index(index))

    def _model_of(self, uid: str) -> str:
        for entry in self._indexes.entries():
            if entry.uid == uid:
                return entry.encoder_model
        raise IndexNotFoundError(uid)
