"""The asyncio client: `Client` with `async with` and `await`, for one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from typing import Any, Self, TypeVar

import grpc
from shoal.client import _requests as requests
from shoal.client._async_upsert import AsyncUpsertStream
from shoal.client._channel import (
    DEFAULT_ENDPOINT,
    Options,
    caller_metadata,
    channel_options,
    target_of,
)
from shoal.client._errors import error_of
from shoal.client._feedback import AsyncFeedbackCalls
from shoal.client._rollouts import AsyncRolloutCalls
from shoal.client._snapshots import AsyncSnapshotCalls
from shoal.client._spaces import AsyncSpaceCalls
from shoal.client._upsert import (
    LostStreamError,
    OnAcknowledge,
    Upload,
    UpsertSummary,
)
from shoal.v1.cluster_pb2 import GetClusterStatusRequest, GetClusterStatusResponse, Scale
from shoal.v1.cluster_pb2_grpc import ClusterServiceStub
from shoal.v1.documents_pb2 import (
    Document,
    GetDocumentsResponse,
    PurgeDocumentsResponse,
)
from shoal.v1.documents_pb2_grpc import DocumentServiceStub
from shoal.v1.drift_pb2_grpc import DriftServiceStub
from shoal.v1.feedback_pb2_grpc import FeedbackServiceStub
from shoal.v1.indexes_pb2 import (
    BuildIndexVersionRequest,
    CleanIndexRequest,
    CleanIndexResponse,
    DescribeIndexRequest,
    DescribeIndexResponse,
    DropIndexRequest,
    DropIndexVersionRequest,
    Index,
    IndexVersion,
    ListIndexesRequest,
    ListIndexVersionsRequest,
    ListIndexVersionsResponse,
    PromoteIndexVersionRequest,
    RollbackIndexRequest,
    RollbackIndexResponse,
    UpdateIndexRequest,
)
from shoal.v1.indexes_pb2_grpc import IndexServiceStub
from shoal.v1.search_pb2 import (
    BatchSearchResponse,
    RetrieveContextResponse,
    SearchKind,
    SearchRequest,
    SearchResponse,
)
from shoal.v1.search_pb2_grpc import SearchServiceStub

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class AsyncClient(AsyncRolloutCalls, AsyncSnapshotCalls, AsyncSpaceCalls, AsyncFeedbackCalls):
    """Talks to one broker or several."""

    def __init__(
        self,
        endpoints: str | Sequence[str] = DEFAULT_ENDPOINT,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        wait_for_ready: bool = False,
        caller: str = "",
        options: Options = (),
    ) -> None:
        """Connects on first use, and again by itself. To be made where an event loop runs.

        endpoints: `host:port` of a broker, or of several, which are used in turn. credentials: for
        TLS; None is plain text. wait_for_ready: True has calls wait, within their deadlines, for a
        broker that is not there yet; False has them fail with UnavailableError after some retries.
        caller: names this caller, so that it stays on one side while a version is rolled out to a
        part of all callers; without it the address does. options: gRPC channel arguments that win
        over the client's own.
        """
        target, arguments = target_of(endpoints), channel_options(options)
        self._channel = (
            grpc.aio.insecure_channel(target, arguments)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, arguments)
        )
        self._wait_for_ready = wait_for_ready
        self._metadata = caller_metadata(caller)
        self._search = SearchServiceStub(self._channel)
        self._documents = DocumentServiceStub(self._channel)
        self._indexes = IndexServiceStub(self._channel)
        self._cluster = ClusterServiceStub(self._channel)
        self._feedback = FeedbackServiceStub(self._channel)
        self._drift = DriftServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Calls under way fail; the client cannot be used again."""
        await self._channel.close()

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout_s: float,
    ) -> _Response:
        try:
            return await method(
                request,
                timeout=timeout_s,
                metadata=self._metadata,
                wait_for_ready=self._wait_for_ready,
            )
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error

    async def search(
        self,
        index: str,
        query: str | Sequence[float],
        *,
        top_k: int | None = None,
        rerank: bool = True,
        candidate_count: int | None = None,
        min_table_version: int = 0,
        require_complete: bool = False,
        explain: bool = False,
        omit_text: bool = False,
        bypass_cache: bool = False,
        hits_per_document: int | None = None,
        filter: str = "",  # noqa: A002  # the field's name
        hybrid: bool = True,
        lexical_weight: float | None = None,
        no_feedback: bool = False,
        index_version: int | None = None,
        spaces: Sequence[str] = (),
        timeout_s: float = 10.0,
    ) -> SearchResponse:
        """Rank the passages of an index for a question, or for a vector.

        The arguments are those of `search_request`. timeout_s is the budget of the search: what
        does not fit is cut, and `coverage` of the answer says what. Zero hits is no error.
        """
        request = requests.search_request(
            index,
            query,
            top_k=top_k,
            rerank=rerank,
            candidate_count=candidate_count,
            min_table_version=min_table_version,
            require_complete=require_complete,
            explain=explain,
            omit_text=omit_text,
            bypass_cache=bypass_cache,
            hits_per_document=hits_per_document,
            filter=filter,
            hybrid=hybrid,
            lexical_weight=lexical_weight,
            no_feedback=no_feedback,
            index_version=index_version,
            spaces=spaces,
        )
        return await self._call(self._search.Search, request, timeout_s)

    async def retrieve_context(
        self,
        index: str,
        query: str | Sequence[float],
        *,
        token_budget: int | None = None,
        neighbours: int | None = None,
        timeout_s: float = 10.0,
        **search: Any,
    ) -> RetrieveContextResponse:
        """Glue what a search finds into texts within a budget of tokens, with citations.

        token_budget: None means 2,000. neighbours: passages on each side of a hit that come along
        if there is room; None means 1. The other arguments are those of `search_request`.
        """
        found = requests.search_request(index, query, **search)
        request = requests.context_request(found, token_budget, neighbours)
        return await self._call(self._search.RetrieveContext, request, timeout_s)

    async def batch_search(
        self, searches: Iterable[SearchRequest], *, timeout_s: float = 30.0
    ) -> BatchSearchResponse:
        """Run up to 256 searches in one call; make them with `search_request`.

        Each result holds a response or an error of its own.
        """
        request = requests.batch_search_request(searches)
        return await self._call(self._search.BatchSearch, request, timeout_s)

    async def upsert(
        self,
        index: str,
        documents: Iterable[Document | Mapping[str, Any]]
        | AsyncIterable[Document | Mapping[str, Any]],
        *,
        on_acknowledge: OnAcknowledge | None = None,
        timeout_s: float | None = None,
    ) -> UpsertSummary:
        """Write documents, each replacing the one that has its id.

        documents: messages, or mappings with `id`, `text` and perhaps `title`, `metadata`,
        `vector`, `create_time`; read as fast as they are acknowledged, so it may be endless,
        and asynchronous. on_acknowledge: called with the summary so far. timeout_s: for all of it;
        None sets no limit as long as acknowledgements come.

        Returns when every document is durable or among the failures, which do not stop the others.
        What a lost stream left unacknowledged is sent again.
        """
        upload = Upload(index)
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        method = self._documents.UpsertDocuments
        async with aclosing(_each(documents)) as source:
            while True:
                stream = AsyncUpsertStream(method, upload, deadline_s, self._wait_for_ready)
                try:
                    async with aclosing(stream):
                        return await stream.run(source, on_acknowledge or (lambda _: None))
                except LostStreamError as lost:
                    await asyncio.sleep(upload.lost(lost.error))

    async def delete(
        self, index: str, document_ids: Iterable[str], *, timeout_s: float = 30.0
    ) -> int:
        """Delete up to 10,000 documents; return the table version from which they are gone.

        Ids that are not there are no error.
        """
        request = requests.delete_request(index, document_ids)
        return (await self._call(self._documents.DeleteDocuments, request, timeout_s)).table_version

    async def purge(
        self, index: str, document_ids: Iterable[str], *, timeout_s: float = 120.0
    ) -> PurgeDocumentsResponse:
        """Delete documents, and take them out of storage: they cannot be recovered.

        `remains` of the answer says where something of them may still be, and until when.
        """
        request = requests.purge_request(index, document_ids)
        return await self._call(self._documents.PurgeDocuments, request, timeout_s)

    async def get(
        self,
        index: str,
        document_ids: Iterable[str],
        *,
        min_table_version: int = 0,
        timeout_s: float = 10.0,
    ) -> GetDocumentsResponse:
        """Read up to 1,000 documents. Those that are not there are in `missing_ids`."""
        request = requests.get_request(index, document_ids, min_table_version)
        return await self._call(self._documents.GetDocuments, request, timeout_s)

    async def create_index(
        self,
        name: str,
        dimension: int = 0,
        *,
        fields: Mapping[str, str] | None = None,
        recall_target: float = 0.0,
        kind: SearchKind.ValueType = SearchKind.SEARCH_KIND_UNSPECIFIED,
        timeout_s: float = 30.0,
    ) -> Index:
        """Make an empty index.

        dimension: 0 means that of the cluster's encoder. fields: of the documents' metadata, that
        searches are to filter by, `{"lang": "string"}`; types are string, integer, float, boolean,
        timestamp and strings. recall_target: recall at 10 that its versions are built to reach; 0
        means the cluster's default. kind: to build them as; unspecified means that it is chosen
        from passages, dimension and memory.
        """
        request = requests.create_index_request(
            name, dimension, fields, recall_target=recall_target, kind=kind
        )
        return (await self._call(self._indexes.CreateIndex, request, timeout_s)).index

    async def update_index(
        self,
        name: str,
        *,
        recall_target: float | None = None,
        kind: SearchKind.ValueType | None = None,
        feedback_disabled: bool | None = None,
        timeout_s: float = 10.0,
    ) -> Index:
        """Change what the next versions of an index are to be; None leaves it. Returns the index.

        recall_target: 0 means the cluster's default. kind: unspecified means that it is chosen.
        What serves is not touched. feedback_disabled: True keeps nothing of its searches, from now.
        """
        request = UpdateIndexRequest(
            name=name, recall_target=recall_target, kind=kind, feedback_disabled=feedback_disabled
        )
        return (await self._call(self._indexes.UpdateIndex, request, timeout_s)).index

    async def list_indexes(self, *, timeout_s: float = 10.0) -> AsyncIterator[Index]:
        """All indexes, by name. timeout_s: for each page."""
        token = ""
        while True:
            request = ListIndexesRequest(page_token=token)
            page = await self._call(self._indexes.ListIndexes, request, timeout_s)
            for index in page.indexes:
                yield index
            token = page.next_page_token
            if not token:
                return

    async def describe_index(self, name: str, *, timeout_s: float = 10.0) -> DescribeIndexResponse:
        """An index and its shards."""
        return await self._call(
            self._indexes.DescribeIndex, DescribeIndexRequest(name=name), timeout_s
        )

    async def drop_index(self, name: str, *, timeout_s: float = 30.0) -> None:
        """Drop an index with all its documents. There is no way back."""
        await self._call(self._indexes.DropIndex, DropIndexRequest(name=name), timeout_s)

    async def build_index_version(
        self,
        name: str,
        *,
        promote: bool = False,
        recall_target: float | None = None,
        kind: SearchKind.ValueType = SearchKind.SEARCH_KIND_UNSPECIFIED,
        encoder_bundle: str = "",
        space: str = "",
        timeout_s: float = 10.0,
    ) -> IndexVersion:
        """Begin to build a version of an index, beside the one that serves; return it.

        promote: make it serve once it is ready. `index_versions` says how far it is.
        recall_target, kind: those of the index, unless they are given. encoder_bundle: folder of
        the bundle that is to encode it, which all machines reach; empty: the model that serves.
        space: the vector space that it is for, in place of the default one.
        """
        request = BuildIndexVersionRequest(
            name=name,
            promote=promote,
            recall_target=recall_target,
            kind=kind,
            encoder_bundle=encoder_bundle,
            space=space,
        )
        return (await self._call(self._indexes.BuildIndexVersion, request, timeout_s)).version

    async def index_versions(
        self, name: str, *, page_token: str = "", timeout_s: float = 10.0
    ) -> ListIndexVersionsResponse:
        """A page of up to 1,000 versions of an index, and which of them serves."""
        request = ListIndexVersionsRequest(name=name, page_size=1000, page_token=page_token)
        return await self._call(self._indexes.ListIndexVersions, request, timeout_s)

    async def clean_index(self, name: str, *, timeout_s: float = 600.0) -> CleanIndexResponse:
        """Remove from storage, now, what the cluster's policy does not keep."""
        request = CleanIndexRequest(name=name)
        return await self._call(self._indexes.CleanIndex, request, timeout_s)

    async def promote_index_version(
        self,
        name: str,
        version: int,
        *,
        expected_serving_version: int | None = None,
        timeout_s: float = 30.0,
    ) -> int:
        """Make a version serve; return the one that serves, an older one if time was too short.

        version: 0 is exact search. expected_serving_version: only if this one was promoted last.
        """
        request = PromoteIndexVersionRequest(
            name=name, version=version, expected_serving_version=expected_serving_version
        )
        response = await self._call(self._indexes.PromoteIndexVersion, request, timeout_s)
        return response.serving_version

    async def rollback_index(
        self,
        name: str,
        *,
        expected_serving_version: int | None = None,
        timeout_s: float = 30.0,
    ) -> RollbackIndexResponse:
        """Make the version serve that did before the last promotion, or rollback."""
        request = RollbackIndexRequest(name=name, expected_serving_version=expected_serving_version)
        return await self._call(self._indexes.RollbackIndex, request, timeout_s)

    async def drop_index_version(self, name: str, version: int, *, timeout_s: float = 10.0) -> None:
        """Drop a version that does not serve, with its files."""
        request = DropIndexVersionRequest(name=name, version=version)
        await self._call(self._indexes.DropIndexVersion, request, timeout_s)

    async def cluster_status(self, *, timeout_s: float = 10.0) -> GetClusterStatusResponse:
        """What runs where, and whether it answers."""
        return await self._call(
            self._cluster.GetClusterStatus, GetClusterStatusRequest(), timeout_s
        )

    async def scale(
        self,
        *,
        shards: int | None = None,
        replicas: int | None = None,
        shard_servers: int | None = None,
        encoders: int | None = None,
        rerankers: int | None = None,
        brokers: int | None = None,
        index: str = "",
        timeout_s: float = 10.0,
    ) -> Scale:
        """Change how many of each there are, while queries run; return the numbers in force.

        index: the one that `shards` and `replicas` are for; 0 of them means as the cluster has.
        """
        request = requests.scale_request(
            {
                "shards": shards,
                "replicas": replicas,
                "shard_servers": shard_servers,
                "encoders": encoders,
                "rerankers": rerankers,
                "brokers": brokers,
            },
            index,
        )
        return (await self._call(self._cluster.ScaleCluster, request, timeout_s)).scale


async def _each(
    documents: Iterable[Document | Mapping[str, Any]] | AsyncIterable[Document | Mapping[str, Any]],
) -> AsyncGenerator[Document, None]:
    position = 0
    if isinstance(documents, AsyncIterable):
        async for document in documents:
            position += 1
            yield requests.document(document, position)
        return
    for document in documents:
        position += 1
        yield requests.document(document, position)
        # What is queued can only leave while this coroutine pauses.
        await asyncio.sleep(0)
