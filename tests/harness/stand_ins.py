"""Encoder, shard server, reranker and controller that do as they are told, over real gRPC.

What they answer is right (vectors are hashes of texts, search is exact, reranking counts words);
when, and whether at all, is up to `Faults`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from shoal.filters.errors import InvalidFilterError
from shoal.internal.v1 import encoder_pb2_grpc, reranker_pb2_grpc, shard_pb2_grpc, topology_pb2_grpc
from shoal.internal.v1.encoder_pb2 import EncodeRequest, EncodeResponse
from shoal.internal.v1.reranker_pb2 import RerankItem, RerankRequest, RerankResponse, RerankScores
from shoal.internal.v1.shard_pb2 import (
    CandidateList,
    CountTermsRequest,
    CountTermsResponse,
    DescribeShardsRequest,
    DescribeShardsResponse,
    FetchPassagesRequest,
    FetchPassagesResponse,
    Fill,
    LayoutKey,
    SearchShardsRequest,
    SearchShardsResponse,
    ShardState,
)
from shoal.internal.v1.topology_pb2 import (
    GetControllerStatusRequest,
    GetControllerStatusResponse,
    SetScaleRequest,
    SetScaleResponse,
)
from shoal.rpc.arrays import FLOAT32, UINT32, UINT64, pack, pack_vectors, unpack, unpack_vectors
from shoal.rpc.errors import ServiceError
from shoal.rpc.topology import TopologyFollower
from shoal.table.slots import shard_of, slot_of
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import Hit, SearchKind, Span

DIMENSION = 8
ENCODER_MODEL = "tiny@1"
RERANKER_MODEL = "words@1"


def vector_of(text: str, dimension: int = DIMENSION) -> NDArray[np.float32]:
    """A unit vector that follows from the words of a text: like texts have like vectors."""
    row = np.full(dimension, 1e-3)
    for word in text.lower().split():
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4])
        row += np.random.default_rng(seed).standard_normal(dimension)
    unit: NDArray[np.float32] = (row / np.linalg.norm(row)).astype(np.float32)
    return unit


@dataclass
class Faults:
    """What goes wrong with the calls of a stand-in."""

    failures: list[ServiceError] = field(default_factory=list)
    """Raised by the next calls, one each."""
    fails: ServiceError | None = None
    """Raised by every call."""
    delay_s: float = 0.0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Calls wait until it is set."""

    def __post_init__(self) -> None:
        self.gate.set()

    async def strike(self) -> None:
        """Go wrong, if that is what was asked for."""
        await self.gate.wait()
        await asyncio.sleep(self.delay_s)
        if self.failures:
            raise self.failures.pop(0)
        if self.fails is not None:
            raise self.fails


def unavailable(message: str = "out of order") -> ServiceError:
    """A failure that another instance might not have."""
    return ServiceError(Reason.REASON_NOT_READY, message)


class StandIn:
    """A service without anything to load."""

    def __init__(self, instance_id: str) -> None:
        self.follower = TopologyFollower(instance_id)
        self.faults = Faults()

    async def start(self) -> None:
        """Nothing to do."""

    async def drain(self) -> None:
        """Nothing to do: calls that hang are broken off."""

    async def stop(self) -> None:
        """Nothing to do."""


class StandInEncoder(StandIn, encoder_pb2_grpc.EncoderServiceServicer):
    """Encodes by hashing words."""

    def __init__(
        self,
        instance_id: str = "encoder-0",
        model: str = ENCODER_MODEL,
        dimension: int = DIMENSION,
    ) -> None:
        super().__init__(instance_id)
        self.model, self.dimension = model, dimension
        self.calls: list[list[str]] = []

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        encoder_pb2_grpc.add_EncoderServiceServicer_to_server(self, server)
        return ["shoal.internal.v1.EncoderService"]

    async def Encode(self, request: EncodeRequest, context: Any) -> EncodeResponse:
        self.calls.append(list(request.texts))
        await self.faults.strike()
        rows = np.stack([vector_of(text, self.dimension) for text in request.texts])
        return EncodeResponse(vectors=pack_vectors(rows), model=self.model)


class StandInReranker(StandIn, reranker_pb2_grpc.RerankerServiceServicer):
    """Scores a passage by the words that it shares with the query."""

    def __init__(self, instance_id: str = "reranker-0") -> None:
        super().__init__(instance_id)
        self.calls: list[list[RerankItem]] = []
        self.budgets_s: list[float] = []

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        reranker_pb2_grpc.add_RerankerServiceServicer_to_server(self, server)
        return ["shoal.internal.v1.RerankerService"]

    async def Rerank(self, request: RerankRequest, context: Any) -> RerankResponse:
        self.calls.append(list(request.items))
        self.budgets_s.append(context.time_remaining())
        await self.faults.strike()
        return RerankResponse(items=[_scores(item) for item in request.items], model=RERANKER_MODEL)


def _scores(item: RerankItem) -> RerankScores:
    wanted = set(item.query.lower().split())
    overlap = [len(wanted & set(each.lower().split())) for each in item.passages]
    scores = np.asarray(overlap, np.float32)
    dense = np.frombuffer(item.dense_scores, FLOAT32)
    return RerankScores(
        rerank_scores=pack(scores, FLOAT32), scores=pack(scores + 0.1 * dense, FLOAT32)
    )


@dataclass
class Library:
    """Passages, one a document, that any number of stand-in shard servers hold."""

    texts: dict[str, str]
    version: int = 1

    def __post_init__(self) -> None:
        self.ids = list(self.texts)
        self.vectors = np.stack([vector_of(text) for text in self.texts.values()])

    def rows_of(self, shards: Iterable[int], shard_count: int) -> NDArray[np.intp]:
        """Rows that belong to some shards."""
        wanted = set(shards)
        return np.asarray(
            [row for row, id_ in enumerate(self.ids) if shard(id_, shard_count) in wanted], np.intp
        )

    def best(
        self, vector: NDArray[np.float32], count: int, rows: NDArray[np.intp] | None = None
    ) -> list[str]:
        """Ids of what an exact search should find."""
        rows = np.arange(len(self.ids)) if rows is None else rows
        order = np.argsort(-(self.vectors[rows] @ vector), kind="stable")[:count]
        return [self.ids[rows[at]] for at in order]

    def hit(self, row: int, fill: Fill.ValueType) -> Hit:
        """A passage as a hit, as far as it is asked for."""
        id_ = self.ids[row]
        text = self.texts[id_]
        hit = Hit(
            document_id=id_,
            span=Span(start=0, end=len(text)),
            content_hash=hashlib.sha256(text.encode()).digest(),
        )
        if fill == Fill.FILL_TEXT:
            hit.title, hit.text = f"Title of {id_}", text
        return hit


def shard(document_id: str, shard_count: int) -> int:
    """The shard that owns a document."""
    return int(shard_of(slot_of(document_id), shard_count))


class StandInShardServer(StandIn, shard_pb2_grpc.ShardServiceServicer):
    """Searches a library exactly."""

    def __init__(self, instance_id: str, library: Library, layout: LayoutKey) -> None:
        super().__init__(instance_id)
        self.library, self.layout = library, layout
        self.unready: set[int] = set()
        self.version: int | None = None
        """Table version that was applied; None: the library's."""
        self.next_expiry_s: float | None = None
        """When the next passage expires, in seconds since 1970; None: never."""
        self.calls: list[SearchShardsRequest] = []
        self.refused_filter = ""
        """One that is not read here: a call that has it fails as a whole."""
        self.describes = Faults()
        self.fetches = Faults()

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        shard_pb2_grpc.add_ShardServiceServicer_to_server(self, server)
        return ["shoal.internal.v1.ShardService"]

    @property
    def applied(self) -> int:
        """Table version that answers rest on."""
        return self.library.version if self.version is None else self.version

    def state(self, number: int) -> ShardState:
        ready = number not in self.unready
        state = ShardState(
            layout=self.layout,
            shard=number,
            ready=ready,
            table_version=self.applied if ready else 0,
            document_count=self._count(number) if ready else 0,
            passage_count=self._count(number) if ready else 0,
            kind=SearchKind.SEARCH_KIND_EXACT,
            message="" if ready else "is being loaded",
        )
        if self.next_expiry_s is not None:
            state.next_expiry.FromNanoseconds(int(self.next_expiry_s * 1e9))
        return state

    def _count(self, number: int) -> int:
        return len(self.library.rows_of([number], self.layout.shard_count))

    async def CountTerms(self, request: CountTermsRequest, context: Any) -> CountTermsResponse:
        """There are no terms here."""
        return CountTermsResponse(shards=request.shards)

    async def SearchShards(self, request: SearchShardsRequest, context: Any) -> Any:
        self.calls.append(request)
        await self.faults.strike()
        if self.refused_filter and self.refused_filter in request.filters:
            raise InvalidFilterError("cannot be read")
        while self.applied < request.min_table_version:
            await asyncio.sleep(0.01)
        shards = [each for each in request.shards if each not in self.unready]
        if not shards:
            raise unavailable("none of the shards is ready")
        queries = unpack_vectors(request.queries, "queries")
        rows = self.library.rows_of(shards, self.layout.shard_count)
        return SearchShardsResponse(
            results=[
                self._candidates(query, rows, count, fill)
                for query, count, fill in zip(queries, request.top_k, request.fill, strict=True)
            ],
            shards=[self.state(each) for each in request.shards],
        )

    def _candidates(
        self,
        query: NDArray[np.float32],
        rows: NDArray[np.intp],
        count: int,
        fill: Fill.ValueType,
    ) -> CandidateList:
        scores = self.library.vectors[rows] @ query
        order = np.argsort(-scores, kind="stable")[:count]
        best = rows[order]
        owners = [shard(self.library.ids[row], self.layout.shard_count) for row in best]
        filled = fill != Fill.FILL_UNSPECIFIED
        return CandidateList(
            row_ids=pack(best, UINT64),
            scores=pack(scores[order], FLOAT32),
            shards=pack(np.asarray(owners), UINT32),
            hits=[self.library.hit(int(row), fill) for row in best] if filled else [],
        )

    async def FetchPassages(self, request: FetchPassagesRequest, context: Any) -> Any:
        await self.faults.strike()
        await self.fetches.strike()
        rows = unpack(request.row_ids, UINT64, "row_ids").tolist()
        return FetchPassagesResponse(
            hits=[self.library.hit(row, request.fill) for row in rows],
            row_ids=request.row_ids,
        )

    async def DescribeShards(self, request: DescribeShardsRequest, context: Any) -> Any:
        await self.describes.strike()
        return DescribeShardsResponse(
            shards=[self.state(each) for each in range(self.layout.shard_count)]
        )


class StandInController(StandIn, topology_pb2_grpc.ControllerServiceServicer):
    """Takes any scale."""

    def __init__(self, instance_id: str = "controller-0") -> None:
        super().__init__(instance_id)
        self.status = GetControllerStatusResponse(whole=True)

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        topology_pb2_grpc.add_ControllerServiceServicer_to_server(self, server)
        return ["shoal.internal.v1.ControllerService"]

    async def SetScale(self, request: SetScaleRequest, context: Any) -> SetScaleResponse:
        await self.faults.strike()
        return SetScaleResponse(scale=request.scale)

    async def GetControllerStatus(
        self, request: GetControllerStatusRequest, context: Any
    ) -> GetControllerStatusResponse:
        await self.faults.strike()
        return self.status
