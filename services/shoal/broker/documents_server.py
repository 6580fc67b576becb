"""How are documents written and read?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, cast

import grpc
from shoal.broker.probe import Probe
from shoal.broker.reading import DocumentReader
from shoal.broker.routes import Routes
from shoal.broker.targets import Targets
from shoal.broker.validation import MAX_DELETE_IDS, MAX_GET_IDS, check_ids
from shoal.broker.writing import reach_writer, writer_error
from shoal.internal.v1.shard_pb2 import StoredDocument
from shoal.internal.v1.writer_pb2 import (
    PurgeRowsRequest,
    RemoveDocumentsRequest,
    WriteDocumentsRequest,
)
from shoal.internal.v1.writer_pb2_grpc import WriterServiceStub
from shoal.rpc.deadline import Deadline
from shoal.v1.documents_pb2 import (
    DeleteDocumentsRequest,
    DeleteDocumentsResponse,
    Document,
    GetDocumentsRequest,
    GetDocumentsResponse,
    PurgeDocumentsRequest,
    PurgeDocumentsResponse,
    UpsertDocumentsRequest,
    UpsertDocumentsResponse,
)
from shoal.v1.documents_pb2_grpc import DocumentServiceServicer

_Context = grpc.aio.ServicerContext[Any, Any]

READ_SHARE: Final = 0.9
# Part of a purge's budget that may go by until the shards have seen the deletions.
_SHARDS_SHARE: Final = 0.3
# Between two looks at the shards.
_LOOK_S: Final = 0.05

_IN_SNAPSHOTS: Final = (
    "snapshots of the index and other copies that were made of its storage: remove those yourself"
)
_IN_SEGMENTS: Final = (
    "shard servers' memory and stored segments, which hold ids and codes but no text: out of "
    "answers from now on, and written again without them as soon as each server has folded its "
    "shards, mostly within seconds; a server that is down does it when it is back"
)


class DocumentsServer(DocumentServiceServicer):
    """DocumentService."""

    def __init__(
        self,
        routes: Callable[[], Routes],
        writers: Targets,
        reader: DocumentReader,
        probe: Probe,
        cache_ttl_s: float | None,
    ) -> None:
        """routes: gives the routes that are followed now.

        cache_ttl_s: seconds for which answers are cached; None if they are not.
        """
        self._routes, self._writers, self._reader = routes, writers, reader
        self._probe = probe
        self._remains = [_IN_SNAPSHOTS, _IN_SEGMENTS]
        if cache_ttl_s is not None:
            self._remains.append(
                "answers in the cache: out of reach from now on, and gone from Redis's memory "
                f"within {cache_ttl_s:g} s"
            )

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

    async def PurgeDocuments(
        self, request: PurgeDocumentsRequest, context: _Context
    ) -> PurgeDocumentsResponse:
        """Have the writer delete documents, then take them out of its files."""
        check_ids(request.document_ids, MAX_DELETE_IDS)
        self._routes().index(request.index)
        deadline = Deadline.of(context)
        removal = RemoveDocumentsRequest(index=request.index, document_ids=request.document_ids)
        removed = await reach_writer(
            self._writers,
            lambda stub, budget_s: stub.RemoveDocuments(removal, timeout=budget_s),
            deadline,
        )
        # A shard that has not seen the deletions when they are removed too must be made again.
        await self._reached(request.index, removed.table_version, deadline.share(_SHARDS_SHARE))
        purge = PurgeRowsRequest(index=request.index, document_ids=request.document_ids)
        response = await reach_writer(
            self._writers,
            lambda stub, budget_s: stub.PurgeRows(purge, timeout=budget_s),
            deadline,
        )
        purged: PurgeDocumentsResponse = response.purged
        purged.remains.extend(self._remains)
        return purged

    async def _reached(self, index: str, version: int, deadline: Deadline) -> None:
        """Wait until every copy of every shard, in every space, has a table version.

        As far as there is time.
        """
        while not deadline.passed:
            await self._probe.refresh(deadline)
            # Anew each time: shards of a layout that serves no more never get there.
            route = self._routes().index(index)
            if all(self._probe.reached(each, version) for each in (route, *route.spaces.values())):
                return
            await asyncio.sleep(min(_LOOK_S, deadline.budget_s))

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
    if stored.HasField("expires_at"):
        document.expires_at.CopyFrom(stored.expires_at)
    return document
