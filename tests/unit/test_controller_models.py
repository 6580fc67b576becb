"""Does the controller have encoders for every model, and wait for them before a version serves?"""

from dataclasses import replace

import pytest
from shoal.cluster.config import ClusterConfig, Scale
from shoal.cluster.controller import Create, Observed, Remove, plan, problems
from shoal.cluster.index_plan import Growth, build_due, further_bundles
from shoal.cluster.lag import ShardLag
from shoal.internal.v1.topology_pb2 import Topology
from shoal.internal.v1.writer_pb2 import CatalogEntry
from shoal.v1.indexes_pb2 import IndexVersion, IndexVersionState, Rollout
from shoal.v1.search_pb2 import SearchKind

from tests.unit.test_controller_plan import World, _ready

READY = IndexVersionState.INDEX_VERSION_STATE_READY
OLD, NEW = "old@111111111111", "new@222222222222"
FURTHER = "encoder-222222222222-0"


class Models(World):
    """Instances that say which model they serve."""

    def _answer(self, seen):
        answer = super()._answer(seen)
        for index in self.memory.topology.indexes:
            layouts = [index.candidate]
            layouts += [
                layout for each in index.spaces for layout in (each.serving, each.preparing)
            ]
            for layout in layouts:
                for placement in layout.placements:
                    if placement.shard_server == seen.id:
                        answer.shards.extend(_ready(index.uid, layout, placement.shards))
        if seen.id == "encoder-0":
            answer.model = OLD
        elif seen.id.startswith("encoder-"):
            answer.model = NEW
        return answer


def entry(version=0, rollout=None, state=READY):
    return CatalogEntry(
        name="docs",
        uid="docs-uid",
        table_uri="/data/docs",
        encoder_model=OLD,
        dimension=8,
        index_version=version,
        previous_version=0 if version else None,
        versions=[
            IndexVersion(
                number=1,
                state=state,
                encoder_model=NEW,
                encoder_bundle="/bundles/new",
                dimension=4,
            )
        ],
        rollout=rollout,
    )


@pytest.fixture
def world():
    world = Models(Scale(encoders=1))
    world.catalogue = [entry()]
    world.run(30)
    return world


def index_of(world):
    (index,) = world.memory.topology.indexes
    return index


def test_a_version_of_another_model_has_encoders_of_its_own(world):
    assert FURTHER in world.instances
    assert world.memory.topology.default_encoder_model == OLD
    observed = Observed({}, [entry()])
    _, actions = plan(ClusterConfig(further_encoders=2), world.memory, observed, 1.0)
    created = [each for each in actions if isinstance(each, Create) and each.bundle]
    assert [(each.id, each.bundle) for each in created] == [
        (FURTHER, "/bundles/new"),
        ("encoder-222222222222-1", "/bundles/new"),
    ]


def test_it_serves_only_once_they_answer(world):
    world.silent.add(FURTHER)
    world.instances[FURTHER] = replace(world.instances[FURTHER], answer=None, answered_s=None)
    world.catalogue = [entry(version=1)]
    world.run(10)
    assert index_of(world).serving.index_version == 0
    assert index_of(world).preparing.encoder_model == NEW
    world.silent.discard(FURTHER)
    world.run(10)
    serving = index_of(world).serving
    assert (serving.index_version, serving.encoder_model, serving.dimension) == (1, NEW, 4)
    standby = index_of(world).standby
    assert (standby.index_version, standby.encoder_model) == (0, "")
    assert {"encoder-0", FURTHER} <= set(world.instances)


def test_a_candidate_is_placed_beside_what_serves_and_takes_over_at_once(world):
    world.catalogue = [entry(rollout=Rollout(candidate_version=1, canary_share=0.5))]
    world.run(10)
    index = index_of(world)
    assert (index.serving.index_version, index.candidate.index_version) == (0, 1)
    assert index.candidate.encoder_model == NEW
    assert index.rollout.canary_share == 0.5
    world.catalogue = [entry(version=1)]
    world.step()
    index = index_of(world)
    assert (index.serving.index_version, index.HasField("candidate")) == (1, False)


def test_encoders_of_a_model_go_with_its_last_version(world):
    failed = entry(state=IndexVersionState.INDEX_VERSION_STATE_FAILED)
    assert further_bundles([failed]) == {}
    world.catalogue = [failed]
    world.run(40)
    assert world.removed == [FURTHER]
    assert "encoder-0" in world.instances


def test_an_exact_version_gets_a_codebook_as_version_0_does_once_the_index_has_grown():
    grown = Growth(50_000, 0.0)
    exact = entry(version=1)
    exact.versions[0].kind = SearchKind.SEARCH_KIND_EXACT
    assert build_due(exact, grown, None, 20_000, 100.0) is False  # It has 0 rows.
    exact.row_count = 50_000
    assert build_due(exact, grown, None, 20_000, 100.0)
    exact.versions[0].kind = SearchKind.SEARCH_KIND_IVF_PQ
    assert not build_due(exact, grown, None, 20_000, 100.0)


def spaced(*numbers, state=READY):
    """An index with a space `code`, of some versions; the last one in a state."""
    found = entry()
    del found.versions[:]
    for number in numbers:
        found.versions.add(
            number=number,
            state=state if number == numbers[-1] else READY,
            encoder_model=NEW,
            encoder_bundle="/bundles/new",
            dimension=4,
            space="code",
        )
    return found


def test_a_space_serves_once_it_is_loaded_and_encoded_and_until_its_next_version_is(world):
    world.silent.add(FURTHER)
    world.instances[FURTHER] = replace(world.instances[FURTHER], answer=None, answered_s=None)
    world.catalogue = [spaced(1)]
    world.run(10)
    (space,) = index_of(world).spaces
    assert (space.HasField("serving"), space.preparing.index_version) == (False, 1)
    said = "vector space code of index docs is being loaded for the first time"
    assert said in problems(world.config, world.memory, world.observed(), world.now_s)
    world.silent.discard(FURTHER)
    world.run(10)
    (space,) = index_of(world).spaces
    assert (space.serving.index_version, space.HasField("preparing")) == (1, False)
    assert (space.serving.encoder_model, space.encoder_model) == (NEW, NEW)
    assert index_of(world).serving.index_version == 0

    building = IndexVersionState.INDEX_VERSION_STATE_BUILDING
    world.catalogue = [spaced(1, 2, state=building)]
    world.step()
    (space,) = index_of(world).spaces
    assert (space.serving.index_version, space.state) == (1, building)
    world.catalogue = [spaced(1, 2)]
    world.step()
    (space,) = index_of(world).spaces
    assert (space.serving.index_version, space.preparing.index_version) == (1, 2)
    told = "vector space code of index docs is being prepared in 2 shards at version 2; the old "
    found = problems(world.config, world.memory, world.observed(), world.now_s)
    assert f"{told}layout serves" in found
    world.run(10)
    (space,) = index_of(world).spaces
    assert (space.serving.index_version, space.HasField("preparing")) == (2, False)
    world.memory = replace(world.memory, scale=Scale(encoders=1, shards=2, shard_servers=2))
    for _ in range(20):
        world.run(1)
        (space,) = index_of(world).spaces
        assert space.HasField("serving")
    assert space.serving.shard_count == 2
    world.catalogue = [entry(version=1)]
    world.step()
    assert not index_of(world).spaces


def test_a_space_keeps_no_codebook_from_the_default_one_and_holds_its_shard_servers(world):
    grown = Growth(50_000, 0.0)
    found = spaced(1)
    found.versions[0].kind = SearchKind.SEARCH_KIND_IVF_PQ
    found.row_count = 50_000
    assert build_due(found, grown, None, 20_000, 100.0)
    world.catalogue = [spaced(1)]
    world.run(10)
    held = ShardLag(world.memory.topology)
    without = Topology()
    without.CopyFrom(world.memory.topology)
    del without.indexes[0].spaces[:]
    # Until the brokers have followed, the shard servers keep it.
    assert held.advance(without, brokers_follow=False, now_s=0.0) == world.memory.topology


def test_while_the_catalogue_is_not_known_they_stay(world):
    observed = replace(world.observed(), catalogue=None)
    for at_s in range(100):
        world.memory, actions = plan(world.config, world.memory, observed, world.now_s + at_s)
        assert Remove(FURTHER) not in actions
