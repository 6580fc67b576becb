"""Does the controller's plan lead every cluster to what was declared, without losing an answer?

A simulated world carries out what `plan` decides: instances start, answer, load the shards they are
told to, die and come back, in a seeded order. After every step the validator looks at all of it.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.cluster.config import ClusterConfig, IndexScale, Scale
from shoal.cluster.controller import (
    DRAIN_S,
    HUNG_S,
    Abandon,
    BuildFirst,
    Create,
    Memory,
    Observed,
    Remove,
    Restart,
    Seen,
    plan,
    problems,
    ready_answers,
)
from shoal.cluster.index_plan import RETRY_S, SETTLED_S, Building, Growth, build_due, serves
from shoal.cluster.lag import ShardLag
from shoal.cluster.placement import place, wanted_instances
from shoal.internal.v1.shard_pb2 import LayoutKey, ShardState
from shoal.internal.v1.topology_pb2 import Layout, PublishTopologyResponse, Topology
from shoal.internal.v1.writer_pb2 import CatalogEntry
from shoal.rpc.topology import layouts_of
from shoal.v1.cluster_pb2 import Role
from shoal.v1.cluster_pb2 import Scale as ScaleMessage
from shoal.v1.indexes_pb2 import IndexVersion, IndexVersionState

STEP_S = 0.5


class World:
    """Instances that do as they are told, some of them late."""

    def __init__(self, scale: Scale, seed: int = 0) -> None:
        self.config = ClusterConfig()
        self.memory = Memory(scale)
        self.catalogue: list[CatalogEntry] = []
        self.building: dict[str, Building] = {}
        self.instances: dict[str, Seen] = {}
        self.silent: set[str] = set()
        self.now_s = 100.0
        self.random = random.Random(seed)
        self.built: list[str] = []
        self.abandoned: list[tuple[str, int]] = []
        self.removed: list[str] = []
        self.restarted: list[str] = []

    def observed(self) -> Observed:
        return Observed(dict(self.instances), list(self.catalogue), dict(self.building))

    def step(self) -> None:
        self.now_s += STEP_S
        self.memory, actions = plan(self.config, self.memory, self.observed(), self.now_s)
        for action in actions:
            match action:
                case Create(id=id_, role=role):
                    assert id_ not in self.instances
                    self.instances[id_] = Seen(id_, role, self.now_s)
                case Remove(id=id_):
                    del self.instances[id_]
                    self.removed.append(id_)
                case Restart(id=id_):
                    self.restarted.append(id_)
                    self.silent.discard(id_)
                    self.instances[id_] = replace(self.instances[id_], placed_s=self.now_s)
                case BuildFirst(entry=entry):
                    self.built.append(entry.name)
                    self.building[entry.uid] = Building()
                case Abandon(entry=entry, index_version=number):
                    self.abandoned.append((entry.name, number))
                    self.building[entry.uid] = Building()
        for id_, seen in self.instances.items():
            if id_ in self.silent or self.random.random() < 0.2:
                continue
            self.instances[id_] = replace(
                seen, address=f"host:{id_}", answered_s=self.now_s, answer=self._answer(seen)
            )

    def run(self, steps: int) -> None:
        for _ in range(steps):
            before = {index.uid: index for index in self.memory.topology.indexes}
            self.step()
            self._validate(before)

    def _answer(self, seen: Seen) -> PublishTopologyResponse:
        answer = PublishTopologyResponse(epoch=self.memory.topology.epoch, pid=7)
        for index in self.memory.topology.indexes:
            for layout in layouts_of(index):
                for placement in layout.placements:
                    if placement.shard_server == seen.id:
                        answer.shards.extend(_ready(index.uid, layout, placement.shards))
        return answer

    def _validate(self, before: dict[str, object]) -> None:
        placed = set(self.instances)
        for index in self.memory.topology.indexes:
            assert index.HasField("serving") or index.HasField("preparing")
            old = before.get(index.uid)
            if old is not None and old.HasField("serving"):
                assert index.HasField("serving"), "an index that served never stops"
            if index.HasField("serving"):
                held = {s for p in index.serving.placements for s in p.shards}
                assert held == set(range(index.serving.shard_count))
                servers = {p.shard_server for p in index.serving.placements}
                assert servers <= placed, "a shard server that serves is not removed"


def _ready(uid: str, layout: Layout, shards: list[int]) -> list[ShardState]:
    key = LayoutKey(
        index_uid=uid, index_version=layout.index_version, shard_count=layout.shard_count
    )
    return [ShardState(layout=key, shard=shard, ready=True) for shard in shards]


def _entry(
    name: str = "docs",
    rows: int = 10,
    version: int = 0,
    previous: int | None = None,
    versions: tuple[tuple[int, IndexVersionState.ValueType], ...] = (),
) -> CatalogEntry:
    return CatalogEntry(
        name=name,
        uid=f"{name}-uid",
        table_uri=f"/data/{name}",
        row_count=rows,
        index_version=version,
        codebook_uri=f"/data/{name}/{version}" if version else "",
        previous_version=previous,
        versions=[IndexVersion(number=number, state=state) for number, state in versions],
    )


def test_a_new_cluster_gets_every_instance_and_becomes_whole() -> None:
    world = World(Scale(shards=2, replicas=2, encoders=3))
    world.run(12)
    assert set(world.instances) == set(wanted_instances(world.config, world.memory.scale))
    assert problems(world.config, world.memory, world.observed(), world.now_s) == []


def test_nothing_changes_once_the_cluster_is_whole() -> None:
    world = World(Scale())
    world.catalogue = [_entry()]
    world.run(12)
    epoch = world.memory.topology.epoch
    world.random = random.Random(1)
    world.random.random = lambda: 1.0  # type: ignore[method-assign]  # everyone answers
    world.run(3)
    assert world.memory.topology.epoch >= epoch
    settled = world.memory.topology.epoch
    world.run(10)
    assert world.memory.topology.epoch == settled


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.builds(
            Scale,
            shards=st.integers(1, 9),
            replicas=st.integers(1, 3),
            shard_servers=st.integers(1, 4),
            encoders=st.integers(1, 3),
            rerankers=st.integers(0, 2),
            brokers=st.integers(1, 3),
        ),
        min_size=2,
        max_size=4,
    ),
    st.integers(0, 1000),
)
def test_any_series_of_scales_is_reached_without_an_index_going_away(
    scales: list[Scale], seed: int
) -> None:
    world = World(scales[0], seed)
    world.catalogue = [_entry("a"), _entry("b")]
    for scale in scales:
        world.memory = replace(world.memory, scale=scale)
        world.run(world.random.randint(1, 12))
    world.run(60)
    assert set(world.instances) == set(wanted_instances(world.config, scales[-1]))
    for index in world.memory.topology.indexes:
        assert index.serving == place(scales[-1], index_version=0, codebook_uri="")
        assert not index.HasField("preparing")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.builds(
            IndexScale,
            shards=st.none() | st.integers(1, 9),
            replicas=st.none() | st.integers(1, 3),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 1000),
)
def test_an_index_has_numbers_of_its_own(scales: list[IndexScale], seed: int) -> None:
    world = World(Scale(shards=2, replicas=2, shard_servers=2), seed)
    world.catalogue = [_entry("a"), _entry("b")]
    for scale in scales:
        world.memory = replace(world.memory, index_scales={"a-uid": scale})
        world.run(world.random.randint(1, 12))
    if (
        world.memory.scale_of("a-uid").shards
        != world.memory.topology.indexes[0].serving.shard_count
    ):
        found = problems(world.config, world.memory, world.observed(), world.now_s)
        assert any("index a" in each for each in found)
    world.run(60)
    a, b = world.memory.topology.indexes
    cluster = world.memory.scale
    assert a.serving == place(scales[-1].of(cluster), index_version=0, codebook_uri="")
    assert b.serving == place(cluster, index_version=0, codebook_uri="")
    assert {placement.replica for placement in a.serving.placements} <= {0, 1}
    world.catalogue = [_entry("b")]
    world.run(5)
    assert world.memory.index_scales == {}


def test_an_indexs_numbers_are_checked_and_given_back() -> None:
    changed = IndexScale().changed_by(ScaleMessage(shards=4))
    assert changed == IndexScale(shards=4)
    assert changed.changed_by(ScaleMessage(replicas=2)) == IndexScale(shards=4, replicas=2)
    assert changed.changed_by(ScaleMessage(shards=0)) == IndexScale()
    for wrong in (ScaleMessage(shards=1025), ScaleMessage(replicas=17), ScaleMessage(encoders=1)):
        with pytest.raises(ValueError, match=r"shards|replicas|encoders"):
            IndexScale().changed_by(wrong)


def test_drift_is_said_with_the_problems_and_opting_out_reaches_everybody() -> None:
    world = World(Scale(shards=1))
    world.catalogue = [_entry()]
    world.run(12)
    assert problems(world.config, world.memory, world.observed(), world.now_s) == []
    world.catalogue[0].drift_alert = "drift since yesterday"
    world.catalogue[0].feedback_disabled = True
    world.run(2)
    found = problems(world.config, world.memory, world.observed(), world.now_s)
    assert found == [f"index {world.catalogue[0].name}: drift since yesterday"]
    assert world.memory.topology.indexes[0].feedback_disabled


def test_a_shard_that_serves_in_spite_of_something_is_a_problem() -> None:
    world = World(Scale(shards=1))
    world.catalogue = [_entry()]
    world.run(12)
    server = world.instances["shard-server-0-0"]
    assert server.answer is not None
    answer = PublishTopologyResponse()
    answer.CopyFrom(server.answer)
    answer.shards[0].message = "the disk is full"
    world.instances[server.id] = replace(server, answer=answer, answered_s=world.now_s)
    found = problems(world.config, world.memory, world.observed(), world.now_s)
    assert "index docs, shard-server-0-0: the disk is full" in found


def test_a_shard_server_that_hangs_is_killed_and_others_are_not() -> None:
    world = World(Scale())
    world.run(10)
    world.silent = {"shard-server-0-0"}
    world.run(int(HUNG_S / STEP_S) + 10)
    assert world.restarted == ["shard-server-0-0"]


def test_an_instance_drains_before_it_is_removed() -> None:
    world = World(Scale(encoders=2))
    world.run(10)
    world.memory = replace(world.memory, scale=Scale(encoders=1))
    world.run(int(DRAIN_S / STEP_S) - 1)
    assert "encoder-1" in world.instances
    states = {each.id: each.state for each in world.memory.topology.instances}
    assert states["encoder-1"] != states["encoder-0"]
    world.run(12)
    assert world.removed == ["encoder-1"]


def test_a_broker_that_has_not_heard_keeps_an_instance_from_being_removed() -> None:
    world = World(Scale(encoders=2))
    world.run(10)
    world.memory = replace(world.memory, scale=Scale(encoders=1))
    world.run(2)
    deaf = world.instances["broker-0"]
    for _ in range(20):
        world.step()
        stale = PublishTopologyResponse(epoch=1)
        world.instances["broker-0"] = replace(deaf, answer=stale, answered_s=world.now_s)
    assert "encoder-1" in world.instances


def test_a_built_index_is_prepared_beside_the_one_that_serves() -> None:
    world = World(Scale())
    world.catalogue = [_entry(rows=50_000)]
    world.run(int(SETTLED_S / STEP_S) + 4)
    assert world.built == ["docs"]
    world.catalogue = [_entry(rows=50_000, version=1)]
    world.step()
    (index,) = world.memory.topology.indexes
    assert (index.serving.index_version, index.preparing.index_version) == (0, 1)
    world.run(10)
    (index,) = world.memory.topology.indexes
    assert index.serving.index_version == 1
    assert not index.HasField("preparing")


def _versions(world: World) -> tuple[int, int | None, int | None]:
    """What serves, what is being prepared, and what stands by."""
    (index,) = world.memory.topology.indexes
    return (
        index.serving.index_version,
        index.preparing.index_version if index.HasField("preparing") else None,
        index.standby.index_version if index.HasField("standby") else None,
    )


def test_a_version_that_was_replaced_stands_by_and_rolling_back_takes_one_step() -> None:
    world = World(Scale(shards=2, replicas=2))
    world.catalogue = [_entry(version=1)]
    world.run(12)
    world.catalogue = [_entry(version=2, previous=1)]
    world.run(12)
    assert _versions(world) == (2, None, 1)
    epoch = world.memory.topology.epoch
    world.catalogue = [_entry(version=1, previous=2)]
    world.step()
    assert _versions(world) == (1, None, 2)
    assert world.memory.topology.epoch == epoch + 1


def test_a_version_stands_by_for_so_long_and_no_longer() -> None:
    world = World(Scale())
    world.config = ClusterConfig(standby_s=60)
    world.catalogue = [_entry(version=1)]
    world.run(12)
    world.catalogue = [_entry(version=2, previous=1)]
    world.run(12)
    assert _versions(world) == (2, None, 1)
    world.run(int(60 / STEP_S))
    assert _versions(world) == (2, None, None)
    world.run(20)
    assert _versions(world) == (2, None, None)
    world.config = ClusterConfig(standby_s=0)
    world.catalogue = [_entry(version=1, previous=2)]
    world.run(12)
    assert _versions(world) == (1, None, None)


def test_a_version_that_is_dropped_or_superseded_stands_by_no_more() -> None:
    world = World(Scale())
    world.catalogue = [_entry(version=1)]
    world.run(12)
    world.catalogue = [_entry(version=2, previous=1)]
    world.run(12)
    world.catalogue = [_entry(version=2)]  # Version 1 was dropped.
    world.run(1)
    assert _versions(world) == (2, None, None)
    world.catalogue = [_entry(version=3, previous=2)]
    world.run(12)
    assert _versions(world) == (3, None, 2)
    world.catalogue = [_entry(version=4, previous=3)]
    world.step()
    assert _versions(world) == (3, 4, None)


def test_what_stands_by_follows_the_number_of_shards_after_what_serves() -> None:
    world = World(Scale(shards=2))
    world.catalogue = [_entry(version=1)]
    world.run(12)
    world.catalogue = [_entry(version=2, previous=1)]
    world.run(12)
    world.memory = replace(world.memory, scale=Scale(shards=4))
    seen = []
    for _ in range(24):
        world.run(1)
        (index,) = world.memory.topology.indexes
        made = [(each.index_version, each.shard_count) for each in index.dividing]
        state = index.serving.shard_count, index.standby.shard_count, made
        if not seen or seen[-1] != state:
            seen.append(state)
    assert seen == [(2, 2, []), (4, 2, [(1, 4)]), (4, 4, [])]
    assert _versions(world) == (2, None, 1)


def _dividing_what_stands_by(replicas: int = 1) -> World:
    world = World(Scale(shards=2, replicas=replicas))
    world.catalogue = [_entry(version=1)]
    world.run(12)
    world.catalogue = [_entry(version=2, previous=1)]
    world.run(12)
    world.memory = replace(world.memory, scale=Scale(shards=4, replicas=replicas))
    while not world.memory.topology.indexes[0].dividing:
        world.run(1)
    return world


def _silence(world: World) -> str:
    """Have the shard server of the first replica be silent for so long that it is not ready."""
    (id_,) = (each for each in world.instances if each == "shard-server-0-0")
    world.silent.add(id_)
    world.instances[id_] = replace(world.instances[id_], answered_s=world.now_s - 60)
    return id_


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_silent_server_does_not_undo_what_stands_by(replicas: int) -> None:
    world = _dividing_what_stands_by(replicas)
    _silence(world)
    world.run(1)
    (index,) = world.memory.topology.indexes
    assert (index.standby.shard_count, len(index.dividing)) == (2, 1)
    world.silent.clear()
    world.run(16)
    (index,) = world.memory.topology.indexes
    assert (index.standby.shard_count, len(index.dividing)) == (4, 0)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_rollback_is_not_lost_on_a_silent_server(replicas: int) -> None:
    world = _dividing_what_stands_by(replicas)
    _silence(world)
    world.catalogue = [_entry(version=1, previous=2)]
    world.run(1)
    (index,) = world.memory.topology.indexes
    # Whatever answers serves; without any the old division waits for its server.
    assert _versions(world) == ((1, 1, 2) if replicas == 2 else (2, 1, 1))
    held = index.serving if replicas == 2 else index.standby
    assert (held.index_version, held.shard_count) == (1, 2)
    world.silent.clear()
    world.run(20)
    (index,) = world.memory.topology.indexes
    assert (index.serving.shard_count, index.standby.shard_count) == (4, 4)
    assert _versions(world) == (1, None, 2)


def test_a_rollback_takes_one_step_while_what_stands_by_is_divided() -> None:
    world = _dividing_what_stands_by()
    (said,) = problems(world.config, world.memory, world.observed(), world.now_s)
    assert said == ("version 1 of index docs, which does not serve, is being divided into 4 shards")
    world.catalogue = [_entry(version=1, previous=2)]
    world.run(1)
    (index,) = world.memory.topology.indexes
    assert (index.serving.shard_count, index.preparing.shard_count) == (2, 4)
    assert _versions(world) == (1, 1, 2)
    world.run(12)
    (index,) = world.memory.topology.indexes
    assert (index.serving.shard_count, index.standby.shard_count) == (4, 4)
    assert _versions(world) == (1, None, 2)


def test_a_candidate_is_searched_as_it_was_divided_until_it_is_divided_otherwise() -> None:
    world = World(Scale(shards=2))
    world.catalogue = [_entry(version=1)]
    world.run(12)
    entry = _entry(version=1)
    entry.rollout.candidate_version = 2
    world.catalogue = [entry]
    world.run(12)
    world.memory = replace(world.memory, scale=Scale(shards=4))
    seen = []
    for _ in range(24):
        world.run(1)
        (index,) = world.memory.topology.indexes
        assert index.candidate.index_version == 2
        if index.candidate.shard_count not in seen:
            seen.append(index.candidate.shard_count)
            assert serves(index.candidate, index.uid, ready_answers(world.observed(), world.now_s))
    assert seen == [2, 4]


def test_a_candidate_is_promoted_in_one_step_while_it_is_divided() -> None:
    world = World(Scale(shards=2))
    entry = _entry(version=1)
    entry.rollout.candidate_version = 2
    world.catalogue = [entry]
    world.run(12)
    world.memory = replace(world.memory, scale=Scale(shards=4))
    while not world.memory.topology.indexes[0].dividing:
        world.run(1)
        (index,) = world.memory.topology.indexes
        # What serves is divided first.
        assert not (index.HasField("preparing") and index.dividing)
    for seen in world.instances.values():
        if seen.answer is not None:  # It is not divided yet.
            ready = [each for each in seen.answer.shards if each.layout.index_version == 1]
            ready += [each for each in seen.answer.shards if each.layout.shard_count == 2]
            del seen.answer.shards[:]
            seen.answer.shards.extend(ready)
    world.catalogue = [_entry(version=2, previous=1)]
    world.run(1)
    (index,) = world.memory.topology.indexes
    assert (index.serving.index_version, index.serving.shard_count) == (2, 2)
    world.run(12)
    (index,) = world.memory.topology.indexes
    assert (index.serving.shard_count, index.standby.shard_count) == (4, 4)
    assert _versions(world) == (2, None, 1)


def test_a_build_that_an_earlier_life_began_is_given_up_once() -> None:
    world = World(Scale())
    building = IndexVersionState.INDEX_VERSION_STATE_BUILDING
    world.catalogue = [_entry(versions=((4, building),))]
    world.run(5)
    assert world.abandoned == [("docs", 4)]
    world.building = {"docs-uid": Building(failed_s=1.0)}
    world.run(1)
    assert world.abandoned == [("docs", 4)] * 2


def test_an_index_with_a_version_is_not_built_by_itself() -> None:
    growth = Growth(90_000, 0.0)
    ready = IndexVersionState.INDEX_VERSION_STATE_READY
    failed = IndexVersionState.INDEX_VERSION_STATE_FAILED
    assert not build_due(_entry(rows=90_000, versions=((1, ready),)), growth, None, 20_000, 99.0)
    assert not build_due(_entry(rows=90_000, version=2), growth, None, 20_000, 99.0)
    assert build_due(_entry(rows=90_000, versions=((1, failed),)), growth, None, 20_000, 99.0)


def test_while_the_writer_is_away_the_indexes_stay() -> None:
    world = World(Scale())
    world.catalogue = [_entry()]
    world.run(10)
    observed = replace(world.observed(), catalogue=None)
    memory, _ = plan(world.config, world.memory, observed, world.now_s)
    assert list(memory.topology.indexes) == list(world.memory.topology.indexes)


def test_an_index_that_grows_is_not_built_until_it_settles() -> None:
    growth = Growth(0, 0.0)
    for second in range(100):
        entry = _entry(rows=30_000 + 1_000 * second)
        growth = growth.seen(entry.row_count, float(second))
        assert not build_due(entry, growth, None, 20_000, float(second))
    assert build_due(entry, growth, None, 20_000, 99.0 + SETTLED_S)


def test_an_index_that_never_settles_is_built_all_the_same() -> None:
    assert build_due(_entry(rows=200_000), Growth(200_000, 10.0), None, 20_000, 10.0)


def test_a_failed_build_is_tried_again_later() -> None:
    entry, growth, failed = _entry(rows=30_000), Growth(30_000, 0.0), Building(50.0, "disk full")
    assert not build_due(entry, growth, failed, 20_000, 50.0 + RETRY_S / 2)
    assert build_due(entry, growth, failed, 20_000, 50.0 + RETRY_S)
    assert not build_due(entry, growth, Building(), 20_000, 500.0)


@given(st.integers(1, 64), st.integers(1, 4), st.integers(1, 16))
def test_every_replica_set_holds_every_shard_once(shards: int, replicas: int, servers: int) -> None:
    scale = Scale(shards=shards, replicas=replicas, shard_servers=servers)
    layout = place(scale, index_version=3, codebook_uri="somewhere")
    for replica in range(replicas):
        held = [s for p in layout.placements if p.replica == replica for s in p.shards]
        assert sorted(held) == list(range(shards))
        sizes = [len(p.shards) for p in layout.placements if p.replica == replica]
        assert max(sizes) - min(sizes) <= 1


def test_a_scale_out_of_range_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="shards"):
        Scale().changed_by(ScaleMessage(shards=0))
    assert Scale().changed_by(ScaleMessage(encoders=3)) == Scale(encoders=3)
    assert Scale().changed_by(ScaleMessage(rerankers=0)).rerankers == 0


def _topology(epoch: int, shards: int) -> Topology:
    topology = Topology(epoch=epoch)
    index = topology.indexes.add(uid="docs-uid")
    scale = Scale(shards=shards)
    index.serving.CopyFrom(place(scale, index_version=0, codebook_uri=""))
    return topology


def test_shard_servers_forget_a_layout_only_after_the_brokers() -> None:
    old, new = _topology(1, 2), _topology(2, 4)
    lag = ShardLag(old)
    assert lag.advance(new, brokers_follow=False, now_s=0.0) is old
    assert lag.advance(new, brokers_follow=False, now_s=100.0) is old
    assert lag.advance(new, brokers_follow=True, now_s=101.0) is old
    assert lag.advance(new, brokers_follow=True, now_s=110.0) is new


def test_shard_servers_hear_at_once_of_what_is_only_added() -> None:
    old, new = _topology(1, 2), _topology(2, 2)
    new.indexes[0].preparing.CopyFrom(place(Scale(shards=4), index_version=0, codebook_uri=""))
    assert ShardLag(old).advance(new, brokers_follow=False, now_s=0.0) is new


def test_every_role_is_wanted_as_often_as_declared() -> None:
    scale = Scale(replicas=2, shard_servers=3, encoders=4, rerankers=0, brokers=2)
    roles = list(wanted_instances(ClusterConfig(), scale).values())
    assert roles.count(Role.ROLE_SHARD_SERVER) == 6
    assert roles.count(Role.ROLE_ENCODER) == 4
    assert roles.count(Role.ROLE_RERANKER) == 0
    assert roles.count(Role.ROLE_BROKER) == 2
    assert roles.count(Role.ROLE_WRITER) == roles.count(Role.ROLE_REDIS) == 1


def test_after_a_pause_of_its_own_the_controller_kills_nobody() -> None:
    world = World(Scale())
    world.run(10)
    world.now_s += 10 * HUNG_S  # As if the machine had slept.
    world.run(8)
    assert world.restarted == []


def test_a_shard_that_nobody_has_ready_is_a_problem() -> None:
    world = World(Scale())
    world.catalogue = [_entry()]
    world.run(12)
    seen = world.instances["shard-server-0-0"]
    assert seen.answer is not None
    bare = PublishTopologyResponse(epoch=seen.answer.epoch)
    world.instances["shard-server-0-0"] = replace(seen, answer=bare, answered_s=world.now_s)
    found = problems(world.config, world.memory, world.observed(), world.now_s)
    assert any("docs" in problem for problem in found)
