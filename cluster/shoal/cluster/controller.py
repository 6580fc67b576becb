"""Given what is declared and what is seen, what should be published, and what should be done?

A pure function, `plan`: no clock, no network, no Ray. The loop that feeds it is in
controller_loop.py. What must not be forgotten between two calls is in `Memory`, which the loop
keeps and stores.

    declared, seen, memory, now  ──plan──>  memory' (with the topology to publish), actions
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from shoal.cluster.config import ClusterConfig, IndexScale, Scale
from shoal.cluster.index_plan import (
    Building,
    Growth,
    Standby,
    build_due,
    further_bundles,
    interrupted_build,
    is_encoded,
    plan_index,
    serves,
)
from shoal.cluster.placement import further_encoders, is_declared_encoder, wanted_instances
from shoal.internal.v1.topology_pb2 import (
    IndexPlacement,
    Layout,
    PublishTopologyResponse,
    Topology,
)
from shoal.internal.v1.writer_pb2 import CatalogEntry
from shoal.rpc.topology import layouts_of
from shoal.v1.cluster_pb2 import Instance, InstanceState, Role

# An instance is asked twice a second: three silences in a row are no coincidence.
SILENT_S: Final = 1.6
# One that is silent for so long, and that Ray did not restart, hangs: it is killed.
HUNG_S: Final = 30.0
# Between an instance's leaving the topology and its end: calls under way finish.
DRAIN_S: Final = 3.0


@dataclass(frozen=True)
class Seen:
    """What is known of an instance that was placed."""

    id: str
    role: Role.ValueType
    placed_s: float
    """When it was placed, on the clock of `plan`'s `now_s`."""
    address: str = ""
    """`host:port`; empty until it has started."""
    node: str = ""
    answered_s: float | None = None
    """When it answered last. None if it never did."""
    answer: PublishTopologyResponse | None = None
    """Its last answer."""
    error: str = ""
    """Why it could not be started, if it could not."""

    def is_ready(self, now_s: float) -> bool:
        """True if it has answered lately."""
        return self.answered_s is not None and now_s - self.answered_s < SILENT_S


@dataclass(frozen=True)
class Observed:
    """What the loop has seen."""

    instances: Mapping[str, Seen]
    """Every instance that was placed and not removed, by id."""
    catalogue: Sequence[CatalogEntry] | None
    """The writer's catalogue; None while it was never read."""
    building: Mapping[str, Building] = field(default_factory=dict)
    """Versions being built, or that failed, by the index's uid."""
    controller: Instance = field(default_factory=Instance)
    """The controller's own entry."""


@dataclass(frozen=True)
class Memory:
    """What `plan` must remember."""

    scale: Scale
    """The numbers in force: declared, then changed by the operator."""
    topology: Topology = field(default_factory=Topology)
    """The topology published last."""
    draining: Mapping[str, float] = field(default_factory=dict)
    """When each instance that is to go left the topology's service."""
    growth: Mapping[str, Growth] = field(default_factory=dict)
    """How each index has grown, by uid."""
    standby: Mapping[str, Standby] = field(default_factory=dict)
    """Which version of an index stands by, and since when, by uid."""
    planned_s: float = 0.0
    """When the step before this one was."""
    awake_s: float = 0.0
    """Since when steps have followed one another without a pause: silence before does not count."""
    index_scales: Mapping[str, IndexScale] = field(default_factory=dict)
    """Where indexes differ from the cluster's numbers, by uid."""

    def scale_of(self, index_uid: str) -> Scale:
        """The numbers in force for an index."""
        return self.index_scales.get(index_uid, IndexScale()).of(self.scale)


@dataclass(frozen=True)
class Create:
    """Place an instance."""

    id: str
    role: Role.ValueType
    bundle: str = ""
    """Of an encoder that is to serve another model than the declared one."""


@dataclass(frozen=True)
class Remove:
    """Stop an instance for good: it has drained."""

    id: str


@dataclass(frozen=True)
class Restart:
    """Kill an instance that hangs; Ray starts it again."""

    id: str


@dataclass(frozen=True)
class BuildFirst:
    """Build the first version of an index, and promote it."""

    entry: CatalogEntry


@dataclass(frozen=True)
class Abandon:
    """Say of a build that it failed: nobody is at it any more."""

    entry: CatalogEntry
    index_version: int


Action = Create | Remove | Restart | BuildFirst | Abandon


def plan(
    config: ClusterConfig, memory: Memory, observed: Observed, now_s: float
) -> tuple[Memory, list[Action]]:
    """Decide one step. Calling it again with what came of it changes nothing more.

    now_s: of a monotonic clock, in seconds.
    """
    paused = now_s - memory.planned_s > SILENT_S
    memory = replace(memory, planned_s=now_s, awake_s=now_s if paused else memory.awake_s)
    further = _further_encoders(config, memory, observed)
    wanted = wanted_instances(config, memory.scale) | dict.fromkeys(further, Role.ROLE_ENCODER)
    indexes = _plan_indexes(config, memory, observed, now_s)
    draining = _plan_draining(wanted, indexes, memory, observed, now_s)
    growth = _watch_growth(memory, observed, now_s)
    actions: list[Action] = [
        Create(id_, role, further.get(id_, ""))
        for id_, role in wanted.items()
        if id_ not in observed.instances
    ]
    actions += _plan_removals(memory, observed, draining, now_s)
    actions += [
        Restart(seen.id)
        for seen in observed.instances.values()
        if _hangs(seen, memory.awake_s, now_s)
    ]
    actions += _plan_builds(config, observed, growth, now_s)
    topology = _assemble(config, memory, observed, indexes, draining, now_s)
    memory = replace(
        memory,
        topology=topology,
        draining=draining,
        growth=growth,
        standby=_watch_standby(memory, topology, now_s),
        index_scales=_kept(memory, observed),
    )
    return memory, actions


def problems(config: ClusterConfig, memory: Memory, observed: Observed, now_s: float) -> list[str]:
    """Say what differs from what is declared, a sentence each. Empty if the cluster is whole."""
    found = []
    further = _further_encoders(config, memory, observed)
    wanted = wanted_instances(config, memory.scale) | dict.fromkeys(further, Role.ROLE_ENCODER)
    for id_ in wanted:
        seen = observed.instances.get(id_)
        if seen is None or not seen.address:
            reason = f": {seen.error}" if seen is not None and seen.error else ""
            found.append(f"{id_} is being started{reason}")
        elif not seen.is_ready(now_s):
            found.append(f"{id_} does not answer at {seen.address}; it is restarted by itself")
        elif seen.answer is not None and seen.answer.refusal:
            found.append(f"{id_} refuses the topology: {seen.answer.refusal}")
        elif seen.answer is not None and seen.answer.problem:
            found.append(f"{id_}: {seen.answer.problem}")
    found += [f"{id_} is draining" for id_ in observed.instances if id_ not in wanted]
    found += _index_problems(memory, observed, now_s)
    if observed.catalogue is None:
        found.append("the writer's catalogue was not read yet")
    return found


def _index_problems(memory: Memory, observed: Observed, now_s: float) -> list[str]:
    found = []
    answers = ready_answers(observed, now_s)
    for index in memory.topology.indexes:
        if not index.HasField("serving"):
            found.append(f"index {index.name} is being loaded for the first time")
        elif not serves(index.serving, index.uid, answers):
            found.append(f"index {index.name} has shards that no shard server has ready")
        elif index.HasField("preparing"):
            found.append(_prepared(f"index {index.name}", index.preparing))
        elif index.serving.shard_count != memory.scale_of(index.uid).shards:
            found.append(f"index {index.name} is to be divided otherwise")
        found += [
            f"version {each.index_version} of index {index.name}, which does not serve, is being "
            f"divided into {each.shard_count} shards"
            for each in index.dividing
        ]
        found += _space_problems(index, answers)
        found += _notes(index, answers)
    found += [
        f"index {entry.name}: {entry.drift_alert}"
        for entry in observed.catalogue or ()
        if entry.drift_alert
    ]
    return found


def _prepared(what: str, layout: Layout) -> str:
    """What is said of something that is being loaded beside what serves."""
    return (
        f"{what} is being prepared in {layout.shard_count} shards at version "
        f"{layout.index_version}; the old layout serves"
    )


def _space_problems(
    index: IndexPlacement, answers: Mapping[str, PublishTopologyResponse]
) -> list[str]:
    found = []
    for space in index.spaces:
        what = f"vector space {space.name} of index {index.name}"
        if space.HasField("serving"):
            if not serves(space.serving, index.uid, answers):
                found.append(f"{what} has shards that no shard server has ready")
            elif not is_encoded(space.serving, answers):
                found.append(f"{what} has no encoder that answers")
            elif space.HasField("preparing"):
                found.append(_prepared(what, space.preparing))
        elif space.HasField("preparing"):
            found.append(f"{what} is being loaded for the first time")
    return found


def _notes(index: IndexPlacement, answers: Mapping[str, PublishTopologyResponse]) -> list[str]:
    """What is wrong with shards that serve all the same."""
    notes = [
        f"index {index.name}, {id_}: {state.message}"
        for id_, answer in sorted(answers.items())
        for state in answer.shards
        if state.ready and state.message and state.layout.index_uid == index.uid
    ]
    # What is said of a server's shards together is said once.
    return list(dict.fromkeys(notes))


def ready_answers(observed: Observed, now_s: float) -> dict[str, PublishTopologyResponse]:
    """The last answers of the instances that answer, by id."""
    return {
        seen.id: seen.answer
        for seen in observed.instances.values()
        if seen.answer is not None and seen.is_ready(now_s)
    }


def _plan_indexes(
    config: ClusterConfig, memory: Memory, observed: Observed, now_s: float
) -> list[IndexPlacement]:
    if observed.catalogue is None:  # No writer yet: go on with what was published.
        return list(memory.topology.indexes)
    before = {index.uid: index for index in memory.topology.indexes}
    answers = ready_answers(observed, now_s)
    plans = []
    for entry in observed.catalogue:

        def keeps_standby(version: int, uid: str = entry.uid) -> bool:
            stands = memory.standby.get(uid)
            if stands is None or stands.index_version != version:
                return config.standby_s > 0
            return now_s - stands.since_s < config.standby_s

        plans.append(
            plan_index(
                entry, before.get(entry.uid), memory.scale_of(entry.uid), answers, keeps_standby
            )
        )
    return plans


def _plan_builds(
    config: ClusterConfig, observed: Observed, growth: Mapping[str, Growth], now_s: float
) -> list[Action]:
    actions: list[Action] = []
    for entry in observed.catalogue or ():
        building = observed.building.get(entry.uid)
        if build_due(entry, growth[entry.uid], building, config.train_at_passages, now_s):
            actions.append(BuildFirst(entry))
        interrupted = interrupted_build(entry, building)
        if interrupted is not None:
            actions.append(Abandon(entry, interrupted))
    return actions


def _watch_standby(memory: Memory, topology: Topology, now_s: float) -> dict[str, Standby]:
    """Say since when each version that stands by has done so."""
    standby = {}
    for index in topology.indexes:
        if index.HasField("standby"):
            version = index.standby.index_version
            before = memory.standby.get(index.uid)
            if before is None or before.index_version != version:
                before = Standby(version, now_s)
            standby[index.uid] = before
    return standby


def _kept(memory: Memory, observed: Observed) -> Mapping[str, IndexScale]:
    """Forget the numbers of indexes that were dropped."""
    if observed.catalogue is None:
        return memory.index_scales
    uids = {entry.uid for entry in observed.catalogue}
    return {uid: scale for uid, scale in memory.index_scales.items() if uid in uids}


def _further_encoders(config: ClusterConfig, memory: Memory, observed: Observed) -> dict[str, str]:
    """The encoders of models that only some versions of indexes have, and the bundle of each."""
    if observed.catalogue is None:  # Not known yet: those that are there stay.
        return {
            id_: ""
            for id_, seen in observed.instances.items()
            if seen.role == Role.ROLE_ENCODER and not is_declared_encoder(id_)
        }
    bundles = further_bundles(observed.catalogue)
    bundles.pop(_default_model(memory, observed), None)  # The declared ones do it.
    return further_encoders(config, memory.scale, bundles)


def _default_model(memory: Memory, observed: Observed) -> str:
    """The declared encoders' model, as they say; what was known before while none is there."""
    for id_, seen in sorted(observed.instances.items()):
        is_encoder = seen.role == Role.ROLE_ENCODER and is_declared_encoder(id_)
        if is_encoder and seen.answer is not None and seen.answer.model:
            return seen.answer.model
    return memory.topology.default_encoder_model


def _plan_draining(
    wanted: Mapping[str, Role.ValueType],
    indexes: Sequence[IndexPlacement],
    memory: Memory,
    observed: Observed,
    now_s: float,
) -> dict[str, float]:
    """Say since when each instance that is to go has been out of service.

    A shard server goes only when no layout needs it any more.
    """
    needed = {
        placement.shard_server
        for index in indexes
        for layout in layouts_of(index)
        for placement in layout.placements
    }
    return {
        id_: memory.draining.get(id_, now_s)
        for id_ in observed.instances
        if id_ not in wanted and id_ not in needed
    }


def _plan_removals(
    memory: Memory, observed: Observed, draining: Mapping[str, float], now_s: float
) -> list[Action]:
    """Remove what has drained: every ready broker follows a topology without it."""
    followed = all(
        seen.answer is not None and seen.answer.epoch >= memory.topology.epoch
        for seen in observed.instances.values()
        if seen.role in (Role.ROLE_BROKER, Role.ROLE_WRITER) and seen.is_ready(now_s)
    )
    return [
        Remove(id_) for id_, since_s in draining.items() if followed and now_s - since_s >= DRAIN_S
    ]


def _hangs(seen: Seen, awake_s: float, now_s: float) -> bool:
    last_s = max(seen.placed_s, seen.answered_s or 0.0, awake_s)
    return bool(seen.address) and now_s - last_s > HUNG_S


def _watch_growth(memory: Memory, observed: Observed, now_s: float) -> dict[str, Growth]:
    return {
        entry.uid: memory.growth.get(entry.uid, Growth(0, now_s)).seen(entry.row_count, now_s)
        for entry in observed.catalogue or ()
    }


def _assemble(
    config: ClusterConfig,
    memory: Memory,
    observed: Observed,
    indexes: Sequence[IndexPlacement],
    draining: Mapping[str, float],
    now_s: float,
) -> Topology:
    models = {each.id: each.model for each in memory.topology.instances}
    topology = Topology(
        cluster=config.cluster,
        epoch=memory.topology.epoch,
        indexes=indexes,
        desired=memory.scale.to_proto(),
        default_encoder_model=_default_model(memory, observed),
        instances=[
            _instance_of(seen, id_ in draining, now_s, models.get(id_, ""))
            for id_, seen in sorted(observed.instances.items())
        ],
    )
    if observed.controller.id:
        topology.instances.append(observed.controller)
    if topology != memory.topology:
        topology.epoch = memory.topology.epoch + 1
    return topology


def _instance_of(seen: Seen, is_draining: bool, now_s: float, model: str) -> Instance:
    """model: that it served when it was last heard of; what runs under an id never changes it."""
    instance = Instance(
        id=seen.id,
        role=seen.role,
        address=seen.address,
        node=seen.node,
        model=model,
        message=seen.error,
    )
    if seen.answer is not None:
        instance.pid = seen.answer.pid
        instance.model = seen.answer.model
        instance.message = seen.answer.problem or seen.error
        instance.start_time.CopyFrom(seen.answer.start_time)
    if is_draining:
        instance.state = InstanceState.INSTANCE_STATE_DRAINING
    elif seen.is_ready(now_s):
        instance.state = InstanceState.INSTANCE_STATE_READY
    elif seen.answered_s is None:
        instance.state = InstanceState.INSTANCE_STATE_STARTING
    else:
        instance.state = InstanceState.INSTANCE_STATE_UNAVAILABLE
    return instance
