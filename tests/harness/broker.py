"""A real broker over stand-ins, for tests of what it does when they fail."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

from shoal.broker.config import BrokerSettings
from shoal.broker.server import BrokerService
from shoal.filters.fields import Field, field_messages
from shoal.v1.search_pb2 import SearchResponse

from tests.harness.cluster import Caller, Cluster, Groups, ids_of, key_of, placement
from tests.harness.stand_ins import (
    DIMENSION,
    ENCODER_MODEL,
    RERANKER_MODEL,
    Library,
    StandInEncoder,
    StandInReranker,
    StandInShardServer,
    shard,
    vector_of,
)

WORDS = ["whale", "ship", "storm", "sail", "anchor", "reef", "gull", "wave", "island", "captain"]
TEXTS = {
    f"doc-{at}": f"{WORDS[at % 10]} {WORDS[at * 3 % 9]} {WORDS[at * 7 % 10]} {at}"
    for at in range(60)
}

ONE_SERVER: Groups = [((0, 1), ("shard-server-0",))]
TWO_SERVERS: Groups = [((0,), ("shard-server-0",)), ((1,), ("shard-server-1",))]
TWO_REPLICAS: Groups = [((0, 1), ("shard-server-0", "shard-server-1"))]


@dataclass
class Rig:
    """A broker, its stand-ins, and a caller."""

    cluster: Cluster
    caller: Caller
    library: Library
    encoder: StandInEncoder
    reranker: StandInReranker
    shards: dict[str, StandInShardServer]
    broker: BrokerService

    @property
    def under_way(self) -> int:
        """Searches that the broker has taken and not answered: nothing tells from outside."""
        return self.broker._search._active

    async def search(self, query: str = "whale ship", **fields: Any) -> SearchResponse:
        """Search the one index."""
        return await self.caller.search(query, **fields)

    def best(
        self, query: str = "whale ship", count: int = 10, without: int | None = None
    ) -> list[str]:
        """What should be found, if one shard is missing."""
        rows = [row for row in (0, 1) if row != without]
        return self.library.best(vector_of(query), count, self.library.rows_of(rows, 2))


@contextlib.asynccontextmanager
async def rigged(
    groups: Groups = TWO_SERVERS,
    *,
    reranker: bool = True,
    encoder: bool = True,
    fields: Iterable[Field] = (),
    **settings: Any,
) -> AsyncIterator[Rig]:
    """Start everything, with index `books`. fields: that it declares."""
    cluster, library = Cluster(), Library(TEXTS)
    index = placement("books", groups, dimension=DIMENSION, encoder_model=ENCODER_MODEL)
    index.fields.extend(field_messages(fields))
    cluster.indexes.append(index)
    servers = {
        id_: StandInShardServer(id_, library, key_of(index)) for _, ids in groups for id_ in ids
    }
    encoder_, reranker_ = StandInEncoder(), StandInReranker()
    broker = BrokerService(BrokerSettings(**{"probe_interval_s": 0.05, **settings}), "broker-0")
    try:
        if encoder:
            await cluster.add(encoder_)
        if reranker:
            await cluster.add(reranker_, model=RERANKER_MODEL)
        for server in servers.values():
            await cluster.add(server)
        await cluster.add(broker)
        await cluster.publish()
        caller = Caller(cluster.channel("broker-0"))
        yield Rig(cluster, caller, library, encoder_, reranker_, servers, broker)
    finally:
        await cluster.close()


__all__ = ["ONE_SERVER", "TWO_REPLICAS", "TWO_SERVERS", "Rig", "ids_of", "rigged", "shard"]
