"""Which shards does this server hold, by the topology?"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

from shoal.internal.v1.shard_pb2 import ShardState
from shoal.internal.v1.topology_pb2 import IndexPlacement, Layout, Topology
from shoal.rpc.topology import RefusedTopologyError, layouts_of
from shoal.shard.config import ShardSettings
from shoal.shard.follow import IndexFollower
from shoal.shard.held import HeldLayout, IndexPlan, LayoutId, LayoutPlan
from shoal.shard.recall_watch import RecallWatch
from shoal.shard.upkeep import Upkeep
from shoal.table.slots import SLOT_COUNT

_log = logging.getLogger(__name__)

# The uid of an index, and a model.
PlanKey = tuple[str, str]

# For which a thread of the background that runs Python may keep a search's thread waiting: a search
# takes turns in three threads. Python's default is 5 ms.
_SWITCH_INTERVAL_S: Final = 0.0005


def plan_for(topology: Topology, instance_id: str) -> dict[PlanKey, IndexPlan]:
    """Read what an instance should hold, by the uid of the index, and by model.

    That is what serves and what is being prepared, in each vector space, what is kept in case it is
    to serve again, the candidate of a rollout, and the divisions that these two are to have. The
    model is empty where it is the one that the index was made with.

    instance_id: an empty one holds everything. Raises RefusedTopologyError.
    """
    plans: dict[PlanKey, IndexPlan] = {}
    for index in topology.indexes:
        for layout, key, plan in _layouts(index, instance_id):
            is_own = layout.encoder_model in ("", index.encoder_model)
            model = "" if is_own else layout.encoder_model
            dimension = layout.dimension or index.dimension
            if dimension == 0:
                raise RefusedTopologyError(f"index {index.name} has no dimension")
            held = plans.setdefault(
                (index.uid, model), IndexPlan(index.table_uri, dimension, {}, model)
            )
            # What serves and what prepares may divide alike, on other servers: hold both parts.
            before = held.layouts[key].shards if key in held.layouts else frozenset()
            held.layouts[key] = LayoutPlan(plan.codebook_uri, plan.shards | before)
    return {
        (uid, model): replace(plan, others=_others(plans, uid, model))
        for (uid, model), plan in plans.items()
    }


def _others(plans: Mapping[PlanKey, IndexPlan], uid: str, model: str) -> frozenset[LayoutId]:
    """Layouts of an index that are of other models than one."""
    return frozenset(
        layout
        for key, plan in plans.items()
        if key[0] == uid and key[1] != model
        for layout in plan.layouts
    )


def _layouts(
    index: IndexPlacement, instance_id: str
) -> Iterator[tuple[Layout, LayoutId, LayoutPlan]]:
    for layout in layouts_of(index):
        shards = frozenset(
            shard
            for placement in layout.placements
            if instance_id in ("", placement.shard_server)
            for shard in placement.shards
        )
        if not shards:
            continue
        if not max(shards) < layout.shard_count <= SLOT_COUNT:
            raise RefusedTopologyError(
                f"index {index.name} has {layout.shard_count} shards, but shard {max(shards)} is "
                f"placed; there may be {SLOT_COUNT}"
            )
        key = LayoutId(index.uid, layout.index_version, layout.shard_count)
        yield layout, key, LayoutPlan(layout.codebook_uri, shards)


class Holdings:
    """All shards of this server, and the threads that look after them."""

    def __init__(
        self,
        settings: ShardSettings,
        instance_id: str,
        on_progress: Callable[[], None],
        now_us: Callable[[], int],
    ) -> None:
        """on_progress: called, in any thread, when shards have moved on.

        now_us: microseconds since 1970.
        """
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._now_us = now_us
        self._settings, self._instance_id = settings, instance_id
        self._on_progress = on_progress
        self._upkeep = Upkeep(settings)
        self._background = ThreadPoolExecutor(settings.background_threads, "shard-upkeep")
        self._patient = ThreadPoolExecutor(settings.background_threads, "shard-patient")
        self._recall_watch = RecallWatch(settings)
        # One thread, and its own: a long check must not keep folds and loads waiting.
        self._checking = ThreadPoolExecutor(1, "shard-recall")
        self._closing = ThreadPoolExecutor(1, "shard-close")
        # One for each model of an index, as each follows vectors of its own.
        self._indexes: dict[PlanKey, IndexFollower] = {}
        self._swept = False

    def follow(self, topology: Topology) -> None:
        """Hold what a topology says. Returns at once. Raises RefusedTopologyError."""
        plans = plan_for(topology, self._instance_id)
        for each in self._indexes.keys() - plans.keys():
            self._closing.submit(self._retire, self._indexes.pop(each))
        for each, plan in plans.items():
            if each in self._indexes:
                self._indexes[each].follow(plan)
            else:
                self._indexes[each] = IndexFollower(
                    plan,
                    upkeep=self._upkeep,
                    background=self._background,
                    patient=self._patient,
                    recall_watch=self._recall_watch,
                    checking=self._checking,
                    interval_s=self._settings.follow_interval_s,
                    on_progress=self._on_progress,
                    now_us=self._now_us,
                    serves=self._serves,
                )
        if not self._swept and self._settings.snapshot_dir is not None:
            self._swept = True
            self._background.submit(_sweep, self._settings.snapshot_dir, {uid for uid, _ in plans})

    def _serves(self) -> bool:
        return any(each.serves() for each in list(self._indexes.values()))

    def find(self, key: LayoutId) -> tuple[IndexFollower, HeldLayout] | None:
        """A layout that is held."""
        for (uid, _), follower in self._indexes.items():
            layout = follower.layouts.get(key) if uid == key.index_uid else None
            if layout is not None:
                return follower, layout
        return None

    def states(self) -> list[ShardState]:
        """States of all shards. Cheap."""
        return [
            state
            for follower in self._indexes.values()
            for layout in follower.layouts.values()
            for state in layout.states()
        ]

    def close(self) -> None:
        """End all threads. Blocks until what they are at is done."""
        self._close(self._indexes.values())
        self._indexes = {}
        self._background.shutdown(cancel_futures=True)
        self._patient.shutdown(cancel_futures=True)
        self._checking.shutdown(cancel_futures=True)
        self._closing.shutdown()

    def _close(self, followers: Iterable[IndexFollower]) -> None:
        for follower in list(followers):
            follower.close()

    def _retire(self, follower: IndexFollower) -> None:
        """Let go of an index that is no longer held, and of its snapshots."""
        follower.close()
        for layout in follower.layouts.values():
            if (folder := self._upkeep.snapshots(layout)) is not None:
                folder.drop()


def _sweep(root: Path, held_uids: set[str]) -> None:
    """Remove snapshots of indexes that were dropped while this server was away."""
    if root.is_dir():
        for folder in root.iterdir():
            if folder.is_dir() and folder.name not in held_uids:
                _log.info("removing the snapshots of index %s, which is not held", folder.name)
                shutil.rmtree(folder, ignore_errors=True)
