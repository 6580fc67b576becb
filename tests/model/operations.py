"""What is done to a living index: an operation is what it needs, and how it is done.

An operation is drawn before anything is known of the index, so that the same seed gives the same
operations, whatever ran beside them. What it names may not be there: it is then refused, and how is
part of the check, or it takes what is there (`number % count`).
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from hypothesis import strategies as st
from shoal.shard.kind_names import KIND_NAMES, KindName

from tests.model.copies import copy
from tests.model.retention import clean, expire, purge
from tests.model.world import POOL, World

_IDS: Final = st.lists(st.sampled_from(POOL), min_size=1, max_size=12)
_MANY_IDS: Final = st.lists(st.sampled_from(POOL), min_size=34, max_size=40)
_NUMBERS: Final = st.integers(0, 2**16)
_INSTANCES: Final = ("shard-server-0-0", "shard-server-1-0", "writer-0", "broker-0", "controller")


class Operation(Protocol):
    """A step."""

    # Whether others may see failures and incomplete answers meanwhile.
    disturbs: ClassVar[bool]

    async def do(self, world: World) -> None:
        """Do it, and return when it is in force."""
        ...


class _Harmless:
    disturbs: ClassVar[bool] = False


@dataclass(frozen=True)
class Upsert(_Harmless):
    """Write documents in one stream; those that stand in it twice are replaced at once."""

    ids: list[str]
    number: int

    async def do(self, world: World) -> None:
        await world.upsert(self.ids, self.number)


@dataclass(frozen=True)
class UpsertOneByOne(_Harmless):
    """Write documents in a commit each: fragments that are compacted, versions that are cleaned."""

    ids: list[str]
    number: int

    async def do(self, world: World) -> None:
        await world.upsert_one_by_one(self.ids, self.number)


@dataclass(frozen=True)
class Delete(_Harmless):
    """Delete documents, of which some are not there."""

    ids: list[str]

    async def do(self, world: World) -> None:
        await world.delete(self.ids)


@dataclass(frozen=True)
class Build(_Harmless):
    """Build a version of some kind, and perhaps promote it."""

    kind: KindName
    promote: bool

    async def do(self, world: World) -> None:
        await world.build(self.kind, promote=self.promote)


@dataclass(frozen=True)
class Promote(_Harmless):
    """Promote a version that is ready, or version 0."""

    number: int

    async def do(self, world: World) -> None:
        ready = [0, *world.versions]
        await world.promote(ready[self.number % len(ready)])


@dataclass(frozen=True)
class RollBack(_Harmless):
    """Go back to the version before."""

    async def do(self, world: World) -> None:
        await world.roll_back()


@dataclass(frozen=True)
class DropVersion(_Harmless):
    """Drop a version, or try to drop the one that serves."""

    number: int

    async def do(self, world: World) -> None:
        if world.versions:
            await world.drop_version(list(world.versions)[self.number % len(world.versions)])


@dataclass(frozen=True)
class Divide(_Harmless):
    """Another number of shards and of replicas."""

    shards: int
    replicas: int

    async def do(self, world: World) -> None:
        await world.divide(self.shards, self.replicas)


@dataclass(frozen=True)
class Restart:
    """End an instance in good order or not; it comes back."""

    instance: str
    signal: signal.Signals
    disturbs: ClassVar[bool] = True

    async def do(self, world: World) -> None:
        await world.restart(self.instance, self.signal)


@dataclass(frozen=True)
class Expire(_Harmless):
    """Write documents that expire in a moment, and others that have; wait until all have."""

    ids: list[str]
    past: list[str]
    number: int

    async def do(self, world: World) -> None:
        await expire(world, self.ids, self.past, self.number)


@dataclass(frozen=True)
class Purge(_Harmless):
    """Take documents out of storage, of which some are not there."""

    ids: list[str]

    async def do(self, world: World) -> None:
        await purge(world, self.ids)


@dataclass(frozen=True)
class Clean(_Harmless):
    """Clean the index, which removes rows, tombstones and versions."""

    async def do(self, world: World) -> None:
        await clean(world)


@dataclass(frozen=True)
class Copy(_Harmless):
    """Take a snapshot, and make another index of it, on some number of shards."""

    shards: int
    number: int

    async def do(self, world: World) -> None:
        await copy(world, self.shards, self.number)


# What stands here twice is drawn twice as often.
OPERATIONS: Final[st.SearchStrategy[Operation]] = st.one_of(
    st.builds(Upsert, _IDS, _NUMBERS),
    st.builds(Upsert, _IDS, _NUMBERS),
    st.builds(Delete, _IDS),
    st.builds(Delete, _IDS),
    st.builds(UpsertOneByOne, _MANY_IDS, _NUMBERS),
    st.builds(Expire, _IDS, _IDS, _NUMBERS),
    st.builds(Purge, _IDS),
    st.builds(Clean),
    st.builds(Copy, st.integers(1, 4), _NUMBERS),
    st.builds(Build, st.sampled_from(KIND_NAMES), st.booleans()),
    st.builds(Promote, _NUMBERS),
    st.builds(RollBack),
    st.builds(RollBack),
    st.builds(DropVersion, _NUMBERS),
    st.builds(Divide, st.integers(1, 4), st.integers(1, 2)),
    st.builds(Divide, st.integers(1, 4), st.integers(1, 2)),
    st.builds(
        Restart,
        st.sampled_from(_INSTANCES),
        st.sampled_from([signal.SIGKILL, signal.SIGTERM]),
    ),
)
