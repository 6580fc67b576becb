"""Where do queries for an index go, by the topology that the broker follows now?

An immutable view, made anew for each epoch: a search reads one and never sees half of a change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf.timestamp_pb2 import Timestamp
from shoal.filters.fields import Field, read_fields
from shoal.internal.v1.shard_pb2 import LayoutKey
from shoal.internal.v1.topology_pb2 import IndexPlacement, Topology
from shoal.rpc.errors import ServiceError
from shoal.v1.cluster_pb2 import Instance, InstanceState, Role
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import SearchKind


@dataclass(frozen=True)
class ShardGroup:
    """Shards that stand together on one server of each replica set."""

    shards: tuple[int, ...]
    servers: tuple[str, ...]
    """Ids of the shard servers that hold them, one a replica."""


@dataclass(frozen=True)
class IndexRoute:
    """An index and its serving layout."""

    name: str
    uid: str
    dimension: int
    encoder_model: str
    create_time: Timestamp
    index_version: int
    shard_count: int
    groups: tuple[ShardGroup, ...]
    """One call to one server of each group covers the index. Empty while it loads."""
    fields: tuple[Field, ...] = ()
    """Of the documents' metadata, that searches can filter by."""
    standby_version: int | None = None
    """Version that is kept loaded for a rollback; None if there is none."""
    recall_target: float = 0.0
    """Recall at 10 that versions are built to reach; 0 for the default."""
    declared_kind: int = SearchKind.SEARCH_KIND_UNSPECIFIED
    """Kind that versions are built as; unspecified if it is chosen."""
    feedback_disabled: bool = False
    """True if nothing of its searches is kept to learn from."""

    @property
    def layout(self) -> LayoutKey:
        """The layout that queries name."""
        return LayoutKey(
            index_uid=self.uid, index_version=self.index_version, shard_count=self.shard_count
        )

    @property
    def key(self) -> tuple[str, int, int]:
        """The layout, hashable."""
        return self.uid, self.index_version, self.shard_count


@dataclass(frozen=True)
class Routes:
    """A topology, as a broker reads it."""

    epoch: int = 0
    indexes: Mapping[str, IndexRoute] = field(default_factory=dict)
    addresses: Mapping[Role.ValueType, Mapping[str, str]] = field(default_factory=dict)
    """By role: address of each instance by id. Those that drain are left out, but for shard
    servers, which a layout may still need."""
    reranker_models: tuple[str, ...] = ()
    """The bundles that the rerankers serve."""
    reranks: bool = False
    """Whether there are to be rerankers, be they there at the moment or not."""

    def index(self, name: str) -> IndexRoute:
        """Find an index. Raises INDEX_NOT_FOUND."""
        route = self.indexes.get(name)
        if route is None:
            known = ", ".join(sorted(self.indexes)[:5]) or "none yet"
            raise ServiceError(
                Reason.REASON_INDEX_NOT_FOUND,
                f"there is no index {name!r}: create it, or use one that there is ({known})",
            )
        return route

    def of_role(self, role: Role.ValueType) -> Mapping[str, str]:
        """Addresses of a role's instances, by id."""
        return self.addresses.get(role, {})


def routes_of(topology: Topology) -> Routes:
    """Read a topology."""
    addresses: dict[Role.ValueType, dict[str, str]] = {}
    for instance in topology.instances:
        drains = instance.state == InstanceState.INSTANCE_STATE_DRAINING
        if instance.address and (not drains or instance.role == Role.ROLE_SHARD_SERVER):
            addresses.setdefault(instance.role, {})[instance.id] = instance.address
    return Routes(
        epoch=topology.epoch,
        indexes={index.name: _route_of(index) for index in topology.indexes},
        addresses=addresses,
        reranker_models=tuple(
            sorted({each.model for each in topology.instances if _reranks(each)})
        ),
        reranks=topology.desired.rerankers > 0 or any(map(_reranks, topology.instances)),
    )


def _reranks(instance: Instance) -> bool:
    drains = instance.state == InstanceState.INSTANCE_STATE_DRAINING
    return instance.role == Role.ROLE_RERANKER and not drains


def _route_of(index: IndexPlacement) -> IndexRoute:
    groups: dict[tuple[int, ...], list[str]] = {}
    for placement in index.serving.placements:
        groups.setdefault(tuple(placement.shards), []).append(placement.shard_server)
    return IndexRoute(
        name=index.name,
        uid=index.uid,
        dimension=index.dimension,
        encoder_model=index.encoder_model,
        create_time=index.create_time,
        index_version=index.serving.index_version,
        shard_count=index.serving.shard_count or index.preparing.shard_count,
        groups=tuple(ShardGroup(shards, tuple(servers)) for shards, servers in groups.items()),
        fields=read_fields(index.fields),
        standby_version=index.standby.index_version if index.HasField("standby") else None,
        recall_target=index.recall_target,
        declared_kind=index.declared_kind,
        feedback_disabled=index.feedback_disabled,
    )
