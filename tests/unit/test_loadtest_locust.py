"""Does the locustfile ask real gRPC servers, and does its exit code say what happened?"""

import json
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from shoal.v1 import indexes_pb2, indexes_pb2_grpc, search_pb2, search_pb2_grpc

ROOT = Path(__file__).parents[2]


class Search(search_pb2_grpc.SearchServiceServicer):
    """Answers everything at once; every `fails`-th call fails, every `partial`-th is partial."""

    def __init__(self, fails=0, partial=0):
        self.requests, self.fails, self.partial = [], fails, partial

    def Search(self, request, context):
        self.requests.append(request)
        number = len(self.requests)
        if self.fails and number % self.fails == 0:
            context.abort(grpc.StatusCode.INTERNAL, "on purpose")
        complete = not (self.partial and number % self.partial == 0)
        return search_pb2.SearchResponse(coverage=search_pb2.Coverage(complete=complete))


class Indexes(indexes_pb2_grpc.IndexServiceServicer):
    """Describes one index."""

    def DescribeIndex(self, request, context):
        index = indexes_pb2.Index(name=request.name, dimension=8)
        return indexes_pb2.DescribeIndexResponse(index=index)


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "queries.jsonl"
    lines = [
        json.dumps({"_id": str(number), "text": f"Question {number}?"}) for number in range(20)
    ]
    path.write_text("\n".join(lines))
    return path


def run_locust(search, questions, *options):
    server = grpc.server(futures.ThreadPoolExecutor(4))
    search_pb2_grpc.add_SearchServiceServicer_to_server(search, server)
    indexes_pb2_grpc.add_IndexServiceServicer_to_server(Indexes(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless"]
    command += ["-u", "3", "-r", "3", "-t", "2s", "--host", f"127.0.0.1:{port}", "--only-summary"]
    command += ["--questions", str(questions), "--per-caller", "30", *options]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    finally:
        server.stop(None).wait()


def test_thresholds_that_hold_end_in_success_and_mix_text_with_vectors(questions):
    search = Search()
    done = run_locust(
        search,
        questions,
        *("--vector-share", "0.5", "--max-failures", "0", "--min-coverage", "1", "--top-k", "5"),
        *("--max-p99-ms", "9000", "--no-rerank", "--no-cache", "--index", "somewhere"),
    )
    assert done.returncode == 0, done.stderr
    kinds = {request.WhichOneof("query") for request in search.requests}
    assert kinds == {"text", "vector"}
    for request in search.requests:
        assert (request.index, request.top_k) == ("somewhere", 5)
        assert request.bypass_cache
        assert request.rerank.disabled
        if request.WhichOneof("query") == "vector":
            assert request.vector.dimension == 8


def test_failures_and_partial_answers_end_in_failure(questions):
    done = run_locust(
        Search(fails=5, partial=4), questions, "--max-failures", "0.01", "--min-coverage", "0.99"
    )
    assert done.returncode == 1
    assert "of the calls failed" in done.stderr
    assert "were complete" in done.stderr
