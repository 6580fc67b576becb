"""Do both clients reach a real server, set deadlines, retry, resend, and raise typed errors?

The server is scripted, but gRPC is real.
"""

import asyncio
import contextlib
import pickle
import socket
import threading
from concurrent import futures

import grpc
import pytest
from shoal import client as public
from shoal.client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    DimensionMismatchError,
    IndexNotFoundError,
    OverloadedError,
    ShoalError,
    UnavailableError,
    search_request,
)
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.rpc.interceptors import ErrorInterceptor
from shoal.v1 import cluster_pb2, documents_pb2, indexes_pb2, search_pb2
from shoal.v1.cluster_pb2_grpc import ClusterServiceServicer, add_ClusterServiceServicer_to_server
from shoal.v1.documents_pb2_grpc import (
    DocumentServiceServicer,
    add_DocumentServiceServicer_to_server,
)
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2_grpc import IndexServiceServicer, add_IndexServiceServicer_to_server
from shoal.v1.search_pb2_grpc import SearchServiceServicer, add_SearchServiceServicer_to_server


class Broker(
    SearchServiceServicer, DocumentServiceServicer, IndexServiceServicer, ClusterServiceServicer
):
    """Answers what the index's name asks for, and remembers what it was sent."""

    def __init__(self, name="broker"):
        self.name = name
        self.budgets_s = []
        self.failures_left = 0
        self.streams = []
        self.lose_after = None
        self.stuck = asyncio.Event()

    async def Search(self, request, context):
        self.budgets_s.append(context.time_remaining())
        if self.failures_left:
            self.failures_left -= 1
            raise ServiceError(Reason.REASON_NOT_READY, "not yet")
        match request.index:
            case "missing":
                raise ServiceError(Reason.REASON_INDEX_NOT_FOUND, "no index `missing`: create it")
            case "narrow":
                raise InvalidFieldError(
                    "vector.dimension", "is 3", Reason.REASON_DIMENSION_MISMATCH
                )
            case "busy":
                raise ServiceError(Reason.REASON_OVERLOADED, "come back", retry_delay_s=0.25)
            case "bug":
                raise RuntimeError("boom")
            case "slow":
                await self.stuck.wait()
        return search_pb2.SearchResponse(hits=[search_pb2.Hit(document_id=self.name)])

    async def BatchSearch(self, request, context):
        results = [
            search_pb2.BatchSearchResult(response=await self.Search(each, context))
            for each in request.searches
        ]
        return search_pb2.BatchSearchResponse(results=results)

    async def UpsertDocuments(self, request_iterator, context):
        numbers = []
        self.streams.append(numbers)
        async for request in request_iterator:
            if request.index == "missing":
                raise ServiceError(Reason.REASON_INDEX_NOT_FOUND, "no index `missing`")
            numbers.append(request.number)
            if self.lose_after is not None and len(numbers) > self.lose_after:
                self.lose_after = None
                raise ServiceError(Reason.REASON_WRITER_UNAVAILABLE, "the writer died")
            failures = []
            if not request.document.text:
                failures = [
                    documents_pb2.UpsertFailure(
                        number=request.number, document_id=request.document.id, reason="X"
                    )
                ]
            if request.index != "silent":
                yield documents_pb2.UpsertDocumentsResponse(
                    durable_number=request.number,
                    table_version=request.number + 100,
                    failures=failures,
                    passage_count=1,
                )

    async def DeleteDocuments(self, request, context):
        return documents_pb2.DeleteDocumentsResponse(table_version=len(request.document_ids))

    async def GetDocuments(self, request, context):
        return documents_pb2.GetDocumentsResponse(missing_ids=request.document_ids)

    async def CreateIndex(self, request, context):
        index = indexes_pb2.Index(name=request.name, dimension=request.dimension or 384)
        return indexes_pb2.CreateIndexResponse(index=index)

    async def ListIndexes(self, request, context):
        at = int(request.page_token or 0)
        return indexes_pb2.ListIndexesResponse(
            indexes=[indexes_pb2.Index(name=f"i{at}")],
            next_page_token=str(at + 1) if at < 2 else "",
        )

    async def DescribeIndex(self, request, context):
        return indexes_pb2.DescribeIndexResponse(index=indexes_pb2.Index(name=request.name))

    async def DropIndex(self, request, context):
        return indexes_pb2.DropIndexResponse()

    async def GetClusterStatus(self, request, context):
        return cluster_pb2.GetClusterStatusResponse(cluster=self.name)

    async def ScaleCluster(self, request, context):
        return cluster_pb2.ScaleClusterResponse(scale=request.scale)


@contextlib.asynccontextmanager
async def serving(broker, port=0):
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=[("grpc.so_reuseport", 0)])
    add_SearchServiceServicer_to_server(broker, server)
    add_DocumentServiceServicer_to_server(broker, server)
    add_IndexServiceServicer_to_server(broker, server)
    add_ClusterServiceServicer_to_server(broker, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        broker.stuck.set()
        await server.stop(0)


class Threaded:
    """The synchronous client with the asynchronous one's face, so that one test body does."""

    def __init__(self, *arguments, **options):
        self._client = Client(*arguments, **options)
        self._executor = futures.ThreadPoolExecutor(4)

    async def __aenter__(self):
        self._client.__enter__()
        return self

    async def __aexit__(self, *exception):
        self._client.__exit__(*exception)
        self._executor.shutdown()

    def __getattr__(self, name):
        def call(*arguments, **options):
            method = getattr(self._client, name)
            loop = asyncio.get_running_loop()
            return loop.run_in_executor(self._executor, lambda: method(*arguments, **options))

        return call

    async def list_indexes(self):
        for each in await asyncio.to_thread(lambda: list(self._client.list_indexes())):
            yield each


@pytest.fixture(params=[Threaded, AsyncClient], ids=["sync", "async"])
def make_client(request):
    return request.param


@pytest.fixture
def broker():
    return Broker()


@pytest.fixture
async def client(make_client, broker):
    async with serving(broker) as address, make_client(address) as client:
        yield client


async def test_every_method_returns_what_the_server_answered(client):
    assert (await client.search("i", "q")).hits[0].document_id == "broker"
    assert (await client.search("i", [1.0, 0.0])).hits[0].document_id == "broker"
    batch = await client.batch_search([search_request("i", "q")] * 3)
    assert len(batch.results) == 3
    assert await client.delete("i", ["a", "b"]) == 2
    assert list((await client.get("i", ["a"])).missing_ids) == ["a"]
    assert (await client.create_index("new", 7)).dimension == 7
    assert [each.name async for each in client.list_indexes()] == ["i0", "i1", "i2"]
    assert (await client.describe_index("i")).index.name == "i"
    assert await client.drop_index("i") is None
    assert (await client.cluster_status()).cluster == "broker"
    scale = await client.scale(shards=4)
    assert (scale.shards, scale.HasField("brokers")) == (4, False)


async def test_a_deadline_is_always_set(client, broker):
    await client.search("i", "q")
    await client.search("i", "q", timeout_s=3.0)
    # gRPC rounds a deadline up a little.
    assert 4.0 < broker.budgets_s[0] < 11.0
    assert 0.0 < broker.budgets_s[1] < 4.0


@pytest.mark.parametrize(
    ("index", "kind", "reason"),
    [
        ("missing", IndexNotFoundError, "INDEX_NOT_FOUND"),
        ("narrow", DimensionMismatchError, "DIMENSION_MISMATCH"),
        ("busy", OverloadedError, "OVERLOADED"),
        ("bug", public.InternalError, "INTERNAL"),
    ],
)
async def test_errors_have_a_type_and_their_details(client, index, kind, reason):
    with pytest.raises(kind) as caught:
        await client.search(index, "q")
    error = caught.value
    assert error.reason == reason
    assert isinstance(error, ShoalError)
    assert reason in str(error)
    if index == "narrow":
        assert error.fields == {"vector.dimension": "is 3"}
    if index == "busy":
        assert error.retry_delay_s == pytest.approx(0.25)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.reason, str(copy)) == (kind, reason, str(error))


async def test_a_passed_deadline_is_an_error_of_its_own(client):
    with pytest.raises(DeadlineExceededError) as caught:
        await client.search("slow", "q", timeout_s=0.05)
    assert caught.value.reason == "DEADLINE_EXCEEDED"


async def test_reads_are_retried_while_the_server_is_unavailable(client, broker):
    broker.failures_left = 2
    assert (await client.search("i", "q")).hits
    assert len(broker.budgets_s) == 3


async def test_nobody_there_is_unavailable(make_client):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    async with make_client(address) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.drop_index("i")
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_may_wait_for_a_broker_that_is_not_there_yet(make_client, broker):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    async with make_client(f"127.0.0.1:{port}", wait_for_ready=True) as client:
        answer = asyncio.ensure_future(client.drop_index("i"))
        async with serving(broker, port):
            await answer


async def test_several_brokers_are_used_in_turn_and_one_may_die(make_client):
    one, two = Broker("one"), Broker("two")
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(serving(one))
        dying = contextlib.AsyncExitStack()
        second = await dying.enter_async_context(serving(two))
        client = await stack.enter_async_context(make_client([first, second]))
        names = set()
        for _ in range(200):
            names.add((await client.search("i", "q")).hits[0].document_id)
            if len(names) == 2:
                break
        assert names == {"one", "two"}
        await dying.aclose()
        for _ in range(10):
            assert (await client.search("i", "q")).hits[0].document_id == "one"


async def test_no_proxy_of_the_environment_is_used(make_client, broker, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    async with serving(broker) as address, make_client(address) as client:
        assert (await client.search("i", "q")).hits


def documents(count, empty=()):
    return [{"id": f"d{each}", "text": "" if each in empty else "t"} for each in range(count)]


async def test_upsert_numbers_acknowledges_and_collects_failures(client, broker):
    seen = []
    summary = await client.upsert("i", documents(50, empty={7}), on_acknowledge=seen.append)
    assert broker.streams == [list(range(1, 51))]
    assert (summary.acknowledged, summary.processed, summary.table_version) == (49, 50, 150)
    assert summary.passage_count == 50
    assert [(each.number, each.document_id) for each in summary.failures] == [(8, "d7")]
    assert [each.processed for each in seen] == sorted(each.processed for each in seen)
    assert seen[-1] == summary


async def test_upsert_of_more_than_the_window(client, broker):
    summary = await client.upsert("i", documents(3_000))
    assert summary.acknowledged == 3_000
    assert broker.streams == [list(range(1, 3_001))]


async def test_upsert_sends_again_what_a_lost_stream_left_unacknowledged(client, broker):
    broker.lose_after = 20
    summary = await client.upsert("i", documents(60))
    assert summary.acknowledged == 60
    assert len(broker.streams) == 2
    first, second = broker.streams
    assert first == list(range(1, 22))
    assert second == list(range(second[0], 61))
    assert second[0] <= 21


async def test_upsert_raises_what_the_stream_fails_with(client):
    with pytest.raises(IndexNotFoundError):
        await client.upsert("missing", documents(3))


async def test_upsert_keeps_its_deadline(client):
    with pytest.raises(DeadlineExceededError):
        await client.upsert("silent", documents(3), timeout_s=0.1)


async def test_upsert_leaves_no_thread_and_no_task_behind(client):
    await client.upsert("i", documents(10))
    with pytest.raises(IndexNotFoundError):
        await client.upsert("missing", documents(10))
    assert not [each for each in threading.enumerate() if each.name == "shoal-upsert"]
    assert not [each for each in asyncio.all_tasks() if each.get_name() == "shoal-upsert"]


async def test_upsert_of_nothing(client):
    assert (await client.upsert("i", [])).processed == 0


async def test_upsert_passes_on_what_the_source_raises(client, broker):
    def source():
        yield {"id": "a", "text": "t"}
        raise KeyError("from the caller's own code")

    with pytest.raises(KeyError, match="own code"):
        await client.upsert("i", source())
    with pytest.raises(ValueError, match="document 2: there is no 'body'"):
        await client.upsert("i", [{"id": "a", "text": "t"}, {"id": "b", "body": "t"}])
    assert (await client.search("i", "q")).hits


async def test_async_upsert_reads_asynchronous_sources(broker):
    async def source():
        for each in documents(5):
            await asyncio.sleep(0)
            yield each

    async with serving(broker) as address, AsyncClient(address) as client:
        assert (await client.upsert("i", source())).acknowledged == 5
