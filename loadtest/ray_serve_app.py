"""What does the same search cost when it is composed in Ray Serve?

A deployment for each shard and a router before them, as Serve's documentation composes models: the
router awaits a handle call to every shard, merges, and answers over Serve's own gRPC ingress, with
the messages that Shoal speaks. The FAISS indexes are the same, with the same search parameters.

Two applications: `documented`, composed as the documentation shows, and `tuned`, for those who
would say that the first is a straw man: there the shards batch as well (`@serve.batch`). In both
the limit on calls in flight is raised: with Serve's default of 5 a replica, 64 callers wait in
retries with growing pauses, and throughput falls to a tenth of what one caller gets, which flatters
Shoal.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Any, Final

# Before Ray is imported. Ray listens wider than loopback: nobody without the token gets in.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import ray
from ray import serve
from ray.serve.config import gRPCOptions
from ray.serve.handle import DeploymentHandle
from shoal.v1.search_pb2 import Coverage, Hit, SearchRequest, SearchResponse

from loadtest.shard_indexes import ShardIndex
from loadtest.vectors import document_id

_SERVICER: Final = "shoal.v1.search_pb2_grpc.add_SearchServiceServicer_to_server"
# More than the callers of any round.
_NO_LIMIT: Final = 1024
_MAX_BATCH: Final = 64

_Candidates = list[tuple[float, int]]


class _Shard:
    """One shard's index, in a replica of its own."""

    def __init__(self, folder: str, codebook: str, shard: int) -> None:
        self._index = ShardIndex.load(Path(folder), Path(codebook), shard, threads=1)

    def search(self, query: np.ndarray, top_k: int) -> _Candidates:
        scores, rows = self._index.search(query[None, :], top_k)
        return list(zip(scores[0].tolist(), rows[0].tolist(), strict=True))


class _BatchingShard:
    """The same, with calls gathered by Serve."""

    def __init__(self, folder: str, codebook: str, shard: int) -> None:
        self._index = ShardIndex.load(Path(folder), Path(codebook), shard, threads=1)

    @serve.batch(max_batch_size=_MAX_BATCH, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def search(self, queries: list[np.ndarray], top_k: list[int]) -> list[_Candidates]:
        scores, rows = self._index.search(np.stack(queries), max(top_k))
        return [
            list(zip(*pair, strict=True))
            for pair in zip(scores.tolist(), rows.tolist(), strict=True)
        ]


class _Router:
    """Asks every shard, merges, answers."""

    def __init__(self, *shards: DeploymentHandle) -> None:
        self._shards = shards

    async def Search(self, request: SearchRequest) -> SearchResponse:  # noqa: N802
        query, top_k = np.frombuffer(request.vector.values, dtype="<f4"), request.top_k
        found = await asyncio.gather(*(each.search.remote(query, top_k) for each in self._shards))
        best = heapq.nlargest(top_k, (pair for candidates in found for pair in candidates))
        count = len(self._shards)
        return SearchResponse(
            hits=[
                Hit(document_id=document_id(row), score=score, dense_score=score)
                for score, row in best
            ],
            coverage=Coverage(complete=True, shards_searched=count, shards_total=count),
        )


def application(folder: str, codebook: str, shard_count: int, *, tuned: bool) -> serve.Application:
    """Compose the application."""
    limits: dict[str, Any] = {"max_ongoing_requests": _NO_LIMIT}
    shards = []
    for shard in range(shard_count):
        deployment = serve.deployment(name=f"Shard{shard}", **limits)
        hosted = deployment(_BatchingShard if tuned else _Shard)
        shards.append(hosted.bind(folder, codebook, shard))
    return serve.deployment(name="Router", **limits)(_Router).bind(*shards)


def main() -> None:
    """Serve what the JSON object on the command line declares, until SIGTERM."""
    order = json.loads(sys.argv[1])
    names = order["applications"]
    shard_count = order["shard_count"]
    ray.init(
        address="local",
        # Slots for replicas, not cores: one each, and one for the controller and the proxy.
        num_cpus=len(names) * (shard_count + 1) + 1,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=order["temp_folder"],
        object_store_memory=100 * 1024 * 1024,
        logging_level="ERROR",
        log_to_driver=False,
    )
    serve.start(
        grpc_options=gRPCOptions(port=order["port"], grpc_servicer_functions=[_SERVICER]),
        http_options={"host": "127.0.0.1", "port": order["http_port"]},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    for name in names:
        serve.run(
            application(order["folder"], order["codebook"], shard_count, tuned=name == "tuned"),
            name=name,
            route_prefix=f"/{name}",
        )
    print(f"127.0.0.1:{order['port']}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
