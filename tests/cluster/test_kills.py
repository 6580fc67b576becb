"""Does the cluster become whole by itself after any one process was killed, and at what cost?

kill -9 of each process in turn, under 20 queries a second. Every answer is checked for its own word
on coverage; afterwards every document that was acknowledged is still found.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import psutil
import pytest
from shoal.client import AsyncClient, ShoalError
from shoal.v1.cluster_pb2 import GetClusterStatusResponse

from tests.cluster.conftest import RunningCluster
from tests.cluster.traffic import Traffic

pytestmark = pytest.mark.cluster

WHOLE_AGAIN_WITHIN_S = 60.0


@pytest.mark.parametrize(
    "victim",
    [
        "broker-0",
        "encoder-0",
        "reranker-0",
        "shard-server-0-0",
        "writer-0",
        "controller",
        "redis-0",
        "redis-server",
    ],
)
async def test_kill_9(
    victim: str, cluster: RunningCluster, questions: list[str], state: Callable[[str], None]
) -> None:
    async with AsyncClient(cluster.info.endpoint) as client:
        before = await _whole(client)
        pid = _pid_of(victim, before)
        written = await client.upsert("xquad", [{"id": f"kept-{victim}", "text": f"kept {victim}"}])
        assert written.acknowledged == 1
        traffic = Traffic(cluster.info.endpoint, "xquad", questions)
        running = asyncio.create_task(traffic.run())
        await _until_answered(traffic, 20)
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(_gone, pid)
        after = await _whole(client, without_pid=pid)
        await _until_answered(traffic, len(traffic.outcomes) + 40)
        traffic.stop()
        await running
        state(traffic.statement(f"kill -9 of {victim}"))

        assert _pid_of(victim, after) != pid
        errors = [each.error for each in traffic.outcomes[-20:] if each.error]
        assert errors == [], "once whole, nothing fails"
        (kept,) = (await client.get("xquad", [f"kept-{victim}"])).documents
        assert kept.text == f"kept {victim}"
        response = await client.search("xquad", f"kept {victim}", rerank=False, top_k=100)
        assert f"kept-{victim}" in {hit.document_id for hit in response.hits}
        if victim not in ("broker-0", "shard-server-0-0", "encoder-0"):
            failed = [each.error for each in traffic.outcomes if each.error]
            assert failed == [], f"queries do not need {victim}"


def _pid_of(victim: str, status: GetClusterStatusResponse) -> int:
    pids = {instance.id: instance.pid for instance in status.instances}
    if victim != "redis-server":
        return pids[victim]
    (server,) = [
        child
        for child in psutil.Process(pids["redis-0"]).children(recursive=True)
        if "redis-server" in child.name()
    ]
    return server.pid


def _gone(pid: int) -> None:
    try:
        psutil.Process(pid).wait(timeout=30)
    except psutil.NoSuchProcess:
        return


async def _whole(client: AsyncClient, without_pid: int = -1) -> GetClusterStatusResponse:
    """Wait until the cluster says that it is whole, and has noticed that a process is gone."""
    status = GetClusterStatusResponse()
    async with asyncio.timeout(WHOLE_AGAIN_WITHIN_S):
        while True:
            try:
                status = await client.cluster_status()
            except ShoalError:
                await asyncio.sleep(0.2)
                continue
            if status.whole and without_pid not in {each.pid for each in status.instances}:
                return status
            await asyncio.sleep(0.2)


async def _until_answered(traffic: Traffic, count: int) -> None:
    async with asyncio.timeout(WHOLE_AGAIN_WITHIN_S):
        while len(traffic.outcomes) < count:
            await asyncio.sleep(0.05)
