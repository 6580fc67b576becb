"""Does a service come up with health and reflection, refuse a taken port, drain, and let go?"""

import asyncio
import contextlib
import os
import signal
import socket
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from shoal.internal.v1.topology_pb2 import PublishTopologyRequest, Topology
from shoal.internal.v1.topology_pb2_grpc import TopologyServiceStub
from shoal.rpc.channels import open_channel
from shoal.rpc.errors import ServiceError
from shoal.rpc.server import PortInUseError, ServiceHost
from shoal.rpc.topology import TopologyFollower
from shoal.v1 import cluster_pb2
from shoal.v1.cluster_pb2_grpc import (
    ClusterServiceServicer,
    ClusterServiceStub,
    add_ClusterServiceServicer_to_server,
)
from shoal.v1.errors_pb2 import Reason


class Role(ClusterServiceServicer):
    """A service whose steps are recorded, and whose calls the test holds."""

    def __init__(self):
        self.follower = TopologyFollower("role-0")
        self.steps = []
        self.entered = asyncio.Event()
        self.finish = asyncio.Event()
        self.broken = None

    def register(self, server):
        add_ClusterServiceServicer_to_server(self, server)
        return ["shoal.v1.ClusterService"]

    async def start(self):
        if self.broken:
            raise self.broken
        self.steps.append("start")

    async def drain(self):
        self.steps.append("drain")

    async def stop(self):
        self.steps.append("stop")

    async def GetClusterStatus(self, request, context):
        self.entered.set()
        await self.finish.wait()
        return cluster_pb2.GetClusterStatusResponse(cluster="c")

    async def ScaleCluster(self, request, context):
        raise ServiceError(Reason.REASON_CONTROLLER_UNAVAILABLE, "away")


@pytest.fixture
async def role():
    return Role()


@contextlib.asynccontextmanager
async def hosted(role):
    host = ServiceHost(role, "127.0.0.1:0")
    address = await host.start()
    async with open_channel(address) as channel:
        yield host, channel
    await host.stop(0)


async def health(channel, service=""):
    answer = await health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(service=service), timeout=20
    )
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


async def test_health_answers_for_the_server_and_each_service(role):
    async with hosted(role) as (_, channel):
        for name in ("", "shoal.v1.ClusterService", "shoal.internal.v1.TopologyService"):
            assert await health(channel, name) == "SERVING"


async def test_reflection_lists_the_services(role):
    async with hosted(role) as (_, channel):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        async for answer in stub.ServerReflectionInfo(iter(requests), timeout=20):
            names = {each.name for each in answer.list_services_response.service}
        assert names == {
            "shoal.v1.ClusterService",
            "shoal.internal.v1.TopologyService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }


async def test_every_service_follows_the_topology_and_maps_errors(role):
    async with hosted(role) as (_, channel):
        request = PublishTopologyRequest(topology=Topology(epoch=3), instance_id="role-0")
        assert (await TopologyServiceStub(channel).PublishTopology(request, timeout=20)).epoch == 3
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ClusterServiceStub(channel).ScaleCluster(
                cluster_pb2.ScaleClusterRequest(), timeout=20
            )
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_port_in_use_is_said_so(role):
    async with hosted(role) as (host, _):
        with pytest.raises(PortInUseError, match=f"cannot listen on {host.address}: "):
            await ServiceHost(Role(), host.address).start()


async def test_a_service_that_cannot_start_gives_its_port_back(role):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    role.broken = FileNotFoundError("no such bundle")
    with pytest.raises(FileNotFoundError):
        await ServiceHost(role, address).start()
    role.broken = None
    host = ServiceHost(role, address)
    assert await host.start() == address
    await host.stop(0)


async def test_stopping_finishes_the_calls_under_way(role):
    async with hosted(role) as (host, channel):
        stub = ClusterServiceStub(channel)
        answer = asyncio.ensure_future(
            stub.GetClusterStatus(cluster_pb2.GetClusterStatusRequest(), timeout=20)
        )
        async with asyncio.timeout(20):
            await role.entered.wait()
        stopping = asyncio.ensure_future(host.stop(grace_s=20))
        async with asyncio.timeout(20):
            while "drain" not in role.steps:
                await asyncio.sleep(0.002)
        assert not stopping.done()
        role.finish.set()
        assert (await answer).cluster == "c"
        await stopping
    assert role.steps == ["start", "drain", "stop"]


async def test_stopping_twice_or_before_the_start_does_nothing(role):
    await ServiceHost(role, "127.0.0.1:0").stop()
    async with hosted(role) as (host, _):
        await host.stop(0)
    assert role.steps == ["start", "drain", "stop"]


SCRIPT = """
import asyncio
from shoal.rpc.server import ServiceHost
from shoal.rpc.topology import TopologyFollower

class Role:
    follower = TopologyFollower("role-0")
    def register(self, server): return []
    async def start(self): pass
    async def drain(self): print("drained", flush=True)
    async def stop(self): print("stopped", flush=True)

asyncio.run(ServiceHost(Role(), "127.0.0.1:0").serve())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_process_prints_its_address_and_stops_on_a_signal(number):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, stdout=asyncio.subprocess.PIPE, env=os.environ.copy()
    )
    try:
        async with asyncio.timeout(60):
            address = (await process.stdout.readline()).decode().strip()
            async with open_channel(address) as channel:
                assert await health(channel) == "SERVING"
            process.send_signal(number)
            rest = (await process.stdout.read()).decode().split()
            assert await process.wait() == 0
        assert rest == ["drained", "stopped"]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
