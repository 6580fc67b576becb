"""What does each shard server say of its shards, a few times a second?

The answers tell which table version every shard has applied, so that a cached answer is never older
than a shard; how many passages a shard holds, so that coverage knows what is missing; and whether
an index can be searched.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import grpc
from shoal.broker.routes import IndexRoute
from shoal.broker.targets import Target, Targets
from shoal.internal.v1.shard_pb2 import DescribeShardsRequest, ShardState
from shoal.internal.v1.shard_pb2_grpc import ShardServiceStub
from shoal.rpc.deadline import Deadline

TIMEOUT_S: Final = 1.0
# A server that was not heard of for so long is not counted on.
STALE_S: Final = 1.5

_Key = tuple[str, int, int]


@dataclass(frozen=True)
class Report:
    """What a shard server said last."""

    at_s: float
    states: Mapping[tuple[_Key, int], ShardState]


class Probe:
    """Keeps the states of all shard servers."""

    def __init__(self, targets: Targets, interval_s: float) -> None:
        """targets: the shard servers."""
        self._targets, self._interval_s = targets, interval_s
        self._reports: dict[str, Report] = {}
        self._counts: dict[tuple[_Key, int], int] = {}
        # Versions of a layout's shards, and until when they may be taken for known.
        self._applied: dict[_Key, tuple[tuple[int, ...] | None, float]] = {}
        self._task: asyncio.Task[None] | None = None
        self._asking: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin to ask."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for asking in self._asking.values():
            asking.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    async def refresh(self, deadline: Deadline) -> None:
        """Ask everybody now, and wait for the answers, as far as they come in time."""
        with contextlib.suppress(TimeoutError):
            async with deadline.timeout():
                await asyncio.gather(*(self._ask(target) for target in self._targets.all()))

    def states(self, route: IndexRoute, *, fresh: bool = True) -> dict[tuple[str, int], ShardState]:
        """States of an index's shards in its serving layout, by server and shard."""
        now_s = time.monotonic()
        found = {}
        for group in route.groups:
            for server in group.servers:
                report = self._reports.get(server)
                if report is None or (fresh and now_s - report.at_s > STALE_S):
                    continue
                for shard in group.shards:
                    state = report.states.get((route.key, shard))
                    if state is not None:
                        found[server, shard] = state
        return found

    def applied_versions(self, route: IndexRoute) -> tuple[int, ...] | None:
        """The newest table version that each shard has applied; None if one is unknown."""
        # Every search asks, and what is known changes only when a server is heard or falls silent.
        now_s = time.monotonic()
        known, until_s = self._applied.get(route.key, (None, now_s))
        if now_s >= until_s:
            known = self._newest_versions(route)
            heard_s = [each.at_s for each in self._reports.values() if now_s - each.at_s <= STALE_S]
            self._applied[route.key] = known, min(heard_s, default=now_s) + STALE_S
        return known

    def _newest_versions(self, route: IndexRoute) -> tuple[int, ...] | None:
        newest: dict[int, int] = {}
        for (_, shard), state in self.states(route).items():
            if state.ready:
                newest[shard] = max(newest.get(shard, 0), state.table_version)
        if len(newest) < route.shard_count:
            return None
        return tuple(newest[shard] for shard in range(route.shard_count))

    def reached(self, route: IndexRoute, version: int) -> bool:
        """True if every copy of every shard is known to have applied a table version.

        Not only the newest: a query may be answered by any of them.
        """
        states = self.states(route)
        return all(
            state is not None and state.ready and state.table_version >= version
            for group in route.groups
            for server in group.servers
            for state in (states.get((server, shard)) for shard in group.shards)
        )

    def known_counts(self, route: IndexRoute) -> dict[int, int]:
        """Passages of each shard, as last known, also of servers that are gone."""
        counts = {shard: self._counts.get((route.key, shard)) for shard in range(route.shard_count)}
        return {shard: count for shard, count in counts.items() if count is not None}

    async def _run(self) -> None:
        while True:
            targets = {target.id: target for target in self._targets.all()}
            # One that hangs must not keep the news of the others from coming.
            self._asking = {id_: task for id_, task in self._asking.items() if not task.done()}
            for id_ in targets.keys() - self._asking.keys():
                self._asking[id_] = asyncio.create_task(self._ask(targets[id_]))
            self._reports = {id_: each for id_, each in self._reports.items() if id_ in targets}
            await asyncio.sleep(self._interval_s)

    async def _ask(self, target: Target) -> None:
        asked_s = time.monotonic()
        try:
            response = await ShardServiceStub(target.channel).DescribeShards(
                DescribeShardsRequest(), timeout=TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            return
        states = {
            (
                (
                    state.layout.index_uid,
                    state.layout.index_version,
                    state.layout.shard_count,
                ),
                state.shard,
            ): state
            for state in response.shards
        }
        self._reports[target.id] = Report(asked_s, states)
        self._applied.clear()
        self._counts |= {key: each.passage_count for key, each in states.items() if each.ready}
