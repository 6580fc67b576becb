"""All services of a cluster in one process, over real gRPC, and a topology that says where."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from shoal.internal.v1.shard_pb2 import LayoutKey
from shoal.internal.v1.topology_pb2 import (
    IndexPlacement,
    Layout,
    PublishTopologyRequest,
    PublishTopologyResponse,
    ShardPlacement,
    Topology,
)
from shoal.internal.v1.topology_pb2_grpc import TopologyServiceStub
from shoal.internal.v1.writer_pb2 import CatalogEntry, ListTablesRequest
from shoal.internal.v1.writer_pb2_grpc import WriterServiceStub
from shoal.rpc.channels import open_channel
from shoal.rpc.errors import service_error_of
from shoal.rpc.server import Service, ServiceHost
from shoal.v1.cluster_pb2 import Instance, InstanceState, Role
from shoal.v1.cluster_pb2_grpc import ClusterServiceStub
from shoal.v1.documents_pb2 import Document, UpsertDocumentsRequest, UpsertDocumentsResponse
from shoal.v1.documents_pb2_grpc import DocumentServiceStub
from shoal.v1.indexes_pb2_grpc import IndexServiceStub
from shoal.v1.search_pb2 import SearchRequest, SearchResponse, Vectors
from shoal.v1.search_pb2_grpc import SearchServiceStub

PATIENCE_S = 30.0
ROLES = {
    "broker": Role.ROLE_BROKER,
    "encoder": Role.ROLE_ENCODER,
    "shard-server": Role.ROLE_SHARD_SERVER,
    "reranker": Role.ROLE_RERANKER,
    "writer": Role.ROLE_WRITER,
    "controller": Role.ROLE_CONTROLLER,
}

Groups = Sequence[tuple[Sequence[int], Sequence[str]]]
"""Shards, and the servers that hold them, one a replica."""


@dataclass
class Cluster:
    """What runs, and what everybody is told of it."""

    hosts: dict[str, ServiceHost] = field(default_factory=dict)
    instances: dict[str, Instance] = field(default_factory=dict)
    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)
    indexes: list[IndexPlacement] = field(default_factory=list)
    epoch: int = 0

    async def add(self, service: Service, listen: str = "127.0.0.1:0", model: str = "") -> str:
        """Start an instance; its role is read from its id. Returns its address."""
        id_ = service.follower.instance_id
        host = ServiceHost(service, listen)
        address = await host.start()
        self.hosts[id_] = host
        self.instances[id_] = Instance(
            id=id_,
            role=ROLES[id_.rpartition("-")[0]],
            address=address,
            state=InstanceState.INSTANCE_STATE_READY,
            model=model,
        )
        return address

    async def kill(self, id_: str) -> None:
        """End an instance at once; the topology goes on naming it."""
        await self.hosts.pop(id_).stop(0)
        channel = self.channels.pop(id_, None)
        if channel is not None:
            await channel.close()

    def channel(self, id_: str) -> grpc.aio.Channel:
        """A connection to an instance."""
        if id_ not in self.channels:
            self.channels[id_] = open_channel(self.instances[id_].address)
        return self.channels[id_]

    def topology(self) -> Topology:
        """What is told now."""
        return Topology(
            cluster="test",
            epoch=self.epoch,
            instances=self.instances.values(),
            indexes=self.indexes,
        )

    async def publish(self) -> dict[str, PublishTopologyResponse]:
        """Tell everybody, in a new epoch."""
        self.epoch += 1
        return await self.heartbeat()

    async def heartbeat(self) -> dict[str, PublishTopologyResponse]:
        """Tell everybody again, and hear how each is."""
        answers = {}
        for id_ in list(self.hosts):
            request = PublishTopologyRequest(topology=self.topology(), instance_id=id_)
            stub = TopologyServiceStub(self.channel(id_))
            answers[id_] = await stub.PublishTopology(request, timeout=PATIENCE_S)
            assert not answers[id_].refusal
        return answers

    async def ready(self, index: str, groups: Groups) -> None:
        """Wait until every copy of an index's shards can be searched."""
        placed = next(each for each in self.indexes if each.name == index)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                answers = await self.heartbeat()
                held = {
                    (id_, state.shard)
                    for id_, answer in answers.items()
                    for state in answer.shards
                    if state.ready and state.layout.index_uid == placed.uid
                }
                if held >= {
                    (id_, shard) for shards, ids in groups for id_ in ids for shard in shards
                }:
                    return
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        """End everything: the brokers first."""
        for channel in self.channels.values():
            await channel.close()
        for id_ in sorted(self.hosts):
            await self.hosts[id_].stop(0)


def layout_of(groups: Groups, version: int = 0, codebook_uri: str = "") -> Layout:
    """A layout from its groups."""
    return Layout(
        index_version=version,
        codebook_uri=codebook_uri,
        shard_count=sum(len(shards) for shards, _ in groups),
        placements=[
            ShardPlacement(shard_server=id_, replica=replica, shards=shards)
            for shards, ids in groups
            for replica, id_ in enumerate(ids)
        ],
    )


def placement(
    name: str, groups: Groups, *, uid: str = "", dimension: int, encoder_model: str
) -> IndexPlacement:
    """An index that is served, without a table behind it."""
    return IndexPlacement(
        name=name,
        uid=uid or f"uid-of-{name}",
        encoder_model=encoder_model,
        dimension=dimension,
        serving=layout_of(groups),
    )


def key_of(index: IndexPlacement) -> LayoutKey:
    """The key of an index's serving layout."""
    return LayoutKey(
        index_uid=index.uid,
        index_version=index.serving.index_version,
        shard_count=index.serving.shard_count,
    )


async def control(cluster: Cluster, groups: Groups) -> None:
    """Do what a controller does: place every table that the writer has, serve it once it is ready.

    Runs until it is cancelled.
    """
    writer = WriterServiceStub(cluster.channel("writer-0"))
    while True:
        entries = (await writer.ListTables(ListTablesRequest(), timeout=PATIENCE_S)).entries
        answers = await cluster.heartbeat()
        wanted = [_placed(entry, groups, answers) for entry in entries]
        if wanted != cluster.indexes:
            cluster.indexes = wanted
            await cluster.publish()
        await asyncio.sleep(0.02)


def _placed(
    entry: CatalogEntry, groups: Groups, answers: Mapping[str, PublishTopologyResponse]
) -> IndexPlacement:
    index = IndexPlacement(
        name=entry.name,
        uid=entry.uid,
        table_uri=entry.table_uri,
        encoder_model=entry.encoder_model,
        dimension=entry.dimension,
        create_time=entry.create_time,
        fields=entry.fields,
        feedback_disabled=entry.feedback_disabled,
    )
    ready = {
        (id_, state.shard)
        for id_, answer in answers.items()
        for state in answer.shards
        if state.ready and state.layout.index_uid == entry.uid
    }
    wanted = {(id_, shard) for shards, ids in groups for id_ in ids for shard in shards}
    field_ = index.serving if ready >= wanted else index.preparing
    field_.CopyFrom(layout_of(groups))
    return index


@contextlib.asynccontextmanager
async def controlled(cluster: Cluster, groups: Groups) -> AsyncIterator[None]:
    """Have a cluster controlled for a while."""
    task = asyncio.create_task(control(cluster, groups))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Caller:
    """Calls to a broker, without a client's retries; errors are ServiceErrors."""

    def __init__(self, channel: grpc.aio.Channel, timeout_s: float = PATIENCE_S) -> None:
        self.channel, self.timeout_s = channel, timeout_s
        self.searches = SearchServiceStub(channel)
        self.documents = DocumentServiceStub(channel)
        self.indexes = IndexServiceStub(channel)
        self.cluster = ClusterServiceStub(channel)

    async def call(self, method: Any, request: Any, timeout_s: float | None = None) -> Any:
        """Make a call. Raises ServiceError."""
        try:
            return await method(request, timeout=timeout_s or self.timeout_s)
        except grpc.aio.AioRpcError as error:
            raise service_error_of(error) from error

    async def search(
        self,
        query: str | Vectors,
        *,
        index: str = "books",
        timeout_s: float | None = None,
        rerank: bool = False,
        candidate_count: int = 0,
        **fields: Any,
    ) -> SearchResponse:
        """Search, without reranking unless it is asked for."""
        request = search_request(
            query, index=index, rerank=rerank, candidate_count=candidate_count, **fields
        )
        response: SearchResponse = await self.call(self.searches.Search, request, timeout_s)
        return response

    async def upsert(self, index: str, documents: Iterable[Document]) -> UpsertDocumentsResponse:
        """Write documents, and return the last acknowledgement."""
        messages = [
            UpsertDocumentsRequest(index="" if number > 1 else index, number=number, document=each)
            for number, each in enumerate(documents, 1)
        ]
        last = UpsertDocumentsResponse()
        try:
            async for acknowledgement in self.documents.UpsertDocuments(
                iter(messages), timeout=self.timeout_s
            ):
                assert not acknowledgement.failures
                last = acknowledgement
        except grpc.aio.AioRpcError as error:
            raise service_error_of(error) from error
        assert last.durable_number == len(messages)
        return last


def search_request(
    query: str | Vectors,
    *,
    index: str = "books",
    rerank: bool = False,
    candidate_count: int = 0,
    **fields: Any,
) -> SearchRequest:
    """A request, without reranking unless it is asked for."""
    request = SearchRequest(index=index, **fields)
    if isinstance(query, str):
        request.text = query
    else:
        request.vector.CopyFrom(query)
    request.rerank.disabled = not rerank
    request.rerank.candidate_count = candidate_count
    return request


def ids_of(response: SearchResponse) -> list[str]:
    """Ids of the hits, best first."""
    return [hit.document_id for hit in response.hits]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)
