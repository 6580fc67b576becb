"""Can a caller in another language work from the protos alone? Real Node, real gRPC."""

import asyncio
import shutil
from pathlib import Path

import grpc
import pytest
from shoal.rpc.errors import ServiceError
from shoal.rpc.interceptors import ErrorInterceptor
from shoal.v1 import search_pb2
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2_grpc import SearchServiceServicer, add_SearchServiceServicer_to_server

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "loadtest" / "node"
INSTALL_S = 120

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None, reason="needs node and npm"
)


class Broker(SearchServiceServicer):
    def __init__(self):
        self.requests = []

    async def Search(self, request, context):
        self.requests.append((request, context.time_remaining()))
        if request.index == "missing":
            raise ServiceError(Reason.REASON_INDEX_NOT_FOUND, "there is no index `missing`")
        hit = search_pb2.Hit(
            document_id="Super_Bowl_50",
            title="Super Bowl",
            text="The Denver Broncos 击败了 the Panthers",
            span=search_pb2.Span(start=5, end=41),
            score=0.875,
        )
        coverage = search_pb2.Coverage(
            complete=False,
            shards_searched=1,
            shards_total=2,
            cuts=[
                search_pb2.StageCut(
                    stage=search_pb2.STAGE_SEARCH, reason="SHARD_UNAVAILABLE", message="shard 1"
                )
            ],
        )
        return search_pb2.SearchResponse(hits=[hit], coverage=coverage, table_version=2**60)

    async def BatchSearch(self, request, context):
        raise NotImplementedError


async def execute(*command, cwd):
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(INSTALL_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
async def broker():
    broker = Broker()
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    add_SearchServiceServicer_to_server(broker, server)
    broker.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield broker
    await server.stop(0)


@pytest.fixture
async def example(tmp_path):
    for name in ("package.json", "package-lock.json", "search.mjs"):
        shutil.copy(EXAMPLE / name, tmp_path)
    code, _, errors = await execute(
        "npm", "ci", "--no-audit", "--no-fund", "--prefer-offline", cwd=tmp_path
    )
    assert code == 0, errors
    return tmp_path


async def test_node_searches_from_the_protos(broker, example):
    def search(*arguments):
        return execute(
            *("node", "search.mjs", "--protos", str(ROOT / "protos")),
            *("--endpoint", broker.address, *arguments),
            cwd=example,
        )

    code, out, errors = await search("--index", "xquad", "--top-k", "3", "Who won Super Bowl 50?")
    assert (code, errors) == (0, "")
    assert "1. 0.8750  Super_Bowl_50 [5, 41)  Super Bowl" in out
    assert "Broncos 击败了" in out
    assert "1 of 2 shards answered: INCOMPLETE" in out
    assert "STAGE_SEARCH: SHARD_UNAVAILABLE: shard 1" in out
    request, budget_s = broker.requests[0]
    assert (request.index, request.text, request.top_k) == ("xquad", "Who won Super Bowl 50?", 3)
    assert 0 < budget_s < 11

    code, out, errors = await search("--index", "missing", "q")
    assert (code, out) == (1, "")
    assert errors == "NOT_FOUND: there is no index `missing`\n"

    code, _, errors = await search()
    assert code == 2
    assert "what is the question?" in errors
