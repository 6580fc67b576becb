"""A cluster of real services in one process: the bundles, Lance, FAISS, and gRPC between.

Two shard servers with a shard each, so that every search is fanned out, merged and fetched. What a
controller does is done by `tests.harness.cluster.control`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from shoal.broker.config import BrokerSettings
from shoal.broker.server import BrokerService
from shoal.client import AsyncClient
from shoal.encoder.config import EncoderSettings
from shoal.encoder.server import EncoderService
from shoal.reranker.config import RerankerSettings
from shoal.reranker.server import RerankerService
from shoal.shard.config import ShardSettings
from shoal.shard.server import ShardService
from shoal.writer.config import WriterSettings
from shoal.writer.server import WriterService

from tests.harness.cluster import Cluster, Groups, controlled

BUNDLES = Path(__file__).resolve().parents[2] / "deploy" / "bundles"
ENCODER = BUNDLES / "all-minilm-l6-v2-int8"
RERANKER = BUNDLES / "reranker-minilm-l12-int8"
GROUPS: Groups = [((0,), ("shard-server-0",)), ((1,), ("shard-server-1",))]


@contextlib.asynccontextmanager
async def real_cluster(
    data: Path,
    groups: Groups = GROUPS,
    *,
    writer: Mapping[str, Any] | None = None,
    broker: Mapping[str, Any] | None = None,
) -> AsyncIterator[Cluster]:
    """Start everything, and have it controlled. writer, broker: settings of those."""
    cluster = Cluster()
    try:
        await cluster.add(EncoderService(EncoderSettings(bundle=ENCODER), "encoder-0"))
        await cluster.add(RerankerService(RerankerSettings(bundle=RERANKER), "reranker-0"))
        for id_ in sorted({id_ for _, ids in groups for id_ in ids}):
            settings = ShardSettings(follow_interval_s=0.05, threads=1)
            await cluster.add(ShardService(settings, id_))
        await cluster.add(WriterService(WriterSettings(data=data, **(writer or {})), "writer-0"))
        brokers = BrokerSettings(**{"probe_interval_s": 0.05, **(broker or {})})
        await cluster.add(BrokerService(brokers, "broker-0"))
        await cluster.publish()
        async with controlled(cluster, groups):
            yield cluster
    finally:
        await cluster.close()


def client_of(cluster: Cluster) -> AsyncClient:
    """A client of the broker."""
    return AsyncClient(cluster.instances["broker-0"].address)
