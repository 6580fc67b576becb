"""How are documents written and read?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, cast

import grpc
from shoal.broker.routes import IndexRoute, Routes, ShardGroup
from shoal.broker.targets import Targets
from shoal.broker.validation import MAX_DELETE_IDS, MAX_GET_IDS, check_ids
from shoal.broker.writing import reach_writer, writer_error
from shoal.internal.v1.shard_pb2 import FetchDocumentsRequest, StoredDocument
from shoal.internal.v1.shard_pb2_grpc import ShardServiceStub
from shoal.internal.v1.writer_pb2 import RemoveDocumentsRequest, WriteDocumentsRequest
from shoal.internal.v1.writer_pb2_grpc import WriterServiceStub
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.table.slots import shard_of, slot_of
from shoal.v1.documents_pb2 import (
    DeleteDocumentsRequest,
    DeleteDocumentsResponse,
    Document,
    GetDocumentsRequest,
    GetDocumentsResponse,
    UpsertDocumentsRequest,
    UpsertDocumentsResponse,
)
from shoal.v1.documents_pb2_grpc import DocumentServiceServicer
from shoal.v1.errors_pb2 import Reason

_Context = grpc.aio.ServicerContext[Any, Any]

READ_SHARE: Final = 0.9


class DocumentsServer(DocumentServiceServicer):
    """DocumentService."""

    def __init__(
        self, routes: Callable[[], Routes], writers: Targets, shard_servers: Targets
    ) -> None:
        """routes: gives the routes that are followed now."""
        self._routes, self._writers, self._shard_servers = routes, writers, shard_servers

    async def UpsertDocuments(
        self, requests: AsyncIterator[UpsertDocumentsRequest], context: _Context
    ) -> AsyncIterator[UpsertDocumentsResponse]:
        """Hand the stream to the writer, and its acknowledgements back.

        gRPC's own flow control holds the caller back when the writer is behind: nothing gathers
        here.
        """
        writer = self._writers.choose()
        if writer is None:
            raise writer_error(None)

        async def wrapped() -> AsyncIterator[WriteDocumentsRequest]:
            async for request in requests:
                yield WriteDocumentsRequest(upsert=request)

        # The type stubs know no None.
        remaining_s = cast("float | None", context.time_remaining())
        timeout_s = remaining_s if remaining_s is not None and remaining_s < 86_400 else None
        call = WriterServiceStub(writer.channel).WriteDocuments(wrapped(), timeout=timeout_s)
        try:
            async for response in call:
                yield response.acknowledgement
        except grpc.aio.AioRpcError as error:
            raise writer_error(error) from error
        finally:
            call.cancel()

    async def DeleteDocuments(
        self, request: DeleteDocumentsRequest, context: _Context
    ) -> DeleteDocumentsResponse:
        """Have the writer delete documents."""
        check_ids(request.document_ids, MAX_DELETE_IDS)
        self._routes().index(request.index)
        removal = RemoveDocumentsRequest(index=request.index, document_ids=request.document_ids)
        response = await reach_writer(
            self._writers,
            lambda stub, budget_s: stub.RemoveDocuments(removal, timeout=budget_s),
            Deadline.of(context),
        )
        return DeleteDocumentsResponse(table_version=response.table_version)

    async def GetDocuments(
        self, request: GetDocumentsRequest, context: _Context
    ) -> GetDocumentsResponse:
        """Read documents from the shards that own them."""
        check_ids(request.document_ids, MAX_GET_IDS)
        route = self._routes().index(request.index)
        # What is left is for the answer to travel.
        deadline = Deadline.of(context).share(READ_SHARE)
        by_group: dict[ShardGroup, list[str]] = {}
        for id_ in request.document_ids:
            by_group.setdefault(_owner(route, id_), []).append(id_)
        found: dict[str, StoredDocument] = {}
        for documents in await asyncio.gather(
            *(
                self._fetch(route, group, ids, request.min_table_version, deadline)
                for group, ids in by_group.items()
            )
        ):
            found |= documents
        present = [id_ for id_ in request.document_ids if id_ in found]
        missing = [id_ for id_ in request.document_ids if id_ not in found]
        return GetDocumentsResponse(
            documents=[_document(found[id_]) for id_ in present], missing_ids=missing
        )

    async def _fetch(
        self,
        route: IndexRoute,
        group: ShardGroup,
        ids: list[str],
        min_table_version: int,
        deadline: Deadline,
    ) -> dict[str, StoredDocument]:
        request = FetchDocumentsRequest(
            layout=route.layout, document_ids=ids, min_table_version=min_table_version
        )
        try:
            _, response = await self._shard_servers.first_to_do(
                lambda target: target.call(
                    lambda: ShardServiceStub(target.channel).FetchDocuments(
                        request, timeout=deadline.budget_s
                    )
                ),
                deadline,
                group.servers,
            )
        except (TimeoutError, ServiceError) as error:
            bare = isinstance(error, ServiceError) and error.reason == Reason.REASON_UNSPECIFIED
            if isinstance(error, ServiceError) and not bare:
                raise
            raise ServiceError(
                Reason.REASON_SHARD_UNAVAILABLE,
                f"{' and '.join(group.servers)} did not answer in time: try again",
            ) from error
        return {document.document_id: document for document in response.documents}


def _owner(route: IndexRoute, document_id: str) -> ShardGroup:
    if not route.groups:
        raise ServiceError(
            Reason.REASON_NOT_READY, f"index {route.name} is being loaded: try again in a moment"
        )
    shard = shard_of(slot_of(document_id), route.shard_count)
    return next(group for group in route.groups if shard in group.shards)


def _document(stored: StoredDocument) -> Document:
    document = Document(
        id=stored.document_id,
        title=stored.title,
        text=stored.text,
        create_time=stored.create_time,
        update_time=stored.update_time,
        content_hash=stored.content_hash,
        passages=stored.passages,
    )
    if stored.HasField("metadata"):
        document.metadata.CopyFrom(stored.metadata)
    return document
