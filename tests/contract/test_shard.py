"""Does a shard server, behind real gRPC, find, fill, follow and refuse as its proto says?"""

import asyncio
import contextlib
import threading

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from shoal.internal.v1 import shard_pb2 as pb
from shoal.internal.v1.shard_pb2_grpc import ShardServiceStub
from shoal.internal.v1.topology_pb2 import PublishTopologyRequest
from shoal.internal.v1.topology_pb2_grpc import TopologyServiceStub
from shoal.rpc.arrays import pack, pack_vectors
from shoal.rpc.channels import open_channel
from shoal.rpc.errors import ServiceError, service_error_of
from shoal.rpc.server import ServiceHost
from shoal.shard.codebook import train_codebook
from shoal.shard.config import ShardSettings
from shoal.shard.server import ShardService
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import SearchKind, Vectors

from tests.harness.shard_corpus import SERVER, UID, Corpus, layout, topology

PATIENCE_S = 30.0


class Server:
    """A running shard server, and calls to it."""

    def __init__(self, service, corpus, channel):
        self.service, self.corpus = service, corpus
        self.stub = ShardServiceStub(channel)
        self.topology = TopologyServiceStub(channel)
        self.epoch = 0

    async def publish(self, serving, preparing=None):
        self.epoch += 1
        request = PublishTopologyRequest(
            topology=topology(self.corpus, self.epoch, serving, preparing), instance_id=SERVER
        )
        response = await self.topology.PublishTopology(request, timeout=PATIENCE_S)
        assert not response.refusal

    async def states(self):
        return list((await self.stub.DescribeShards(pb.DescribeShardsRequest())).shards)

    async def until(self, condition):
        async with asyncio.timeout(PATIENCE_S):
            while not condition(await self.states()):
                await asyncio.sleep(0.02)

    async def ready(self, count):
        await self.until(lambda states: sum(state.ready for state in states) == count)

    async def call(self, method, request, timeout=PATIENCE_S):
        try:
            return await getattr(self.stub, method)(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise service_error_of(error) from error

    async def search(self, queries, top_k=10, *, shards=2, fill=pb.FILL_REFERENCE, **more):
        request = search_request(queries, top_k, shards, fill, **more)
        return await self.call("SearchShards", request)

    async def assert_finds(self, query, top_k=10, shards=2, version=0):
        response = await self.search(query[None], top_k, shards=shards, min_table_version=version)
        (result,) = response.results
        expected = self.corpus.best(query, top_k)
        assert {(each.document_id, each.passage) for each in result.hits} == {
            each[:2] for each in expected
        }
        scores = np.frombuffer(result.scores, "<f4")
        np.testing.assert_allclose(scores, [each[2] for each in expected], atol=1e-5)
        assert (np.diff(scores) <= 0).all()
        return response


def key(shard_count=2, version=0, uid=UID):
    return pb.LayoutKey(index_uid=uid, index_version=version, shard_count=shard_count)


def search_request(queries, top_k=10, shards=2, fill=pb.FILL_REFERENCE, version=0, **more):
    return pb.SearchShardsRequest(
        layout=key(shards, version),
        shards=range(shards),
        queries=pack_vectors(queries),
        top_k=[top_k] * len(queries),
        fill=[fill] * len(queries),
        **more,
    )


@contextlib.asynccontextmanager
async def serving(corpus, **settings):
    service = ShardService(ShardSettings(follow_interval_s=0.05, **settings), SERVER)
    host = ServiceHost(service, "127.0.0.1:0")
    address = await host.start()
    channel = open_channel(address)
    before = threading.active_count()
    try:
        yield Server(service, corpus, channel)
    finally:
        await channel.close()
        await host.stop(grace_s=2.0)
        left = [thread.name for thread in threading.enumerate()]
        assert not [name for name in left if name.startswith(("shard-", "follow-"))], before


@pytest.fixture
def corpus(tmp_path):
    corpus = Corpus(tmp_path)
    corpus.fill(80)
    return corpus


@pytest.fixture
async def server(corpus):
    async with serving(corpus) as server:
        await server.publish(layout(2))
        await server.ready(2)
        yield server


async def test_a_search_finds_what_an_exact_one_does(server, corpus):
    for query in corpus.vectors(5):
        response = await server.assert_finds(query)
        assert [state.shard for state in response.shards] == [0, 1]
        assert all(state.ready for state in response.shards)
        assert sum(state.passage_count for state in response.shards) == corpus.passage_count
        assert sum(state.document_count for state in response.shards) == len(corpus.present)
        assert {state.kind for state in response.shards} == {SearchKind.SEARCH_KIND_EXACT}


async def test_a_batch_gives_each_query_what_it_asked_for(server, corpus):
    queries = corpus.vectors(40)
    request = search_request(queries)
    top_ks = [1 + at * 7 % 60 for at in range(40)]
    fills = [(pb.FILL_UNSPECIFIED, pb.FILL_REFERENCE, pb.FILL_TEXT)[at % 3] for at in range(40)]
    request.top_k[:], request.fill[:] = top_ks, fills
    response = await server.call("SearchShards", request)
    for query, top_k, fill, result in zip(queries, top_ks, fills, response.results, strict=True):
        scores = np.frombuffer(result.scores, "<f4")
        expected = corpus.best(query, top_k)
        np.testing.assert_allclose(scores, [each[2] for each in expected], atol=1e-5)
        assert len(result.row_ids) == 8 * top_k
        assert set(np.frombuffer(result.shards, "<u4").tolist()) <= {0, 1}
        assert len(result.hits) == (0 if fill == pb.FILL_UNSPECIFIED else top_k)
        assert all(bool(each.text) == (fill == pb.FILL_TEXT) for each in result.hits)
        row_ids = np.frombuffer(result.row_ids, "<u8").tolist()
        assert len(set(row_ids)) == top_k


async def test_text_metadata_and_spans_come_back_as_they_were_written(server, corpus):
    (query,) = corpus.vectors(1)
    response = await server.search(query[None], 20, fill=pb.FILL_TEXT)
    passages = response.results[0].hits
    assert len(passages) == 20
    row_ids = np.frombuffer(response.results[0].row_ids, "<u8")[::-1]
    fetched = await server.call(
        "FetchPassages",
        pb.FetchPassagesRequest(layout=key(), row_ids=pack(row_ids, np.dtype("<u8"))),
    )
    assert list(fetched.hits) == list(passages)[::-1]
    assert fetched.row_ids == row_ids.tobytes()
    for passage in passages:
        stored = corpus.present[passage.document_id]
        assert passage.text == stored.texts[passage.passage]
        whole = "".join(stored.texts)
        assert whole[passage.span.start : passage.span.end] == passage.text
        assert passage.title == stored.title
        assert passage.content_hash == stored.content_hash
        metadata = json_format.MessageToDict(passage.metadata)
        assert metadata == {"name": passage.document_id, "nested": {"list": [1.0, "two", None]}}
        assert passage.update_time.ToMicroseconds() >= 1_750_000_000_000_000


async def test_documents_are_put_together_from_their_passages(server, corpus):
    ids = ["doc-5", "not-there", "doc-3", "doc-5", *corpus.present]
    response = await server.call(
        "FetchDocuments", pb.FetchDocumentsRequest(layout=key(), document_ids=ids)
    )
    found = [each.document_id for each in response.documents]
    assert found == ["doc-5", "doc-3", *(i for i in corpus.present if i not in ("doc-5", "doc-3"))]
    for document in response.documents:
        stored = corpus.present[document.document_id]
        assert document.text == "".join(stored.texts)
        assert [document.text[s.start : s.end] for s in document.passages] == stored.texts
        assert document.title == stored.title
        assert document.content_hash == stored.content_hash
        assert document.create_time.ToMicroseconds() == 1_700_000_000_000_001


async def test_a_write_can_be_read_at_its_version(server, corpus):
    for step in range(5):
        stored = corpus.document(f"new-{step}", 2)
        version = corpus.write({f"new-{step}": stored, "doc-1": stored}, (f"doc-{10 + step}",))
        await server.assert_finds(stored.vectors[1], version=version)
        response = await server.call(
            "FetchDocuments",
            pb.FetchDocumentsRequest(
                layout=key(),
                document_ids=[f"new-{step}", f"doc-{10 + step}"],
                min_table_version=version,
            ),
        )
        assert [each.document_id for each in response.documents] == [f"new-{step}"]


async def test_the_vectors_of_the_first_passages_come_along(server, corpus):
    (query,) = corpus.vectors(1)
    (result,) = (await server.search(query[None], 20)).results
    row_ids = np.frombuffer(result.row_ids, "<u8")
    missing = np.insert(row_ids, 1, np.uint64(10**15))
    fetched = await server.call(
        "FetchPassages",
        pb.FetchPassagesRequest(
            layout=key(), row_ids=pack(missing, np.dtype("<u8")), vector_count=8
        ),
    )
    assert len(fetched.hits) == 20
    vectors = np.frombuffer(fetched.vectors, "<f4").reshape(7, -1)
    scores = np.frombuffer(result.scores, "<f4")[:7]
    np.testing.assert_allclose(vectors @ query, scores, atol=1e-5)


async def test_replaced_and_deleted_passages_are_not_fetched(server, corpus):
    response = await server.search(corpus.vectors(1), 1000)
    (result,) = response.results
    assert len(result.hits) == corpus.passage_count
    found = np.frombuffer(result.row_ids, "<u8")
    version = corpus.write({"doc-0": corpus.document("doc-0")}, ("doc-1", "doc-2"))
    await server.search(corpus.vectors(1), min_table_version=version)
    row_ids = pack(np.append(found, np.uint64(10**15)), np.dtype("<u8"))
    fetched = await server.call(
        "FetchPassages",
        pb.FetchPassagesRequest(layout=key(), row_ids=row_ids, fill=pb.FILL_REFERENCE),
    )
    gone = {"doc-0", "doc-1", "doc-2"}
    left = [
        row_id
        for row_id, hit in zip(found, result.hits, strict=True)
        if hit.document_id not in gone
    ]
    assert np.frombuffer(fetched.row_ids, "<u8").tolist() == left
    assert len(fetched.hits) == len(left)
    assert not any(each.text for each in fetched.hits)


async def test_a_version_that_the_table_lacks_is_refused_by_the_deadline(server, corpus):
    version = corpus.table.version
    for method, request in (
        ("SearchShards", search_request(corpus.vectors(1), min_table_version=version + 1)),
        (
            "FetchDocuments",
            pb.FetchDocumentsRequest(
                layout=key(), document_ids=["doc-1"], min_table_version=version + 1
            ),
        ),
    ):
        with pytest.raises(ServiceError, match=f"table is at {version}") as raised:
            await server.call(method, request, timeout=0.5)
        assert raised.value.reason == Reason.REASON_TABLE_VERSION_AHEAD


async def test_two_layouts_stand_side_by_side(server, corpus):
    await server.publish(layout(2), layout(4))
    await server.ready(6)
    version = corpus.write({"extra": corpus.document("extra", 3)}, ("doc-7",))
    for query in corpus.vectors(3):
        await server.assert_finds(query, shards=2, version=version)
        await server.assert_finds(query, shards=4, version=version)
    await server.publish(layout(4))
    await server.until(lambda states: len(states) == 4 and all(each.ready for each in states))
    await server.assert_finds(corpus.vectors(1)[0], shards=4)
    with pytest.raises(ServiceError) as raised:
        await server.search(corpus.vectors(1), shards=2)
    assert raised.value.reason == Reason.REASON_NOT_READY


async def test_from_exact_to_codes_while_searches_run(tmp_path):
    corpus = Corpus(tmp_path, dimension=32)
    corpus.fill(600)
    codebook = tmp_path / "versions" / "1"
    train_codebook(corpus.uri, codebook, threads=1)
    async with serving(corpus, fold_at_passages=50) as server:
        await server.publish(layout(2))
        await server.ready(2)
        await server.publish(layout(2), layout(4, codebook=codebook))
        while sum(state.ready for state in await server.states()) < 6:
            await server.assert_finds(corpus.vectors(1)[0])
        await server.publish(layout(4, codebook=codebook))
        version = 0
        for at in range(8):
            fresh = {f"n-{at}-{i}": corpus.document("n") for i in range(60)}
            version = corpus.write(fresh, tuple(f"doc-{50 * at + i}" for i in range(20)))
        await server.until(lambda states: all(each.tail_count < 50 for each in states))
        queries = corpus.vectors(50)
        response = await server.search(queries, shards=4, version=1, min_table_version=version)
        assert {state.kind for state in response.shards} == {SearchKind.SEARCH_KIND_IVF_PQ}
        hits = 0
        for query, result in zip(queries, response.results, strict=True):
            found = {(each.document_id, each.passage) for each in result.hits}
            hits += len(found & {each[:2] for each in corpus.best(query, 10)})
        assert hits >= 0.95 * 10 * len(queries)


async def test_a_damaged_codebook_keeps_the_old_layout_serving(server, corpus, tmp_path):
    (tmp_path / "damaged").mkdir()
    await server.publish(layout(2), layout(2, codebook=tmp_path / "damaged"))
    await server.until(lambda states: any("codebook" in state.message for state in states))
    await server.assert_finds(corpus.vectors(1)[0])


async def test_a_shard_that_is_not_here_is_left_out(server, corpus):
    serving_layout = layout(4)
    serving_layout.placements[0].shards[:] = [0, 2]
    await server.publish(serving_layout)
    await server.until(lambda states: len(states) == 2 and all(each.ready for each in states))
    response = await server.search(corpus.vectors(1), 1000, shards=4)
    assert [state.ready for state in response.shards] == [True, False, True, False]
    assert "not on this server" in response.shards[1].message
    assert set(np.frombuffer(response.results[0].shards, "<u4").tolist()) == {0, 2}
    request = search_request(corpus.vectors(1), shards=4)
    request.shards[:] = [1, 3]
    with pytest.raises(ServiceError, match="not on this server") as raised:
        await server.call("SearchShards", request)
    assert raised.value.reason == Reason.REASON_NOT_READY
    ids = [f"doc-{at}" for at in range(40)]
    with pytest.raises(ServiceError) as raised:
        await server.call(
            "FetchDocuments", pb.FetchDocumentsRequest(layout=key(4), document_ids=ids)
        )
    assert raised.value.reason == Reason.REASON_NOT_READY


async def test_an_index_without_a_table_is_loaded_once_it_is_there(tmp_path):
    corpus = Corpus(tmp_path)
    corpus.fill(5)
    real, corpus.uri = corpus.uri, str(tmp_path / "moved.lance")
    async with serving(corpus) as server:
        await server.publish(layout(1))
        await server.until(lambda states: any("no table" in state.message for state in states))
        (tmp_path / "table.lance").rename(corpus.uri)
        await server.ready(1)
        await server.assert_finds(corpus.vectors(1)[0], 3, shards=1)
    assert real != corpus.uri


def _search_with(**changes):
    request = search_request(np.eye(2, 16, dtype=np.float32))
    for name, value in changes.items():
        getattr(request, name)[:] = value
    return request


def _queries(rows, **changes):
    request = search_request(np.eye(2, 16, dtype=np.float32))
    vectors = pack_vectors(np.asarray(rows, dtype=np.float32))
    vectors.MergeFrom(Vectors(**changes))
    request.queries.CopyFrom(vectors)
    return request


@pytest.mark.parametrize(
    ("request_", "field", "reason"),
    [
        (_search_with(top_k=[10]), "top_k", Reason.REASON_INVALID_FIELD),
        (_search_with(top_k=[10, 0]), "top_k[1]", Reason.REASON_INVALID_FIELD),
        (_search_with(top_k=[10, 1001]), "top_k[1]", Reason.REASON_INVALID_FIELD),
        (_search_with(fill=[]), "fill", Reason.REASON_INVALID_FIELD),
        (_search_with(fill=[1, 9]), "fill[1]", Reason.REASON_INVALID_FIELD),
        (_search_with(shards=[]), "shards", Reason.REASON_INVALID_FIELD),
        (_search_with(shards=[0, 2]), "shards[1]", Reason.REASON_INVALID_FIELD),
        (_search_with(shards=[1, 1]), "shards[1]", Reason.REASON_INVALID_FIELD),
        (_queries(np.empty((0, 16))), "queries.count", Reason.REASON_INVALID_FIELD),
        (_queries(np.ones((2, 15))), "queries.dimension", Reason.REASON_DIMENSION_MISMATCH),
        (_queries(np.full((2, 16), np.nan)), "queries.values", Reason.REASON_INVALID_VECTOR),
        (_queries(np.full((2, 16), np.inf)), "queries.values", Reason.REASON_INVALID_VECTOR),
        (_queries(np.ones((2, 16)), values=b"123"), "queries.values", Reason.REASON_INVALID_FIELD),
        (pb.SearchShardsRequest(), "layout.index_uid", Reason.REASON_INVALID_FIELD),
        (
            pb.SearchShardsRequest(layout=pb.LayoutKey(index_uid=UID)),
            "layout.shard_count",
            Reason.REASON_INVALID_FIELD,
        ),
        (
            pb.FetchPassagesRequest(layout=key(), row_ids=b"1234567"),
            "row_ids",
            Reason.REASON_INVALID_FIELD,
        ),
        (
            pb.FetchPassagesRequest(layout=key(), row_ids=bytes(8 * 10_001)),
            "row_ids",
            Reason.REASON_INVALID_FIELD,
        ),
        (pb.FetchPassagesRequest(layout=key(), fill=9), "fill", Reason.REASON_INVALID_FIELD),
        (
            pb.FetchDocumentsRequest(layout=key(), document_ids=["x"] * 1001),
            "document_ids",
            Reason.REASON_INVALID_FIELD,
        ),
    ],
)
async def test_a_wrong_request_names_its_field(server, request_, field, reason):
    method = type(request_).__name__.removesuffix("Request")
    with pytest.raises(ServiceError) as raised:
        await server.call(method, request_)
    assert list(raised.value.failure.fields) == [field]
    assert raised.value.reason == reason


async def test_nothing_asked_for_is_nothing_found(server):
    passages = await server.call("FetchPassages", pb.FetchPassagesRequest(layout=key()))
    documents = await server.call("FetchDocuments", pb.FetchDocumentsRequest(layout=key()))
    assert not passages.hits
    assert not documents.documents


async def test_an_unknown_layout_is_not_ready(server, corpus):
    for layout_key in (key(uid="other"), key(3), key(2, version=1)):
        request = search_request(corpus.vectors(1))
        request.layout.CopyFrom(layout_key)
        request.shards[:] = [0]
        with pytest.raises(ServiceError) as raised:
            await server.call("SearchShards", request)
        assert raised.value.reason == Reason.REASON_NOT_READY


async def test_more_than_the_queue_takes_is_refused_with_a_delay(corpus):
    async with serving(corpus, max_waiting_queries=8, threads=1) as server:
        await server.publish(layout(1))
        await server.ready(1)
        # One waits for a version that is not there yet, and holds the room of eight.
        ahead = corpus.table.version + 1
        waiting = asyncio.create_task(
            server.search(corpus.vectors(8), shards=1, min_table_version=ahead)
        )
        async with asyncio.timeout(PATIENCE_S):
            while server.service._admission._admitted < 8:
                await asyncio.sleep(0.01)
        with pytest.raises(ServiceError) as raised:
            await server.search(corpus.vectors(1), shards=1)
        assert raised.value.reason == Reason.REASON_OVERLOADED
        assert raised.value.failure.retry_delay_s > 0
        corpus.write({"one": corpus.document("one")})
        await waiting


async def test_a_topology_that_cannot_be_is_refused(server, corpus):
    wrong = layout(2)
    wrong.placements[0].shards[:] = [0, 5]
    request = PublishTopologyRequest(topology=topology(corpus, 9, wrong), instance_id=SERVER)
    response = await server.topology.PublishTopology(request)
    assert "shard 5" in response.refusal
    assert {state.shard for state in response.shards} == {0, 1}


async def test_an_index_that_was_dropped_is_let_go(server, corpus):
    server.epoch += 1
    empty = topology(corpus, server.epoch, layout(2))
    del empty.indexes[:]
    await server.topology.PublishTopology(
        PublishTopologyRequest(topology=empty, instance_id=SERVER)
    )
    assert await server.states() == []


async def test_a_gpu_that_is_not_there_is_named(corpus):
    from shoal.shard.kernel import faiss

    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this FAISS has GPU support")
    host = ServiceHost(ShardService(ShardSettings(device="cuda"), SERVER), "127.0.0.1:0")
    with pytest.raises(ValueError, match="extra `gpu`"):
        await host.start()
