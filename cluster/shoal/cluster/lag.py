"""When may shard servers forget what the last topology named?

Only once every broker has followed the new one for a while: until then a search that began under
the old one may still come for the old shards. What only adds shards is handed on at once.
"""

from __future__ import annotations

from typing import Final

from shoal.internal.v1.topology_pb2 import Topology
from shoal.rpc.topology import layouts_of

LAG_S: Final = 2.0


class ShardLag:
    """Decides which topology the shard servers get."""

    def __init__(self, topology: Topology) -> None:
        """topology: the one that shard servers have now."""
        self.topology = topology
        self._followed_epoch = -1
        self._followed_s = 0.0

    def advance(self, topology: Topology, *, brokers_follow: bool, now_s: float) -> Topology:
        """Say which topology the shard servers get now.

        brokers_follow: whether every broker that answers has taken `topology`.
        """
        if not brokers_follow:
            self._followed_epoch = -1
        elif self._followed_epoch < 0:
            self._followed_epoch, self._followed_s = topology.epoch, now_s
        lagged = self._followed_epoch >= 0 and now_s - self._followed_s >= LAG_S
        if lagged or _held(self.topology) <= _held(topology):
            self.topology = topology
        return self.topology


def _held(topology: Topology) -> set[tuple[str, str, int, int, int]]:
    return {
        (placement.shard_server, index.uid, layout.index_version, layout.shard_count, shard)
        for index in topology.indexes
        for layout in layouts_of(index)
        for placement in layout.placements
        for shard in placement.shards
    }
