"""A cluster that the real controller controls, in one process: all of Shoal but Ray.

Instances are services on the test's own event loop, and the steps of a build run in threads; what
goes wrong with a step, and when it may go on, is up to the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shoal.client import AsyncClient
from shoal.cluster.config import ClusterConfig
from shoal.cluster.controller_server import ControllerService
from shoal.cluster.hosting import InstanceSpec, Placed, build_host
from shoal.cluster.roles import default_bundle
from shoal.cluster.steps import Step, StepFailedError, explain, function_of
from shoal.rpc.server import ServiceHost
from shoal.shard.build_job import BuildJob
from shoal.v1.cluster_pb2 import Role
from shoal.v1.indexes_pb2 import IndexVersion, IndexVersionState
from shoal.writer.encoding_job import RowRange

from tests.harness.shard_corpus import unit
from tests.harness.stand_ins import StandInEncoder

PATIENCE_S = 60.0
DIMENSION = 16


class OneProcess:
    """A platform whose instances all live here."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.hosts: dict[str, ServiceHost] = {}
        self.starting: dict[str, asyncio.Task[str]] = {}
        self.specs: dict[str, InstanceSpec] = {}
        self.steps: list[tuple[str, int]] = []
        """Steps that were begun, and their shard or -1."""
        self.ranges: list[int] = []
        """Passages that steps were given to encode by another model."""
        self.before: Callable[[Step, BuildJob], None] = lambda step, job: None
        """Called in the step's thread before it; what it raises fails the step."""
        self.gate = asyncio.Event()
        """Steps wait until it is set."""
        self.gate.set()

    def create(self, spec: InstanceSpec, resources: dict[str, float]) -> Placed:
        """Start a service."""
        self.specs[spec.id] = spec
        self.starting[spec.id] = self.loop.create_task(self._start(spec))
        return Placed(spec.id, None)

    async def _start(self, spec: InstanceSpec) -> str:
        listen = f"{spec.host}:{spec.port}"
        # Encoders of the declared model are stand-ins; further ones are what they are said to be.
        declared = spec.settings.get("bundle") == str(default_bundle("all-minilm-l6-v2-int8"))
        if spec.role == Role.ROLE_ENCODER and declared:
            host = ServiceHost(StandInEncoder(spec.id), listen)
        else:
            host = build_host(spec, listen)
        address = await host.start()
        self.hosts[spec.id] = host
        return address

    async def start_again(self, instance_id: str) -> None:
        """Start one that was stopped, where it listened, as Ray does."""
        address = await self.starting[instance_id]
        port = int(address.rpartition(":")[2])
        await self._start(replace(self.specs[instance_id], port=port))

    def placed_ids(self) -> list[str]:
        """All that live."""
        return sorted(self.starting)

    def find(self, instance_id: str) -> Placed | None:
        """Find one."""
        return Placed(instance_id, None) if instance_id in self.starting else None

    async def address(self, placed: Placed) -> tuple[str, str]:
        """Where it listens."""
        return await asyncio.shield(self.starting[placed.id]), "here"

    def remove(self, placed: Placed) -> None:
        """Stop it."""
        del self.starting[placed.id]
        host = self.hosts.pop(placed.id)
        asyncio.run_coroutine_threadsafe(host.stop(0), self.loop).result()

    def restart(self, placed: Placed) -> None:
        """Nothing hangs here."""
        raise AssertionError(f"{placed.id} was killed")

    async def run_step(self, step: Step, *arguments: Any) -> Any:
        """Run a step of a build in a thread."""
        second = arguments[1] if len(arguments) > 1 else -1
        if isinstance(second, RowRange):
            self.ranges.append(second.count)
            second = -1
        self.steps.append((step, second))
        await self.gate.wait()

        def run() -> Any:
            self.before(step, arguments[0])
            return function_of(step)(*arguments)

        try:
            return await asyncio.to_thread(run)
        except Exception as error:  # as the platform on Ray does
            raise StepFailedError(explain(error)) from error

    async def close(self) -> None:
        """Stop everything."""
        for host in self.hosts.values():
            await host.stop(0)


class Controlled:
    """The cluster, and the controller as it lives now."""

    def __init__(self, config: ClusterConfig, home: Path, platform: OneProcess) -> None:
        self.config, self.home, self.platform = config, home, platform
        self.controller: ServiceHost | None = None

    async def start_controller(self) -> None:
        """Have it begin to control, or go on."""
        service = ControllerService(self.config, self.home, self.platform)
        host = ServiceHost(service, "127.0.0.1:0")
        service_address = await host.start()
        service.introduce(service_address)
        self.service, self.controller = service, host

    async def kill_controller(self) -> None:
        """End it with its builds; the instances live on."""
        assert self.controller is not None
        host, self.controller = self.controller, None
        await host.stop(0)

    def version_folder(self, number: int) -> Path:
        """The folder of a version of the only index."""
        (index,) = (self.home / "data" / "indexes").iterdir()
        return index / "versions" / str(number)

    def serving(self) -> Any:
        """The only index, as it is published."""
        (index,) = self.service.loop.topology.indexes
        return index


@contextlib.asynccontextmanager
async def controlled(
    home: Path, *, shards: int = 2, platform: OneProcess | None = None, **declared: Any
) -> AsyncIterator[tuple[Controlled, AsyncClient]]:
    """A cluster that is whole, and a client of its broker."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = ClusterConfig.model_validate(
        {
            "broker_port": port,
            "scale": {"shards": shards, "rerankers": 0},
            "redis": {"mode": "off"},
            "shard": {"threads": 1, "follow_interval_s": 0.05},
            "broker": {"probe_interval_s": 0.05},
            "build": {"threads": 1},
        }
        | declared
    )
    cluster = Controlled(config, home, platform or OneProcess())
    await cluster.start_controller()
    try:
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            await until(lambda: _is_whole(client))
            yield cluster, client
    finally:
        if cluster.controller is not None:
            await cluster.kill_controller()
        await cluster.platform.close()


async def _is_whole(client: AsyncClient) -> bool:
    try:
        return (await client.cluster_status(timeout_s=1.0)).whole
    except Exception:  # noqa: BLE001  # it is starting
        return False


async def until(condition: Callable[[], Any]) -> Any:
    """Wait until something holds; return what it gave."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.02)


def clustered(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Vectors that lie as embeddings do."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((40, DIMENSION))[random.integers(0, 40, count)]
    return unit(centres + 0.5 * random.standard_normal(centres.shape))


async def fill(client: AsyncClient, name: str, vectors: NDArray[np.float32], first: int = 0) -> int:
    """Write a document for each vector, `d<number>`; return the table version."""
    summary = await client.upsert(
        name,
        [
            {"id": f"d{number}", "text": f"d{number}", "vector": row}
            for number, row in enumerate(vectors, first)
        ],
    )
    assert summary.acknowledged == len(vectors)
    return summary.table_version


async def ended(client: AsyncClient, name: str, number: int) -> IndexVersion:
    """Wait until a build has ended; return its version."""
    building = IndexVersionState.INDEX_VERSION_STATE_BUILDING

    async def look() -> IndexVersion | None:
        found = await client.index_versions(name)
        (version,) = [each for each in found.versions if each.number == number]
        return None if version.state == building else version

    version: IndexVersion = await until(look)
    return version


async def ids(client: AsyncClient, name: str, query: Sequence[float], count: int = 3) -> list[str]:
    """What is found, and by a complete answer."""
    answer = await client.search(name, query, top_k=count, bypass_cache=True)
    assert answer.coverage.complete
    return [hit.document_id for hit in answer.hits]
