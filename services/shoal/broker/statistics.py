"""How do lexical scores rest on the whole index, when several servers hold it?

Each server counts the question's terms in its own shards; the broker adds the counts up and sends
them along with the search, so that all servers weigh the terms alike. Counting runs while the
question is encoded, which takes longer, so that it lengthens nothing. Where one server holds all
shards it counts by itself, without a call.

The sums are kept for a while. They are exact for the table version that the probe has last heard
of, which is a quarter of a second old at most; a search in between weighs its terms by counts that
lack the latest writes, the same on all servers. A search that asks for a table version counts at
that one.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import grpc
import numpy as np
from shoal.broker.coalesce import Coalescer
from shoal.broker.config import BrokerSettings
from shoal.broker.routes import IndexRoute, ShardGroup
from shoal.broker.targets import Target, Targets
from shoal.internal.v1.shard_pb2 import CountTermsRequest, CountTermsResponse, TermStatistics
from shoal.internal.v1.shard_pb2_grpc import ShardServiceStub
from shoal.rpc.arrays import UINT64, pack, unpack
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.v1.errors_pb2 import Reason

# Sums that are kept: a question's are about 200 bytes.
MAX_KEPT: Final = 4_096
# How old they may become, whatever the probe knows.
KEPT_S: Final = 10.0

_Key = tuple[object, ...]
# Counts; None where there are no terms; or why there is no answer.
_Answer = TermStatistics | None | Exception


@dataclass(frozen=True)
class _Question:
    text: str
    min_table_version: int


class StatisticsStage:
    """Counts terms in the shards of all servers."""

    def __init__(
        self,
        targets: Targets,
        settings: BrokerSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """targets: the shard servers."""
        self._targets, self._clock = targets, clock
        self._max_count = settings.coalesce_count
        # Once some have counted, the others are waited for no longer than that.
        self._straggler_s = settings.straggler_s
        self._kept: OrderedDict[_Key, tuple[TermStatistics, float]] = OrderedDict()

    async def count(
        self,
        route: IndexRoute,
        text: str,
        versions: tuple[int, ...] | None,
        deadline: Deadline,
        min_table_version: int = 0,
    ) -> TermStatistics | None:
        """Count a question's terms in the whole index; None if the index has no terms.

        versions: of the table, that the shards have applied, as far as is known. min_table_version:
        one that they have perhaps not applied yet, and that is to be waited for.
        Raises LEXICAL_UNAVAILABLE if no server counts; the counts of some will do.
        """
        key = (route.key, versions, text)
        kept = self._kept.get(key)
        if kept is not None and kept[1] > self._clock() and not min_table_version:
            self._kept.move_to_end(key)
            return kept[0]
        found = await self._gathered(route, _Question(text, min_table_version), deadline)
        counted = [each for each in found if isinstance(each, TermStatistics)]
        if not counted:
            failed = [each for each in found if isinstance(each, Exception)]
            if len(failed) == len(found):
                raise ServiceError(
                    Reason.REASON_LEXICAL_UNAVAILABLE,
                    f"no shard server counted the question's words ({failed[0]}): the hits were "
                    f"found by vectors alone",
                )
            return None
        total = summed(counted)
        if len(counted) == len(route.groups) and versions is not None:
            self._kept[key] = total, self._clock() + KEPT_S
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return total

    async def _gathered(
        self, route: IndexRoute, question: _Question, deadline: Deadline
    ) -> list[_Answer]:
        tasks = [
            asyncio.create_task(self._ask(route, group, question, deadline))
            for group in route.groups
        ]
        pending, wait_until = set(tasks), deadline
        try:
            while pending and not wait_until.passed:
                done, pending = await asyncio.wait(
                    pending, timeout=wait_until.budget_s, return_when=asyncio.FIRST_COMPLETED
                )
                if wait_until is deadline and any(
                    not isinstance(task.result(), Exception) for task in done
                ):
                    wait_until = Deadline.after(min(self._straggler_s, deadline.budget_s / 2))
        finally:
            for task in pending:
                task.cancel()
        late = TimeoutError("it did not answer in time")
        return [late if task in pending else task.result() for task in tasks]

    async def _ask(
        self, route: IndexRoute, group: ShardGroup, question: _Question, deadline: Deadline
    ) -> _Answer:
        """Ask a group; None if it has no terms, an error if it does not answer."""
        now_s = self._clock()
        targets = [self._targets.get(id_) for id_ in group.servers]
        if all(target is None or target.health.shunned(now_s) for target in targets):
            return TimeoutError("it has not answered for a while")

        async def ask(target: Target) -> TermStatistics | None:
            if question.min_table_version:
                # What waits for a version must not make others wait with it.
                (counted,) = await _count(target, route, group, [question], deadline.budget_s)
                return counted
            return await self._coalescer(target, route, group).submit(question, deadline)

        try:
            _, counted = await self._targets.first_to_do(
                ask,
                deadline,
                group.servers,
                rounds=1,  # The others' counts will do.
            )
        except ServiceError as error:
            # A server of a release that counts nothing is as one without terms.
            unknown = error.failure.wire_code is grpc.StatusCode.UNIMPLEMENTED
            return None if unknown else error
        except TimeoutError:
            return TimeoutError("it did not answer in time")
        return counted

    def _coalescer(
        self, target: Target, route: IndexRoute, group: ShardGroup
    ) -> Coalescer[_Question, TermStatistics | None]:
        key = ("count", route.key, group.shards)
        if key not in target.coalescers:

            async def call(
                questions: Sequence[_Question], budget_s: float
            ) -> list[TermStatistics | None]:
                return await _count(target, route, group, questions, budget_s)

            target.make_room("count", route.key)
            target.coalescers[key] = Coalescer(call, max_count=self._max_count)
        return target.coalescers[key]


def summed(parts: Sequence[TermStatistics]) -> TermStatistics:
    """Add up counts of the same terms."""
    total = TermStatistics(
        passage_count=sum(each.passage_count for each in parts),
        total_length=sum(each.total_length for each in parts),
        terms=parts[0].terms,
    )
    assert all(each.terms == total.terms for each in parts)
    counts = [unpack(each.frequencies, UINT64, "frequencies") for each in parts]
    total.frequencies = pack(np.stack(counts).sum(axis=0, dtype=np.uint64), UINT64)
    return total


async def _count(
    target: Target,
    route: IndexRoute,
    group: ShardGroup,
    questions: Sequence[_Question],
    budget_s: float,
) -> list[TermStatistics | None]:
    request = CountTermsRequest(
        layout=route.layout,
        shards=group.shards,
        texts=[each.text for each in questions],
        min_table_version=questions[0].min_table_version,
    )
    stub = ShardServiceStub(target.channel)
    response: CountTermsResponse = await target.call(
        lambda: stub.CountTerms(request, timeout=budget_s)
    )
    if not response.statistics:
        return [None] * len(questions)
    return list(response.statistics)
