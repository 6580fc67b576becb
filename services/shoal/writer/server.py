"""How is the writer spoken to?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from shoal.filters.fields import check_fields
from shoal.internal.v1.topology_pb2 import Topology
from shoal.internal.v1.writer_pb2 import DESCRIPTOR as WRITER
from shoal.internal.v1.writer_pb2 import (
    CreateTableRequest,
    CreateTableResponse,
    DropTableRequest,
    DropTableResponse,
    ListTablesRequest,
    ListTablesResponse,
    RemoveDocumentsRequest,
    RemoveDocumentsResponse,
    UpdateTableRequest,
    UpdateTableResponse,
    WriteDocumentsRequest,
    WriteDocumentsResponse,
)
from shoal.internal.v1.writer_pb2_grpc import (
    WriterServiceServicer,
    add_WriterServiceServicer_to_server,
)
from shoal.rpc.arrays import MAX_DIMENSION
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.rpc.index_goals import check_kind, check_recall_target
from shoal.rpc.topology import TopologyFollower, layouts_of, placed_spaces
from shoal.table import Tombstone
from shoal.v1.errors_pb2 import Reason
from shoal.writer.config import WriterSettings
from shoal.writer.copies import Copies
from shoal.writer.copies_server import CopyHandlers
from shoal.writer.drift_server import DriftHandlers
from shoal.writer.encoders import EncoderPool
from shoal.writer.feedback_keys import FeedbackKeys
from shoal.writer.feedback_server import FeedbackHandlers
from shoal.writer.indexes import Indexes, describe_index
from shoal.writer.storage import StorageKeeper
from shoal.writer.storage_server import StorageHandlers, check_ids
from shoal.writer.stream import STREAM_BUDGET_S, UpsertStream, WriterParts
from shoal.writer.tokens import load_measure
from shoal.writer.validation import MAX_REQUEST_ID_BYTES, check_index_name
from shoal.writer.versions_server import VersionHandlers

_log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]

# Seconds after which an overloaded writer is worth asking again.
_RETRY_DELAY_S = 1.0


class WriterService(
    VersionHandlers,
    StorageHandlers,
    CopyHandlers,
    FeedbackHandlers,
    DriftHandlers,
    WriterServiceServicer,
):
    """The writer as a service: its handlers check, call, and let errors through."""

    def __init__(
        self, settings: WriterSettings, instance_id: str = "", *, topology: Topology | None = None
    ) -> None:
        """Nothing is opened before `start`. topology: to follow until one is published."""
        self._first_topology = topology
        self._settings = settings
        self._follower = TopologyFollower(instance_id, follow=self._follow)
        self._indexes = Indexes(settings)
        self._keeper = StorageKeeper(settings, self._indexes, self._loaded_versions)
        self._copies = Copies(self._indexes)
        self._keys = FeedbackKeys(settings)
        self._encoders = EncoderPool(settings)
        self._executor = ThreadPoolExecutor(settings.prepare_threads, thread_name_prefix="prepare")
        self._draining = asyncio.Event()
        self._streams: set[asyncio.Task[Any]] = set()
        self._parts: WriterParts | None = None

    @property
    def follower(self) -> TopologyFollower:
        """What follows the topology: the writer takes the encoders from it."""
        return self._follower

    @property
    def indexes(self) -> Indexes:
        """The indexes held open."""
        return self._indexes

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the handlers to a server."""
        add_WriterServiceServicer_to_server(self, server)
        return [WRITER.services_by_name["WriterService"].full_name]

    async def start(self) -> None:
        """Take the data root, and open every table."""
        measure = await asyncio.to_thread(load_measure, self._settings.tokenizer)
        self._indexes.tokenize = measure.pieces
        await self._indexes.start()
        await asyncio.to_thread(self._keys.load)
        self._keeper.start()
        if self._first_topology is not None:
            self._follower.accept(self._first_topology)
        self._parts = WriterParts(
            self._settings, self._indexes, self._encoders, measure, self._executor, self._draining
        )

    async def drain(self) -> None:
        """Refuse new streams, and end those that are open once what they sent is acknowledged."""
        self._draining.set()
        await self._copies.close()
        if self._streams:
            await asyncio.wait(self._streams)

    async def stop(self) -> None:
        """Finish all commits, and let go of the data root."""
        await self._keeper.stop()
        await self._copies.close()
        await self._indexes.close()
        await self._encoders.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _follow(self, topology: Topology) -> None:
        self._encoders.follow(topology)

    async def WriteDocuments(
        self, request_iterator: AsyncIterator[WriteDocumentsRequest], context: _Context
    ) -> AsyncIterator[WriteDocumentsResponse]:
        """Write a stream of documents."""
        self._admit_stream()
        task = asyncio.current_task()
        assert task is not None
        assert self._parts is not None
        self._streams.add(task)
        stream = UpsertStream(
            self._parts, request_iterator, Deadline.of(context, default_s=STREAM_BUDGET_S)
        )
        acknowledgements = stream.acknowledgements()
        try:
            async for acknowledgement in acknowledgements:
                yield WriteDocumentsResponse(acknowledgement=acknowledgement)
        finally:
            await acknowledgements.aclose()
            self._streams.discard(task)

    async def RemoveDocuments(
        self, request: RemoveDocumentsRequest, context: _Context
    ) -> RemoveDocumentsResponse:
        """Delete documents."""
        del context
        self._refuse_while_draining()
        check_index_name(request.index, "index")
        check_ids(request.document_ids)
        index = self._indexes.get(request.index)
        tombstones = [Tombstone(each) for each in dict.fromkeys(request.document_ids)]
        version = await index.committer.submit(tombstones)
        return RemoveDocumentsResponse(table_version=version)

    async def CreateTable(
        self, request: CreateTableRequest, context: _Context
    ) -> CreateTableResponse:
        """Make an index."""
        self._refuse_while_draining()
        check_index_name(request.name, "name")
        if request.dimension > MAX_DIMENSION:
            raise InvalidFieldError(
                "dimension", f"is {request.dimension}; at most {MAX_DIMENSION} are taken"
            )
        if len(request.request_id.encode()) > MAX_REQUEST_ID_BYTES:
            raise InvalidFieldError("request_id", f"has more than {MAX_REQUEST_ID_BYTES} bytes")
        check_recall_target(request.recall_target)
        check_kind(request.kind)
        fields = check_fields(request.fields)
        dimension, model = await self._dimension_and_model(request, Deadline.of(context))
        index = await self._indexes.create(
            request.name,
            dimension=dimension,
            encoder_model=model,
            request_id=request.request_id,
            recall_target=request.recall_target,
            kind=request.kind,
            fields=fields,
            feedback_disabled=request.feedback_disabled,
        )
        return CreateTableResponse(entry=describe_index(index))

    async def UpdateTable(
        self, request: UpdateTableRequest, context: _Context
    ) -> UpdateTableResponse:
        """Change what versions of an index are built to be."""
        del context
        self._refuse_while_draining()
        check_index_name(request.name, "name")
        check_recall_target(request.recall_target)
        check_kind(request.kind)
        index = await self._indexes.update(
            request.name,
            recall_target=request.recall_target if request.HasField("recall_target") else None,
            kind=request.kind if request.HasField("kind") else None,
            feedback_disabled=(
                request.feedback_disabled if request.HasField("feedback_disabled") else None
            ),
        )
        return UpdateTableResponse(entry=describe_index(index))

    async def DropTable(self, request: DropTableRequest, context: _Context) -> DropTableResponse:
        """Drop an index."""
        del context
        self._refuse_while_draining()
        check_index_name(request.name, "name")
        entry = await self._indexes.drop(request.name)
        return DropTableResponse(uid=entry.uid)

    async def ListTables(self, request: ListTablesRequest, context: _Context) -> ListTablesResponse:
        """Read the catalogue, from memory."""
        del request, context
        return ListTablesResponse(entries=self._indexes.describe())

    async def _dimension_and_model(
        self, request: CreateTableRequest, deadline: Deadline
    ) -> tuple[int, str]:
        """What the encoders make, unless the caller brings vectors of another kind.

        With a dimension of the caller's own an encoder need not be there: the first text that is
        written decides the model then.
        """
        if request.dimension and self._encoders.empty:
            return request.dimension, ""
        patience_s = min(self._settings.encoder_patience_s, deadline.budget_s / 2)
        try:
            encoded = await self._encoders.encode(["shoal"], Deadline.after(patience_s))
        except ServiceError as error:
            if request.dimension and error.reason == Reason.REASON_ENCODER_UNAVAILABLE:
                return request.dimension, ""
            raise
        dimension = int(encoded.vectors.shape[1])
        if request.dimension in (0, dimension):
            return dimension, encoded.model
        return request.dimension, ""

    def _admit_stream(self) -> None:
        self._refuse_while_draining()
        if len(self._streams) >= self._settings.max_streams:
            raise ServiceError(
                Reason.REASON_OVERLOADED,
                f"{len(self._streams)} streams are open, as many as this writer takes: come back "
                "later, or send more documents in each stream",
                retry_delay_s=_RETRY_DELAY_S,
            )

    def _serving_versions(self, uid: str) -> set[int]:
        """Versions of an index that answer searches, by the topology."""
        return {
            each.serving.index_version
            for index in self._follower.topology.indexes
            if index.uid == uid
            for each in placed_spaces(index)
            if each.HasField("serving")
        }

    def _loaded_versions(self, uid: str) -> set[int] | None:
        """Versions of an index that the topology has in memory; None before there is one."""
        if not self._follower.topology.epoch:
            return None
        return {
            layout.index_version
            for index in self._follower.topology.indexes
            if index.uid == uid
            for layout in layouts_of(index)
        }

    def _refuse_while_draining(self) -> None:
        if self._draining.is_set():
            raise ServiceError(
                Reason.REASON_DRAINING, "the writer is stopping: try again in a moment"
            )
