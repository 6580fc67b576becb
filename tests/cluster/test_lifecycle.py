"""Does a cluster come up once, change its shape while it serves, and go away?"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest
from shoal.client import AsyncClient
from shoal.cluster.lifecycle import AlreadyUpError, up

from tests.cluster.conftest import RunningCluster, read_jsonl, xquad_file
from tests.cluster.traffic import Traffic

pytestmark = pytest.mark.cluster


async def _whole(client: AsyncClient, **scale: int) -> None:
    async with asyncio.timeout(90):
        while True:
            status = await client.cluster_status()
            desired = {name: getattr(status.desired, name) for name in scale}
            if desired == scale and status.whole:
                return
            await asyncio.sleep(0.2)


def test_a_second_up_is_refused_and_harms_nothing(cluster: RunningCluster) -> None:
    with pytest.raises(AlreadyUpError, match=cluster.info.endpoint):
        up(cluster.topology, cluster.home)
    with cluster.client() as client:
        assert client.cluster_status().whole


def test_services_have_the_priority_that_other_programs_have(cluster: RunningCluster) -> None:
    with cluster.client() as client:
        instances = client.cluster_status().instances
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    assert {each.id: os.getpriority(os.PRIO_PROCESS, each.pid) for each in instances} == {
        each.id: mine for each in instances
    }


def test_an_answer_proves_where_it_comes_from(cluster: RunningCluster) -> None:
    corpus = {each["_id"]: each for each in read_jsonl(xquad_file("corpus"))}
    with cluster.client() as client:
        response = client.search("xquad", "Who won Super Bowl 50?", explain=True)
    assert response.coverage.complete
    assert response.coverage.shards_searched == response.coverage.shards_total == 2
    assert response.explanation.encoder_model.startswith("all-minilm-l6-v2")
    assert response.explanation.timings
    for hit in response.hits:
        source = corpus[hit.document_id]["text"]
        assert hit.text == source[hit.span.start : hit.span.end]
        assert hit.provenance.index == "xquad"
        assert hit.provenance.table_version > 0
        assert hit.provenance.shard_server
        assert len(hit.content_hash) == 32


@pytest.mark.parametrize(
    "scale",
    [
        {"shards": 4},
        {"encoders": 2, "rerankers": 2},
        {"replicas": 2},
        {"shards": 2, "encoders": 1, "rerankers": 1, "replicas": 1},
    ],
    ids=str,
)
async def test_the_shape_changes_while_queries_run(
    scale: dict[str, int],
    cluster: RunningCluster,
    questions: list[str],
    state: Callable[[str], None],
) -> None:
    async with AsyncClient(cluster.info.endpoint) as client:
        await _whole(client)
        before = await client.search("xquad", questions[7], rerank=False, bypass_cache=True)
        traffic = Traffic(cluster.info.endpoint, "xquad", questions)
        running = asyncio.create_task(traffic.run())
        await client.scale(**scale)
        await _whole(client, **scale)
        traffic.stop()
        await running
        state(traffic.statement(f"scale to {scale}"))
        assert [each for each in traffic.outcomes if each.error] == []
        assert all(each.complete for each in traffic.outcomes)
        after = await client.search("xquad", questions[7], rerank=False, bypass_cache=True)
        assert [hit.document_id for hit in before.hits] == [hit.document_id for hit in after.hits]
