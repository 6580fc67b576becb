"""How are a writer, a broker and two replicas of an index started without Ray?

As processes, by the commands that an operator would use, and told of each other as the controller
does it. The index is written in one go, trained, and served by IVF-PQ.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import grpc
from shoal.internal.v1.shard_pb2 import LayoutKey
from shoal.internal.v1.topology_pb2 import (
    IndexPlacement,
    Layout,
    PublishTopologyRequest,
    ShardPlacement,
    Topology,
)
from shoal.internal.v1.topology_pb2_grpc import TopologyServiceStub
from shoal.internal.v1.writer_pb2 import CatalogEntry, CreateTableRequest
from shoal.internal.v1.writer_pb2_grpc import WriterServiceStub
from shoal.shard.codebook import train_codebook
from shoal.table import PassageTable
from shoal.v1.cluster_pb2 import Instance, InstanceState, Role, Scale

from loadtest.bench_table import append_rows
from loadtest.processes import ServerProcess
from loadtest.vectors import Vectors

INDEX: Final = "bench"
SERVERS: Final = ("shard-server-0-0", "shard-server-1-0")
_START_TIMEOUT_S: Final = 300.0
_POLL_S: Final = 0.25
_ROLES: Final = {
    "writer-0": Role.ROLE_WRITER,
    "broker-0": Role.ROLE_BROKER,
    **dict.fromkeys(SERVERS, Role.ROLE_SHARD_SERVER),
}


class Replicas:
    """The processes, with the index served by all of them."""

    def __init__(
        self, vectors: Vectors, folder: Path, shard_count: int, settings: tuple[str, ...] = ()
    ) -> None:
        """Start everything and wait until it is ready. folder: an empty one.

        settings: `key=value`, of the shard servers.
        """
        self.shard_count = shard_count
        self._folder, self._vectors = folder, vectors
        self._processes: dict[str, ServerProcess] = {}
        self.addresses: dict[str, str] = {}
        try:
            self._write()
            entry = self._create_again()
            codebook = folder / "codebook"
            train_codebook(entry.table_uri, codebook, queries=vectors.tuning_queries)
            for server in SERVERS:
                options = [word for each in settings for word in ("--set", each)]
                snapshots = str(folder / server)
                self._start(server, "shard", "--snapshot-dir", snapshots, *options)
            self._start("broker-0", "broker")
            self._publish(self._topology(entry, codebook))
        except BaseException:
            self.stop()
            raise

    @property
    def layout(self) -> LayoutKey:
        """What shard servers are asked for."""
        return LayoutKey(index_uid=self._uid, index_version=1, shard_count=self.shard_count)

    def log_of(self, name: str) -> Path:
        """The log of a process."""
        return self._folder / f"{name}.log"

    def stop(self) -> None:
        """Stop everything."""
        for process in reversed(self._processes.values()):
            process.stop()

    def _start(self, name: str, role: str, *options: str) -> None:
        arguments = ["-m", f"shoal.{role}", "--listen", "127.0.0.1:0", "--instance-id", name]
        process = ServerProcess([*arguments, *options], self.log_of(name), threads=1)
        self._processes[name] = process
        self.addresses[name] = process.read_line(_START_TIMEOUT_S)

    def _start_writer(self) -> None:
        self._start("writer-0", "writer", "--data", str(self._folder / "data"))

    def _write(self) -> None:
        """Write the vectors while no writer has the table open."""
        self._start_writer()
        entry = self._create_again()
        self._processes.pop("writer-0").stop()
        append_rows(PassageTable.open(entry.table_uri), self._vectors.rows, first=0)
        self._start_writer()

    def _create_again(self) -> CatalogEntry:
        """Make the index; a second call finds it, by its request id."""
        request = CreateTableRequest(
            name=INDEX, dimension=self._vectors.chosen.dimension, request_id="bench"
        )
        with channel(self.addresses["writer-0"]) as opened:
            entry: CatalogEntry = WriterServiceStub(opened).CreateTable(request, timeout=30.0).entry
        self._uid = entry.uid
        return entry

    def _topology(self, entry: CatalogEntry, codebook: Path) -> Topology:
        shards = range(self.shard_count)
        layout = Layout(
            index_version=1,
            codebook_uri=str(codebook),
            shard_count=self.shard_count,
            placements=[
                ShardPlacement(shard_server=server, replica=replica, shards=shards)
                for replica, server in enumerate(SERVERS)
            ],
        )
        index = IndexPlacement(
            name=INDEX,
            uid=entry.uid,
            table_uri=entry.table_uri,
            dimension=entry.dimension,
            serving=layout,
        )
        ready = InstanceState.INSTANCE_STATE_READY
        return Topology(
            cluster="bench",
            epoch=1,
            desired=Scale(shards=self.shard_count, replicas=2, shard_servers=1, brokers=1),
            instances=[
                Instance(id=name, role=_ROLES[name], address=address, state=ready)
                for name, address in self.addresses.items()
            ],
            indexes=[index],
        )

    def _publish(self, topology: Topology) -> None:
        """Tell everybody, until every shard can be searched."""
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        for name, address in self.addresses.items():
            wanted = self.shard_count if name in SERVERS else 0
            with channel(address) as opened:
                stub = TopologyServiceStub(opened)
                request = PublishTopologyRequest(topology=topology, instance_id=name)
                while True:
                    answer = stub.PublishTopology(request, timeout=10.0)
                    if answer.refusal:
                        raise SystemExit(f"{name} refuses the topology: {answer.refusal}")
                    if sum(shard.ready for shard in answer.shards) == wanted:
                        break
                    if time.monotonic() > deadline_s:
                        raise SystemExit(f"{name} is not ready: {answer.shards}")
                    time.sleep(_POLL_S)


def channel(address: str) -> Any:
    """A connection to a server on this machine."""
    return grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
