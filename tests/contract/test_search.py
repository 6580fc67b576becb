"""Does the public API keep what its protos say? All services real, over gRPC."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from shoal.client import (
    AsyncClient,
    DeadlineExceededError,
    DimensionMismatchError,
    IndexExistsError,
    IndexNotFoundError,
    InvalidArgumentError,
    TableVersionAheadError,
)
from shoal.rpc.errors import ServiceError
from shoal.v1.cluster_pb2 import Role, Scale, ScaleClusterRequest
from shoal.v1.documents_pb2 import Document, UpsertDocumentsRequest
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import IndexState, ListIndexesRequest
from shoal.v1.search_pb2 import CacheState, Rerank, SearchKind, SearchRequest, Stage

from tests.harness.cluster import Caller, Cluster
from tests.harness.real import client_of, real_cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

BOOKS = {
    "whale": ("Whales", "Whales are the largest animals that live in the sea."),
    "bread": ("Bread", "Bread is baked from flour, water, salt and yeast in an oven."),
    "moon": ("The Moon", "The Moon orbits the Earth once in about twenty-seven days."),
    "chess": ("Chess", "Chess is played by two on a board of sixty-four squares."),
    "rain": ("Rain", "Rain falls from clouds when drops of water grow too heavy."),
    "violin": ("Violin", "A violin has four strings and is played with a bow."),
}
QUESTION = "Which animal of the ocean is biggest?"
SERVICES = {
    "shoal.v1.SearchService",
    "shoal.v1.DocumentService",
    "shoal.v1.IndexService",
    "shoal.v1.ClusterService",
}


def documents() -> list[Document]:
    found = []
    for id_, (title, text) in BOOKS.items():
        document = Document(id=id_, title=title, text=text)
        document.metadata.update({"shelf": len(id_), "tags": ["a", id_]})
        found.append(document)
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with real_cluster(tmp_path_factory.mktemp("data")) as cluster:
        async with client_of(cluster) as client:
            await client.create_index("books")
            summary = await client.upsert("books", documents())
            assert summary.acknowledged == len(BOOKS)
            await client.search("books", QUESTION, min_table_version=summary.table_version)
        yield cluster


@pytest_asyncio.fixture(loop_scope="module")
async def client(cluster: Cluster) -> AsyncIterator[AsyncClient]:
    async with client_of(cluster) as client:
        yield client


async def test_a_question_finds_its_passage_with_proof_of_where_it_stands(
    client: AsyncClient,
) -> None:
    response = await client.search("books", QUESTION, rerank=False, hybrid=False)
    best = response.hits[0]
    title, text = BOOKS["whale"]
    assert (best.document_id, best.title, best.text) == ("whale", title, text)
    assert text[best.span.start : best.span.end] == best.text
    assert best.content_hash == hashlib.sha256(f"{title}\0{text}".encode()).digest()
    assert dict(best.metadata)["shelf"] == 5
    assert best.update_time.seconds > 1_600_000_000
    assert best.score == best.dense_score
    assert not best.HasField("lexical_score")
    assert not best.HasField("rerank_score")
    assert not best.HasField("provenance")
    assert not response.HasField("explanation")
    assert response.coverage.complete
    assert response.coverage.passages_searched == len(BOOKS)
    scores = [hit.score for hit in response.hits]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == len(BOOKS)


async def test_a_document_is_found_by_its_own_vector(client: AsyncClient) -> None:
    await client.create_index("vectors", 4)
    rows = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    mappings = [
        {"id": f"v{at}", "text": f"row {at}", "vector": row.tolist()} for at, row in enumerate(rows)
    ]
    summary = await client.upsert("vectors", mappings)
    for at, row in enumerate(rows):
        response = await client.search(
            "vectors", (row * 7).tolist(), top_k=3, min_table_version=summary.table_version
        )
        assert response.hits[0].document_id == f"v{at}"
        assert response.hits[0].score == pytest.approx(1.0, abs=1e-5)
        assert len(response.hits) == 3
    with pytest.raises(DimensionMismatchError):
        await client.search("vectors", [1.0, 2.0])
    await client.drop_index("vectors")


@pytest.mark.parametrize("top_k", [1, 3, 1_000])
@pytest.mark.parametrize("rerank", [False, True])
async def test_top_k_is_kept(client: AsyncClient, top_k: int, rerank: bool) -> None:
    response = await client.search("books", QUESTION, top_k=top_k, rerank=rerank)
    assert len(response.hits) == min(top_k, len(BOOKS))


async def test_an_answer_explains_itself(client: AsyncClient, cluster: Cluster) -> None:
    response = await client.search("books", QUESTION, explain=True, bypass_cache=True)
    told = response.explanation
    described = (await client.describe_index("books")).index
    assert told.encoder_model == described.encoder_model
    assert told.encoder_model.startswith("all-minilm-l6-v2-int8@")
    assert told.reranker_model.startswith("reranker-minilm-l12-int8@")
    assert told.broker == "broker-0"
    assert told.epoch == cluster.epoch
    assert told.cache == CacheState.CACHE_STATE_BYPASS
    stages = [timing.stage for timing in told.timings]
    assert stages == [
        Stage.STAGE_ENCODE,
        Stage.STAGE_STATISTICS,
        Stage.STAGE_SEARCH,
        Stage.STAGE_FETCH,
        Stage.STAGE_RERANK,
    ]
    spent_s = sum(each.duration.ToNanoseconds() for each in told.timings) / 1e9
    assert 0 < spent_s <= told.total.ToNanoseconds() / 1e9
    assert [(each.shard, each.shard_server) for each in told.shards] == [
        (0, "shard-server-0"),
        (1, "shard-server-1"),
    ]
    assert sum(each.passages for each in told.shards) == len(BOOKS)
    assert {each.kind for each in told.shards} == {SearchKind.SEARCH_KIND_EXACT}
    for hit in response.hits:
        assert hit.provenance.index == "books"
        assert hit.provenance.shard_server == f"shard-server-{hit.provenance.shard}"
        assert hit.provenance.reranker_model == told.reranker_model
        assert hit.provenance.table_version >= response.table_version > 0


async def test_reranking_orders_anew(client: AsyncClient) -> None:
    query = "strings played with a bow"
    response = await client.search("books", query, rerank=True)
    assert response.hits[0].document_id == "violin"
    assert all(hit.HasField("rerank_score") for hit in response.hits)
    few = await client.search("books", query, rerank=True, candidate_count=2, top_k=4)
    assert [hit.HasField("rerank_score") for hit in few.hits] == [True, True, False, False]
    scores = [hit.score for hit in few.hits]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("rerank", [False, True])
async def test_text_is_left_out_if_it_is_not_wanted(client: AsyncClient, rerank: bool) -> None:
    full = await client.search("books", QUESTION, rerank=rerank)
    bare = await client.search("books", QUESTION, rerank=rerank, omit_text=True)
    assert [hit.document_id for hit in bare.hits] == [hit.document_id for hit in full.hits]
    for hit in bare.hits:
        assert (hit.title, hit.text, hit.HasField("metadata")) == ("", "", False)
        assert hit.content_hash
        assert hit.span.end


async def test_one_reads_ones_own_writes(client: AsyncClient) -> None:
    await client.create_index("diary")
    for day in range(4):
        text = f"Entry number {day}."
        written = await client.upsert("diary", [{"id": "today", "text": text}])
        found = await client.search("diary", "entry", min_table_version=written.table_version)
        assert [hit.text for hit in found.hits] == [text]
        assert found.table_version >= written.table_version
        got = await client.get("diary", ["today"], min_table_version=written.table_version)
        assert got.documents[0].text == text
    version = await client.delete("diary", ["today"])
    found = await client.search("diary", "entry", min_table_version=version)
    assert not found.hits
    assert found.coverage.complete
    with pytest.raises((TableVersionAheadError, DeadlineExceededError)):
        await client.search("diary", "entry", min_table_version=version + 1_000, timeout_s=1.0)
    await client.drop_index("diary")


async def test_documents_are_read_as_they_were_written(client: AsyncClient) -> None:
    asked = ["moon", "nobody", "whale"]
    response = await client.get("books", asked)
    assert [each.id for each in response.documents] == ["moon", "whale"]
    assert list(response.missing_ids) == ["nobody"]
    for each in response.documents:
        assert (each.title, each.text) == BOOKS[each.id]
        assert list(dict(each.metadata)["tags"]) == ["a", each.id]
        assert each.passages[0].start == 0


async def test_one_bad_search_among_good_ones(client: AsyncClient) -> None:
    good = SearchRequest(index="books", text=QUESTION, rerank=Rerank(disabled=True))
    bad = [
        SearchRequest(index="nowhere", text=QUESTION),
        SearchRequest(index="books", text=" "),
        SearchRequest(index="books", text=QUESTION, top_k=0),
    ]
    response = await client.batch_search([good, *bad, good])
    kinds = [each.WhichOneof("result") for each in response.results]
    assert kinds == ["response", "error", "error", "error", "response"]
    errors = [each.error for each in response.results[1:4]]
    assert [each.reason for each in errors] == ["INDEX_NOT_FOUND", "INVALID_FIELD", "INVALID_FIELD"]
    assert errors[0].code == grpc.StatusCode.NOT_FOUND.value[0]
    assert "top_k" in errors[2].message
    assert response.results[0].response.hits[0].document_id == "whale"
    for count in (0, 257):
        with pytest.raises(InvalidArgumentError):
            await client.batch_search([good] * count)


async def test_indexes_come_are_listed_page_by_page_and_go(
    client: AsyncClient, cluster: Cluster
) -> None:
    names = [f"page-{number}" for number in range(3)]
    for name in names:
        made = await client.create_index(name, 4)
        assert made.state == IndexState.INDEX_STATE_READY
        assert (made.dimension, made.shard_count) == (4, 2)
        with pytest.raises(IndexExistsError):
            await client.create_index(name)
    caller, listed, token = Caller(cluster.channel("broker-0")), [], ""
    while True:
        request = ListIndexesRequest(page_size=2, page_token=token)
        page = await caller.call(caller.indexes.ListIndexes, request)
        assert len(page.indexes) <= 2
        listed += [each.name for each in page.indexes]
        token = page.next_page_token
        if not token:
            break
    assert listed == sorted(listed)
    assert set(listed) >= {"books", *names}
    described = await client.describe_index("books")
    assert described.index.document_count == len(BOOKS)
    assert described.index.passage_count == len(BOOKS)
    assert [(each.shard, each.ready) for each in described.shards] == [(0, True), (1, True)]
    for name in names:
        await client.drop_index(name)
        with pytest.raises(IndexNotFoundError):
            await client.search(name, [1.0, 0.0, 0.0, 0.0])
    assert [each.name async for each in client.list_indexes()] == ["books"]


async def test_what_is_not_there_is_said_not_to_be(client: AsyncClient) -> None:
    for call in (
        client.search("nowhere", "x"),
        client.get("nowhere", ["x"]),
        client.delete("nowhere", ["x"]),
        client.upsert("nowhere", [{"id": "a", "text": "b"}]),
        client.describe_index("nowhere"),
        client.drop_index("nowhere"),
    ):
        with pytest.raises(IndexNotFoundError):
            await call
    with pytest.raises(InvalidArgumentError):
        await client.create_index("Not A Name")
    with pytest.raises(InvalidArgumentError):
        await client.get("books", [])


async def test_a_bad_document_does_not_stop_the_others(client: AsyncClient) -> None:
    await client.create_index("mixed", 4)
    rows = [[1.0, 0.0, 0.0, 0.0], [float("nan"), 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
    summary = await client.upsert(
        "mixed", [{"id": f"d{at}", "text": "t", "vector": row} for at, row in enumerate(rows)]
    )
    assert [each.document_id for each in summary.failures] == ["d1"]
    got = await client.get("mixed", ["d0", "d1", "d2"], min_table_version=summary.table_version)
    assert [each.id for each in got.documents] == ["d0", "d2"]
    await client.drop_index("mixed")


async def test_health_and_reflection(cluster: Cluster) -> None:
    channel = cluster.channel("broker-0")
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", *SERVICES):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([request]))
    answers = [answer async for answer in call]
    listed = {each.name for each in answers[0].list_services_response.service}
    assert listed >= SERVICES


async def test_status_and_scale_without_a_controller(client: AsyncClient, cluster: Cluster) -> None:
    status = await client.cluster_status()
    assert not status.whole
    assert status.epoch == cluster.epoch
    roles = {each.role for each in status.instances}
    assert roles >= {Role.ROLE_BROKER, Role.ROLE_ENCODER, Role.ROLE_SHARD_SERVER, Role.ROLE_WRITER}
    caller = Caller(cluster.channel("broker-0"))
    request = ScaleClusterRequest(scale=Scale(replicas=2))
    with pytest.raises(ServiceError) as caught:
        await caller.call(caller.cluster.ScaleCluster, request, 1.0)
    assert caught.value.reason == Reason.REASON_CONTROLLER_UNAVAILABLE


async def test_a_writer_that_hangs_up_leaves_the_broker_well(
    client: AsyncClient, cluster: Cluster
) -> None:
    caller = Caller(cluster.channel("broker-0"))
    call = caller.documents.UpsertDocuments()
    document = Document(id="moon", title=BOOKS["moon"][0], text=BOOKS["moon"][1])
    await call.write(UpsertDocumentsRequest(index="books", number=1, document=document))
    assert (await call.read()).durable_number == 1
    call.cancel()
    summary = await client.upsert("books", documents())
    assert summary.acknowledged == len(BOOKS)
