"""How are documents written and read?"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Final, cast

import grpc
from shoal.broker.reading import DocumentReader
from shoal.broker.routes import Routes
from shoal.broker.targets import Targets
from shoal.broker.validation import MAX_DELETE_IDS, MAX_GET_IDS, check_ids
from shoal.broker.writing import reach_writer, writer_error
from shoal.internal.v1.shard_pb2 import StoredDocument
from shoal.internal.v1.writer_pb2 import RemoveDocumentsRequest, WriteDocumentsRequest
from shoal.internal.v1.writer_pb2_grpc import WriterServiceStub
from shoal.rpc.deadline import Deadline
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

_Context = grpc.aio.ServicerContext[Any, Any]

READ_SHARE: Final = 0.9


class DocumentsServer(DocumentServiceServicer):
    """DocumentService."""

    def __init__(
        self, routes: Callable[[], Routes], writers: Targets, reader: DocumentReader
    ) -> None:
        """routes: gives the routes that are followed now."""
        self._routes, self._writers, self._reader = routes, writers, reader

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
        found = await self._reader.read(
            route, request.document_ids, deadline, request.min_table_version
        )
        present = [id_ for id_ in request.document_ids if id_ in found]
        missing = [id_ for id_ in request.document_ids if id_ not in found]
        return GetDocumentsResponse(
            documents=[_document(found[id_]) for id_ in present], missing_ids=missing
        )


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
