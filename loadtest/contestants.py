"""What is measured: which processes make up each composition, and where are they asked?"""

from __future__ import annotations

import json
import socket
import tempfile
import time
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
import numpy as np
from shoal.internal.v1.topology_pb2 import (
    IndexPlacement,
    Layout,
    PublishTopologyRequest,
    PublishTopologyResponse,
    ShardPlacement,
    Topology,
)
from shoal.internal.v1.topology_pb2_grpc import TopologyServiceStub
from shoal.shard.codebook import train_codebook
from shoal.table.slots import shard_of, slots_of
from shoal.v1.cluster_pb2 import Instance, InstanceState, Role, Scale
from shoal.v1.search_pb2 import SearchRequest, SearchResponse, VectorType
from shoal.v1.search_pb2 import Vectors as VectorsMessage
from shoal.v1.search_pb2_grpc import SearchServiceStub

from loadtest.processes import ServerProcess
from loadtest.shard_indexes import write_shards
from loadtest.vectors import Vectors, document_id

INDEX: Final = "bench"
_START_TIMEOUT_S: Final = 300.0
_POLL_S: Final = 0.25


class Contestant(Protocol):
    """A composition that answers SearchService.Search."""

    name: str
    address: str
    index: str
    application: str
    pids: list[int]
    searches: bool

    def stop(self) -> None:
        """Stop what it started."""
        ...


class ShoalProcesses:
    """A broker and a shard server that holds all shards, told of each other as by a controller."""

    name = "shoal"
    index = INDEX
    application = ""
    searches = True

    def __init__(self, vectors: Vectors, table: Path, shard_count: int, threads: int) -> None:
        """Start both and wait until every shard is ready."""
        folder = vectors.folder
        self.codebook = folder / "codebook"
        manifest = train_codebook(
            str(table), self.codebook, queries=vectors.tuning_queries, threads=threads
        )
        self.description = {"threads": threads} | manifest.model_dump(mode="json")
        self._shards = ServerProcess(
            _command("shard", "shard-server-0-0", "--threads", str(threads)),
            folder / "shard.log",
            threads=threads,
        )
        self._broker = ServerProcess(
            _command("broker", "broker-0"), folder / "broker.log", threads=1
        )
        self.pids = [self._broker.pid, self._shards.pid]
        try:
            shards = self._shards.read_line(_START_TIMEOUT_S)
            self.address = self._broker.read_line(_START_TIMEOUT_S)
            topology = self._topology(vectors, table, shard_count, shards)
            _publish_until_ready(shards, "shard-server-0-0", topology, shard_count)
            _publish_until_ready(self.address, "broker-0", topology, 0)
        except BaseException:
            self.stop()
            raise

    def _topology(self, vectors: Vectors, table: Path, shard_count: int, shards: str) -> Topology:
        layout = Layout(
            index_version=1,
            codebook_uri=str(self.codebook),
            shard_count=shard_count,
            placements=[ShardPlacement(shard_server="shard-server-0-0", shards=range(shard_count))],
        )
        index = IndexPlacement(
            name=INDEX,
            uid="bench",
            table_uri=str(table),
            dimension=vectors.chosen.dimension,
            serving=layout,
        )
        roles = {
            "broker-0": (Role.ROLE_BROKER, self.address),
            "shard-server-0-0": (Role.ROLE_SHARD_SERVER, shards),
        }
        return Topology(
            cluster="bench",
            epoch=1,
            desired=Scale(shards=shard_count, replicas=1, shard_servers=1, brokers=1),
            instances=[
                Instance(
                    id=name, role=role, address=address, state=InstanceState.INSTANCE_STATE_READY
                )
                for name, (role, address) in roles.items()
            ],
            indexes=[index],
        )

    def sample(self, query: np.ndarray, top_k: int) -> SearchResponse:
        """One real answer."""
        request = SearchRequest(
            index=INDEX,
            vector=VectorsMessage(
                values=query.astype("<f4").tobytes(),
                count=1,
                dimension=len(query),
                type=VectorType.VECTOR_TYPE_FLOAT32,
            ),
            top_k=top_k,
            omit_text=True,
            bypass_cache=True,
        )
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        with _channel(self.address) as channel:
            while True:
                try:
                    answer = SearchServiceStub(channel).Search(request, timeout=5.0)
                except grpc.RpcError as error:
                    problem = f"{error.code().name}: {error.details()}"
                else:
                    if answer.coverage.complete:
                        return answer
                    problem = str(answer.coverage)
                # The broker asks the shard server a few times a second whether it is there.
                if time.monotonic() > deadline_s:
                    raise SystemExit(f"the broker does not answer: {problem}")
                time.sleep(_POLL_S)

    def stop(self) -> None:
        """Stop both."""
        self._broker.stop()
        self._shards.stop()


class Echo:
    """A server that does nothing, with answers of the size of Shoal's."""

    name = "echo"
    index = INDEX
    application = ""
    searches = False

    def __init__(self, shoal: ShoalProcesses, vectors: Vectors, top_k: int) -> None:
        """Store a real answer and start the server with it."""
        stored = vectors.folder / "answer.bin"
        stored.write_bytes(shoal.sample(vectors.queries[0], top_k).SerializeToString())
        self._process = ServerProcess(
            ["-m", "loadtest.echo_server", str(stored)], vectors.folder / "echo.log", threads=1
        )
        self.address = self._process.read_line(_START_TIMEOUT_S)
        self.pids = [self._process.pid]

    def stop(self) -> None:
        """Stop the server."""
        self._process.stop()


class RayServe:
    """Ray, private to this run, with one or two applications of Ray Serve."""

    def __init__(self, codebook: Path, vectors: Vectors, shard_count: int, *, tuned: bool) -> None:
        """codebook: the folder that Shoal searches with. Start Ray and the applications."""
        ids = [document_id(row) for row in range(len(vectors.rows))]
        shards = vectors.folder / f"shards-{shard_count}"
        write_shards(vectors.rows, shard_of(slots_of(ids), shard_count), shards)
        # Ray's sockets need a short path.
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        self._names = ["documented", "tuned"] if tuned else ["documented"]
        order = {
            "applications": self._names,
            "shard_count": shard_count,
            "folder": str(shards),
            "codebook": str(codebook),
            "temp_folder": self._folder.name,
            "port": _free_port(),
            "http_port": _free_port(),
        }
        self._process = ServerProcess(
            ["-m", "loadtest.ray_serve_app", json.dumps(order)],
            vectors.folder / "serve.log",
            threads=1,
        )
        self._address = self._process.read_line(_START_TIMEOUT_S)

    def applications(self) -> list[Contestant]:
        """The applications that run."""
        pids = [self._process.pid]
        found: list[Contestant] = [_Application("ray-serve", self._address, "documented", pids)]
        if len(self._names) > 1:
            found.append(_Application("ray-serve-tuned", self._address, "tuned", pids))
        return found

    def stop(self) -> None:
        """Stop the applications and Ray."""
        self._process.stop()
        self._folder.cleanup()


class _Application:
    index = INDEX
    searches = True

    def __init__(self, name: str, address: str, application: str, pids: list[int]) -> None:
        self.name, self.address, self.application, self.pids = name, address, application, pids

    def stop(self) -> None:
        """Nothing of its own runs."""


def _command(role: str, instance_id: str, *options: str) -> list[str]:
    listen = ["--listen", "127.0.0.1:0", "--instance-id", instance_id]
    return ["-m", f"shoal.{role}", *listen, *options]


def _channel(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])


def _publish_until_ready(
    address: str, instance_id: str, topology: Topology, shard_count: int
) -> None:
    """Tell an instance the topology until it follows it and all its shards can be searched."""
    request = PublishTopologyRequest(topology=topology, instance_id=instance_id)
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    answer = PublishTopologyResponse()
    with _channel(address) as channel:
        while time.monotonic() < deadline_s:
            answer = TopologyServiceStub(channel).PublishTopology(request, timeout=10.0)
            if answer.refusal:
                raise SystemExit(f"{instance_id} refuses the topology: {answer.refusal}")
            if sum(shard.ready for shard in answer.shards) == shard_count:
                return
            time.sleep(_POLL_S)
    raise SystemExit(f"{instance_id} is not ready after {_START_TIMEOUT_S:.0f} s: {answer.shards}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: Any = probe.getsockname()[1]
        return int(port)
