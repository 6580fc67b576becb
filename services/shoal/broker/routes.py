"""Where do queries for an index go, by the topology that the broker follows now?

An immutable view, made anew for each epoch: a search reads one and never sees half of a change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from google.protobuf.timestamp_pb2 import Timestamp
from shoal.filters.fields import Field, read_fields
from shoal.internal.v1.shard_pb2 import LayoutKey
from shoal.internal.v1.topology_pb2 import IndexPlacement, Layout, SpacePlacement, Topology
from shoal.rpc.errors import ServiceError
from shoal.rpc.space_names import DEFAULT_SPACE
from shoal.v1.cluster_pb2 import Instance, InstanceState, Role
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import IndexVersionState, Rollout
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
    encoders: tuple[str, ...] | None = None
    """Ids of the encoders that serve its model; None if no encoder says what it serves: whichever
    there are."""
    standby: IndexRoute | None = None
    """The version that is kept loaded for a rollback."""
    candidate: IndexRoute | None = None
    """The version that a rollout has loaded."""
    rollout: Rollout | None = None
    """The rollout that is under way."""
    space: str = DEFAULT_SPACE
    """The vector space that it leads to."""
    spaces: Mapping[str, IndexRoute] = field(default_factory=dict)
    """The other spaces that can be searched, by name."""
    placed_spaces: tuple[SpacePlacement, ...] = ()
    """All other spaces, those too that are being built or loaded."""

    def in_space(self, name: str) -> IndexRoute:
        """The route to a space. Raises SPACE_NOT_FOUND, or VERSION_NOT_READY if it has none yet."""
        if name == DEFAULT_SPACE:
            return self
        if name in self.spaces:
            return self.spaces[name]
        for placed in self.placed_spaces:
            if placed.name == name:
                raise _not_ready(self.name, placed)
        known = ", ".join([DEFAULT_SPACE, *(each.name for each in self.placed_spaces)])
        raise ServiceError(
            Reason.REASON_SPACE_NOT_FOUND,
            f"index {self.name} has no vector space {name!r}: it has {known}",
        )

    def version(self, number: int) -> IndexRoute:
        """The route to a version that is loaded. Raises VERSION_NOT_READY, VERSION_OF_SPACE."""
        loaded = [each for each in (self, self.standby, self.candidate) if each is not None]
        for each in loaded:
            if each.index_version == number:
                return each
        for placed in self.placed_spaces:
            layouts = [each for each in (placed.serving, placed.preparing) if each.index_version]
            if number in [each.index_version for each in layouts]:
                raise ServiceError(
                    Reason.REASON_VERSION_OF_SPACE,
                    f"version {number} of index {self.name} is of its vector space {placed.name}: "
                    "name that in `spaces`, without `index_version`",
                )
        numbers = ", ".join(str(each.index_version) for each in loaded)
        raise ServiceError(
            Reason.REASON_VERSION_NOT_READY,
            f"version {number} of index {self.name} is not loaded ({numbers} are): promote it, or "
            "begin its rollout",
        )

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


def _not_ready(index: str, placed: SpacePlacement) -> ServiceError:
    what = f"vector space {placed.name} of index {index}"
    if placed.HasField("preparing"):
        said = f"{what} is being loaded: try again in a moment"
    elif placed.state == IndexVersionState.INDEX_VERSION_STATE_FAILED:
        said = f"{what} could not be built ({placed.message}): add it again, or drop it"
    else:
        said = f"{what} is being built: the versions of the index say how far that is"
    return ServiceError(Reason.REASON_VERSION_NOT_READY, said)


def routes_of(topology: Topology) -> Routes:
    """Read a topology."""
    addresses: dict[Role.ValueType, dict[str, str]] = {}
    encoders = _encoders_by_model(topology)
    for instance in topology.instances:
        drains = instance.state == InstanceState.INSTANCE_STATE_DRAINING
        if instance.address and (not drains or instance.role == Role.ROLE_SHARD_SERVER):
            addresses.setdefault(instance.role, {})[instance.id] = instance.address
    return Routes(
        epoch=topology.epoch,
        indexes={index.name: _route_of(index, encoders) for index in topology.indexes},
        addresses=addresses,
        reranker_models=tuple(
            sorted({each.model for each in topology.instances if _reranks(each)})
        ),
        reranks=topology.desired.rerankers > 0 or any(map(_reranks, topology.instances)),
    )


def _reranks(instance: Instance) -> bool:
    drains = instance.state == InstanceState.INSTANCE_STATE_DRAINING
    return instance.role == Role.ROLE_RERANKER and not drains


def _encoders_by_model(topology: Topology) -> dict[str, tuple[str, ...]]:
    """Ids of the encoders by the model that they say they serve; "" for those that say none."""
    found: dict[str, tuple[str, ...]] = {}
    for each in topology.instances:
        if each.role == Role.ROLE_ENCODER and each.state != InstanceState.INSTANCE_STATE_DRAINING:
            found[each.model] = (*found.get(each.model, ()), each.id)
    return found


def _route_of(index: IndexPlacement, encoders: Mapping[str, tuple[str, ...]]) -> IndexRoute:
    def route_to(layout: Layout) -> IndexRoute:
        return _layout_route(index, layout, encoders)

    return replace(
        route_to(index.serving),
        standby=route_to(index.standby) if index.HasField("standby") else None,
        candidate=route_to(index.candidate) if index.HasField("candidate") else None,
        rollout=index.rollout if index.HasField("rollout") else None,
        spaces={
            each.name: replace(route_to(each.serving), space=each.name)
            for each in index.spaces
            if each.HasField("serving")
        },
        placed_spaces=tuple(index.spaces),
    )


def _layout_route(
    index: IndexPlacement, layout: Layout, encoders: Mapping[str, tuple[str, ...]]
) -> IndexRoute:
    groups: dict[tuple[int, ...], list[str]] = {}
    for placement in layout.placements:
        groups.setdefault(tuple(placement.shards), []).append(placement.shard_server)
    model = layout.encoder_model or index.encoder_model
    return IndexRoute(
        name=index.name,
        uid=index.uid,
        dimension=layout.dimension or index.dimension,
        encoder_model=model,
        encoders=encoders.get(model) or (() if layout.encoder_model else encoders.get("")),
        create_time=index.create_time,
        index_version=layout.index_version,
        shard_count=layout.shard_count or index.preparing.shard_count,
        groups=tuple(ShardGroup(shards, tuple(servers)) for shards, servers in groups.items()),
        fields=read_fields(index.fields),
        standby_version=index.standby.index_version if index.HasField("standby") else None,
        recall_target=index.recall_target,
        declared_kind=index.declared_kind,
        feedback_disabled=index.feedback_disabled,
    )
