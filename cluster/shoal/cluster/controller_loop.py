"""Who asks, decides and acts, over and over?

One task for each instance (a `Minder`) learns where it listens, publishes the topology to it, and
keeps its answers. One loop feeds what they saw to `plan` and carries out what it decided. All state
that must outlive this process is in the state file; everything else is seen again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import grpc
from shoal.cluster.builds import Builds, not_ready, require_running
from shoal.cluster.config import ClusterConfig, IndexScale, Scale
from shoal.cluster.controller import (
    Abandon,
    Action,
    BuildFirst,
    Create,
    Memory,
    Observed,
    Remove,
    Restart,
    Seen,
    plan,
    problems,
)
from shoal.cluster.hosting import InstanceSpec, Placed, instance_spec
from shoal.cluster.lag import ShardLag
from shoal.cluster.minder import Minder
from shoal.cluster.placement import WRITER
from shoal.cluster.roles import resources_for, role_of, settings_for
from shoal.cluster.state_file import StateFile
from shoal.cluster.steps import StepRunner
from shoal.internal.v1.topology_pb2 import Build, Topology
from shoal.internal.v1.writer_pb2 import CatalogEntry, ListTablesRequest
from shoal.internal.v1.writer_pb2_grpc import WriterServiceStub
from shoal.rpc.errors import ServiceError
from shoal.v1.cluster_pb2 import Instance, InstanceState, Role
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import IndexVersion
from shoal.writer.config import WriterSettings

if TYPE_CHECKING:
    from shoal.internal.v1.writer_pb2_grpc import WriterServiceAsyncStub

_log = logging.getLogger(__name__)

TICK_S: Final = 0.25
CATALOGUE_TIMEOUT_S: Final = 1.0
# After a failed start, before the next: what is missing does not come back faster for that.
CREATE_RETRY_S: Final = 5.0


class Platform(StepRunner, Protocol):
    """What the loop needs of Ray; blocking calls run in a thread."""

    def create(self, spec: InstanceSpec, resources: dict[str, float]) -> Placed:
        """Place an instance or find it."""
        ...

    def placed_ids(self) -> list[str]:
        """Ids of all instances that live."""
        ...

    def find(self, instance_id: str) -> Placed | None:
        """Find an instance."""
        ...

    async def address(self, placed: Placed) -> tuple[str, str]:
        """Where it listens, and its node."""
        ...

    def remove(self, placed: Placed) -> None:
        """Stop it for good."""
        ...

    def restart(self, placed: Placed) -> None:
        """Kill it; it comes back."""
        ...


class ControllerLoop:
    """The controller's state, and the tasks that move it."""

    def __init__(
        self,
        config: ClusterConfig,
        home: Path,
        platform: Platform,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """home: folder on this machine for the state file and the instances' own files."""
        self._config, self._home, self._platform, self._clock = config, home, platform, clock
        self._state_file = StateFile(home / "controller.json")
        self._memory = self._state_file.load(config.scale) or Memory(config.scale)
        self._save_error = ""
        self._adopted = False
        if self._memory.topology.epoch == 0:
            # Above whatever a lost state file had counted to.
            self._memory.topology.epoch = time.time_ns() // 1_000_000
        self._minders: dict[str, Minder] = {}
        self._catalogue: list[CatalogEntry] | None = None
        self._builds = Builds(
            config.build,
            platform,
            self._writer,
            clock=clock,
            on_entry=self._take_entry,
            reading=WriterSettings(**settings_for(config, Role.ROLE_WRITER, WRITER, home)),
            train_at_passages=config.train_at_passages,
        )
        self._failed_starts: dict[str, tuple[float, str]] = {}
        self._self = Instance()
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._lag = ShardLag(self._memory.topology)

    # What the controller's service shows and takes.

    @property
    def topology(self) -> Topology:
        """The topology published last."""
        return self._memory.topology

    @property
    def problems(self) -> list[str]:
        """What differs from what is declared. Empty if the cluster is whole."""
        found = problems(self._config, self._memory, self._observed(), self._clock())
        return [self._save_error, *found] if self._save_error else found

    def set_scale(self, scale: Scale) -> None:
        """Declare new numbers; durable when this returns. Raises OSError."""
        self._declare(replace(self._memory, scale=scale))

    def set_index_scale(self, uid: str, scale: IndexScale) -> Scale:
        """Declare how an index is divided; durable when this returns. Raises OSError.

        Returns the numbers in force for it.
        """
        scales = {**self._memory.index_scales, uid: scale}
        self._declare(replace(self._memory, index_scales=scales))
        return self._memory.scale_of(uid)

    def index_scale(self, uid: str) -> IndexScale:
        """How an index differs from the cluster's numbers."""
        return self._memory.index_scales.get(uid, IndexScale())

    def uid_of(self, name: str) -> str | None:
        """Find an index in the catalogue that was read last."""
        entries = self._catalogue or ()
        return next((entry.uid for entry in entries if entry.name == name), None)

    def _declare(self, memory: Memory) -> None:
        self._state_file.save(memory, self._config.scale)
        self._memory = memory
        self._wake.set()

    @property
    def scale(self) -> Scale:
        """The numbers in force."""
        return self._memory.scale

    async def start_build(
        self,
        name: str,
        *,
        promote: bool,
        recall_target: float = 0.0,
        kind: int = 0,
        encoder_bundle: str = "",
        space: str = "",
    ) -> IndexVersion:
        """Begin to build a version of an index. Raises ServiceError.

        recall_target, kind: 0 means the index's. encoder_bundle: empty means the model in force.
        space: empty means the default one.
        """
        await self._read_catalogue()
        if self._catalogue is None:
            raise not_ready("the controller has not read the catalogue yet: try again in a moment")
        for entry in self._catalogue:
            if entry.name == name:
                return await self._builds.start(
                    entry,
                    self._memory.scale_of(entry.uid).shards,
                    promote=promote,
                    recall_target=recall_target,
                    kind=kind,
                    encoder_bundle=encoder_bundle,
                    space=space,
                )
        raise ServiceError(
            Reason.REASON_INDEX_NOT_FOUND, f"there is no index {name!r}: create it first"
        )

    async def builds(self) -> list[Build]:
        """How far the builds are that run."""
        return await self._builds.progress()

    def introduce(self, instance: Instance) -> None:
        """Say where the controller itself listens."""
        self._self = instance

    async def run(self) -> None:
        """Step until cancelled. A step that fails is logged, and the next one tries again."""
        while True:
            try:
                if not self._adopted:
                    await self._adopt()
                await self._read_catalogue()
                self._step()
            except Exception:  # noqa: BLE001  # the loop must outlive its bugs
                _log.exception("a step of the controller failed; the next one tries again")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            self._wake.clear()

    async def close(self) -> None:
        """Stop the tasks. The instances live on."""
        await self._builds.close()
        for minder in self._minders.values():
            await minder.close()
        for task in list(self._tasks):
            task.cancel()

    async def remove_all(self) -> None:
        """Stop every instance, the callers' side first."""
        order = [Role.ROLE_BROKER, Role.ROLE_RERANKER, Role.ROLE_ENCODER, Role.ROLE_SHARD_SERVER]
        minders = sorted(
            self._minders.values(),
            key=lambda minder: order.index(minder.role) if minder.role in order else len(order),
        )
        for minder in minders:
            await minder.close()
            await asyncio.to_thread(self._platform.remove, minder.placed)
        self._minders.clear()

    # The steps.

    async def _adopt(self) -> None:
        """Find the instances that an earlier life of this controller placed."""
        for instance_id in await asyncio.to_thread(self._platform.placed_ids):
            if instance_id in self._minders:
                continue
            placed = await asyncio.to_thread(self._platform.find, instance_id)
            role = role_of(instance_id)
            if placed is not None and role is not None:
                self._mind(instance_id, role, placed)
        self._adopted = True

    async def _read_catalogue(self) -> None:
        writer = self._minders.get(WRITER)
        if writer is None or not writer.seen.address:
            return
        try:
            response = await WriterServiceStub(writer.channel).ListTables(
                ListTablesRequest(), timeout=CATALOGUE_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            _log.debug("the writer's catalogue could not be read: %s", error.details())
            return
        except asyncio.CancelledError:
            require_running()  # The writer's channel was closed under the call: it moved.
            return
        self._catalogue = list(response.entries)

    def _writer(self) -> WriterServiceAsyncStub:
        """The writer. Raises ServiceError while there is none."""
        writer = self._minders.get(WRITER)
        if writer is None or not writer.seen.address:
            raise not_ready("the writer has not started yet: try again in a moment")
        return WriterServiceStub(writer.channel)

    def _take_entry(self, entry: CatalogEntry) -> None:
        """Take what the writer has said of one index, before the next look at all of them."""
        if self._catalogue is not None:
            self._catalogue = [entry if each.uid == entry.uid else each for each in self._catalogue]
            self._wake.set()

    def _observed(self) -> Observed:
        instances = {id_: minder.seen for id_, minder in self._minders.items()}
        now_s = self._clock()
        for id_, (failed_s, error) in list(self._failed_starts.items()):
            if now_s - failed_s > CREATE_RETRY_S:
                del self._failed_starts[id_]
                continue
            role = role_of(id_)
            assert role is not None
            instances.setdefault(id_, Seen(id_, role, failed_s, error=error))
        return Observed(instances, self._catalogue, self._builds.seen(), self._self)

    def _step(self) -> None:
        for id_, minder in list(self._minders.items()):
            if minder.death is not None:  # Ray will not start it again: place it anew.
                _log.warning("%s died: %s", id_, minder.death)
                self._failed_starts[id_] = (self._clock(), minder.death)
                del self._minders[id_]
                self._spawn(minder.close())
        before = self._memory
        memory, actions = plan(self._config, before, self._observed(), self._clock())
        memory.topology.epoch = max(memory.topology.epoch, self._newest_epoch())
        if memory.topology.epoch != before.topology.epoch:
            self._save(memory)
        self._memory = memory
        for action in actions:
            self._act(action)
        self._publish()

    def _save(self, memory: Memory) -> None:
        """Store what must not be forgotten; a full disk must not keep the cluster from healing."""
        try:
            self._state_file.save(memory, self._config.scale)
        except OSError as error:
            self._save_error = f"the controller cannot store its state: {error}"
            _log.error("%s", self._save_error)
        else:
            self._save_error = ""

    def _newest_epoch(self) -> int:
        """One above what any instance follows, if that is ahead: the state file was lost."""
        known = self._memory.topology.epoch
        ahead = [
            minder.seen.answer.epoch
            for minder in self._minders.values()
            if minder.seen.answer is not None and minder.seen.answer.epoch > known
        ]
        return max(ahead) + 1 if ahead else known

    def _publish(self) -> None:
        """Hand the topology to the minders: brokers at once, shard servers once those follow."""
        topology, now_s = self._memory.topology, self._clock()
        if self._catalogue is None and not topology.indexes:
            return  # Nothing is known yet of the indexes: to say so would have them dropped.
        brokers = [each.seen for each in self._minders.values() if each.role == Role.ROLE_BROKER]
        brokers_follow = all(
            seen.answer is not None and seen.answer.epoch >= topology.epoch
            for seen in brokers
            if seen.is_ready(now_s)
        )
        lagged = self._lag.advance(topology, brokers_follow=brokers_follow, now_s=now_s)
        for minder in self._minders.values():
            is_shard_server = minder.role == Role.ROLE_SHARD_SERVER
            minder.publish(lagged if is_shard_server else topology)

    def _act(self, action: Action) -> None:
        match action:
            case Create():
                self._create(action)
            case Remove(id=id_):
                minder = self._minders.pop(id_)
                _log.info("%s has drained and is stopped", id_)
                self._spawn(self._remove(minder))
            case Restart(id=id_):
                minder = self._minders[id_]
                _log.warning("%s hangs and is killed; Ray starts it again", id_)
                minder.restarting(self._clock())
                self._spawn(asyncio.to_thread(self._platform.restart, minder.placed))
            case BuildFirst(entry=entry):
                shards = self._memory.scale_of(entry.uid).shards
                self._builds.start_by_itself(entry, shards)
            case Abandon(entry=entry, index_version=number):
                self._builds.abandon(entry, number)

    def _create(self, action: Create) -> None:
        spec = instance_spec(self._config, action.id, action.role, self._home, bundle=action.bundle)
        placed = self._platform.create(spec, resources_for(self._config, action.role))
        _log.info("%s is placed", action.id)
        self._mind(action.id, action.role, placed)

    def _mind(self, instance_id: str, role: Role.ValueType, placed: Placed) -> None:
        self._minders[instance_id] = Minder(
            instance_id, role, placed, self._platform.address, self._clock
        )

    async def _remove(self, minder: Minder) -> None:
        await minder.close()
        await asyncio.to_thread(self._platform.remove, minder.placed)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def own_entry(address: str, pid: int) -> Instance:
    """The controller's own entry in the topology."""
    instance = Instance(
        id="controller",
        role=Role.ROLE_CONTROLLER,
        address=address,
        pid=pid,
        state=InstanceState.INSTANCE_STATE_READY,
    )
    instance.start_time.GetCurrentTime()
    return instance
