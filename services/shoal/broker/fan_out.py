"""How does a query reach every shard, and what if some do not answer?

One call goes to one server of each group of shards. A server that fails is replaced by another
replica; with two or more, one that is slower than it used to be is hedged. Once some groups have
answered, the others are waited for only a while longer: a straggler is left out and named. One that
is not slow but away is waited for a little longer, as a server that was killed is soon back; that
patience counts from its first failure, so an outage that lasts stalls nobody. While nobody has
answered, the search waits for the deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from shoal.broker.coalesce import Coalescer
from shoal.broker.config import BrokerSettings
from shoal.broker.hedge import HedgeBudget
from shoal.broker.replicas import NEVER_S
from shoal.broker.routes import IndexRoute, ShardGroup
from shoal.broker.targets import Target, Targets
from shoal.internal.v1.shard_pb2 import (
    CandidateList,
    Fill,
    LexicalQuery,
    SearchShardsRequest,
    SearchShardsResponse,
    ShardState,
)
from shoal.internal.v1.shard_pb2_grpc import ShardServiceStub
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import Vectors, VectorType

# Passages with their text in one answer. A passage has one or two kilobytes, and messages end at 64
# MiB: the queries of a call that asks for more would all fail together. The usual twenty candidates
# of 64 queries stay below it.
MAX_TEXTS: Final = 2_048


@dataclass(frozen=True)
class ShardQuery:
    """What one query asks of the shards."""

    vector: bytes
    """Little-endian float32, unit length."""
    top_k: int
    fill: Fill.ValueType
    min_table_version: int = 0
    filter: str = ""
    """Canonical; empty if there is none."""
    words: LexicalQuery | None = None
    """None: only its vector is looked at."""

    @property
    def text_count(self) -> int:
        """Passages that come with their text."""
        return self.top_k if self.fill == Fill.FILL_TEXT else 0


@dataclass(frozen=True)
class GroupAnswer:
    """What a shard server found in the shards of a group."""

    server: str
    candidates: CandidateList
    states: Sequence[ShardState]

    @property
    def ready_count(self) -> int:
        """Shards that were searched."""
        return sum(state.ready for state in self.states)


@dataclass
class Found:
    """What all groups found."""

    answers: list[GroupAnswer] = field(default_factory=list)
    failures: list[tuple[ShardGroup, Exception]] = field(default_factory=list)

    def is_behind(self, version: int) -> bool:
        """True if a shard that was searched had not applied a table version."""
        return any(
            state.ready and state.table_version < version
            for answer in self.answers
            for state in answer.states
        )


class FanOut:
    """Sends queries to the shard servers, many in a call."""

    def __init__(self, targets: Targets, settings: BrokerSettings) -> None:
        """targets: the shard servers."""
        self._targets, self._settings = targets, settings
        self._hedges = HedgeBudget(settings.hedge_ratio)

    async def search(self, route: IndexRoute, query: ShardQuery, deadline: Deadline) -> Found:
        """Ask every group. What could not be had stands among the failures."""
        found = Found()
        if len(route.groups) == 1:  # The common case, without a task for it.
            await self._collect(
                found, route.groups[0], self._ask(route, route.groups[0], query, deadline)
            )
            return found
        wait_until = longest = deadline
        pending = {
            asyncio.create_task(self._ask(route, group, query, deadline)): group
            for group in route.groups
        }
        try:
            while pending and not wait_until.passed:
                done, _ = await asyncio.wait(
                    pending, timeout=wait_until.budget_s, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    await self._collect(found, pending.pop(task), task)
                if found.answers and wait_until is deadline:
                    longest = deadline.share(0.5)
                    wait_until = self._straggler_deadline(deadline)
                elif pending and wait_until.passed and wait_until is not deadline:
                    wait_until = self._restart_deadline(pending.values(), longest)
            found.failures += [(group, TimeoutError()) for group in pending.values()]
        finally:
            for task in pending:
                task.cancel()
        return found

    def _straggler_deadline(self, deadline: Deadline) -> Deadline:
        patience_s = min(self._settings.straggler_s, deadline.budget_s / 2)
        return Deadline.after(patience_s, deadline.clock)

    def _restart_deadline(self, groups: Iterable[ShardGroup], longest: Deadline) -> Deadline:
        """Until when servers that are away, and not merely slow, may yet be back."""
        back_s = max(map(self._down_since_s, groups)) + self._settings.restart_s
        return Deadline(min(back_s, longest.at_s), longest.clock)

    def _down_since_s(self, group: ShardGroup) -> float:
        """When the last of a group's servers went away; long ago if one has not."""
        targets = [self._targets.get(id_) for id_ in group.servers]
        since_s = [target.health.down_since_s for target in targets if target is not None]
        return max(since_s) if since_s and NEVER_S not in since_s else NEVER_S

    async def _collect(
        self, found: Found, group: ShardGroup, answer: Awaitable[GroupAnswer]
    ) -> None:
        try:
            found.answers.append(await answer)
        except (ServiceError, TimeoutError) as error:
            found.failures.append((group, error))

    async def _ask(
        self, route: IndexRoute, group: ShardGroup, query: ShardQuery, deadline: Deadline
    ) -> GroupAnswer:
        """Ask the replicas of a group in turn; the fullest answer, if none has all its shards."""
        partial: dict[str, GroupAnswer] = {}

        async def ask_the_one(target: Target) -> GroupAnswer:
            return await self._ask_hedged(target, route, group, query, deadline)

        if len(group.servers) == 1:
            _, answer = await self._targets.first_to_do(ask_the_one, deadline, group.servers)
            return answer

        async def ask(target: Target) -> GroupAnswer:
            answer = await self._ask_hedged(target, route, group, query, deadline)
            again = answer.server in partial
            partial[answer.server] = answer
            fullest = max(partial.values(), key=lambda each: each.ready_count)
            whole = fullest.ready_count == len(group.shards)
            if whole or again or len(partial) == len(group.servers):
                return fullest
            # Each replica is asked once; a shard that is being loaded is not waited for.
            raise ServiceError(
                Reason.REASON_NOT_READY, f"{answer.server} is still loading some of these shards"
            )

        try:
            _, answer = await self._targets.first_to_do(ask, deadline, group.servers)
        except (ServiceError, TimeoutError):
            if not partial:
                raise
            return max(partial.values(), key=lambda each: each.ready_count)
        return answer

    async def _ask_hedged(
        self,
        target: Target,
        route: IndexRoute,
        group: ShardGroup,
        query: ShardQuery,
        deadline: Deadline,
    ) -> GroupAnswer:
        self._hedges.paid()
        if len(group.servers) == 1:
            return await self._ask_one(target, route, group, query, deadline)
        first = asyncio.create_task(self._ask_one(target, route, group, query, deadline))
        racing = {first}
        try:
            if await self._is_slow(first, target, deadline):
                other = self._targets.choose(group.servers, {target.id})
                if other is not None:
                    again = self._ask_one(other, route, group, query, deadline)
                    racing.add(asyncio.create_task(again))
            return await _first_answer(racing)
        finally:
            for task in racing:
                task.cancel()

    async def _is_slow(
        self, call: asyncio.Task[GroupAnswer], target: Target, deadline: Deadline
    ) -> bool:
        """Wait for a call, until it is slow and may be hedged, or is taken for lost."""
        slow_s, lost_s = target.health.slow_s, target.health.lost_s
        done, _ = await asyncio.wait({call}, timeout=min(slow_s, deadline.budget_s))
        if not done and not self._hedges.take():
            done, _ = await asyncio.wait({call}, timeout=min(lost_s - slow_s, deadline.budget_s))
        return not done

    async def _ask_one(
        self,
        target: Target,
        route: IndexRoute,
        group: ShardGroup,
        query: ShardQuery,
        deadline: Deadline,
    ) -> GroupAnswer:
        # Queries that wait for a version must not make others wait with them.
        key = ("search", route.key, group.shards)
        if query.min_table_version:
            (answer,) = await _search(target, route, group, [query], deadline.budget_s)
            return answer
        if key not in target.coalescers:
            target.coalescers[key] = self._coalescer(target, route, group)
        coalescer: Coalescer[ShardQuery, GroupAnswer] = target.coalescers[key]
        try:
            return await coalescer.submit(query, deadline)
        except ServiceError as error:
            if error.reason != Reason.REASON_INVALID_FILTER:
                raise
        # One of the call's filters is refused, perhaps another query's: alone, it is known.
        (answer,) = await _search(target, route, group, [query], deadline.budget_s)
        return answer

    def _coalescer(
        self, target: Target, route: IndexRoute, group: ShardGroup
    ) -> Coalescer[ShardQuery, GroupAnswer]:
        async def call(queries: Sequence[ShardQuery], budget_s: float) -> list[GroupAnswer]:
            return await _search(target, route, group, queries, budget_s)

        target.make_room("search", route.key)
        return Coalescer(
            call,
            max_count=self._settings.coalesce_count,
            weigh=lambda query: query.text_count,
            max_weight=MAX_TEXTS,
        )


async def _search(
    target: Target,
    route: IndexRoute,
    group: ShardGroup,
    queries: Sequence[ShardQuery],
    budget_s: float,
) -> list[GroupAnswer]:
    request = SearchShardsRequest(
        layout=route.layout,
        shards=group.shards,
        queries=Vectors(
            values=b"".join([query.vector for query in queries]),
            count=len(queries),
            dimension=route.dimension,
            type=VectorType.VECTOR_TYPE_FLOAT32,
        ),
        top_k=[query.top_k for query in queries],
        fill=[query.fill for query in queries],
        min_table_version=queries[0].min_table_version,
        filters=[query.filter for query in queries] if any(q.filter for q in queries) else None,
    )
    if any(query.words is not None for query in queries):
        request.lexical.extend([query.words or LexicalQuery() for query in queries])
    stub = ShardServiceStub(target.channel)
    response: SearchShardsResponse = await target.call(
        lambda: stub.SearchShards(request, timeout=budget_s)
    )
    if not any(state.ready for state in response.shards):
        raise ServiceError(Reason.REASON_NOT_READY, f"{target.id} has none of these shards ready")
    return [GroupAnswer(target.id, each, response.shards) for each in response.results]


async def _first_answer(racing: set[asyncio.Task[GroupAnswer]]) -> GroupAnswer:
    """The first that does not fail; what the last one raised if all do."""
    pending = racing
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        answered = [task for task in done if task.exception() is None]
        if answered or not pending:
            return (answered or list(done))[0].result()
