"""How is a version rolled out, as callers see it?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
from shoal.broker.probe import Probe
from shoal.broker.routes import IndexRoute
from shoal.broker.targets import Target, Targets
from shoal.broker.validation import check_index_name
from shoal.broker.waiting import RoutesBoard
from shoal.broker.writing import reach_writer
from shoal.internal.v1.writer_pb2 import ChangeRolloutRequest
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.v1.indexes_pb2 import (
    CanaryReport,
    DescribeRolloutRequest,
    DescribeRolloutResponse,
    SetRolloutRequest,
    SetRolloutResponse,
    ShadowReport,
)
from shoal.v1.indexes_pb2_grpc import IndexServiceStub

_Context = grpc.aio.ServicerContext[Any, Any]

# Part of a call's budget that is spent waiting for the topology to say what was set.
_WAIT_SHARE: Final = 0.9
# Most that other brokers may take to say what they have compared: the report does without.
_PEERS_S: Final = 1.0


@dataclass(frozen=True)
class Peers:
    """The brokers, and what this one has compared and counted."""

    brokers: Targets
    own_id: str
    report: Callable[[IndexRoute], ShadowReport]
    canary: Callable[[IndexRoute], CanaryReport]

    async def reports(self, name: str, deadline: Deadline) -> list[DescribeRolloutResponse]:
        """What the other brokers have compared and counted, as far as they answer."""
        patience_s = min(_PEERS_S, deadline.budget_s / 2)
        request = DescribeRolloutRequest(name=name, local=True)

        async def ask(target: Target) -> DescribeRolloutResponse | None:
            stub = IndexServiceStub(target.channel)
            try:
                response: DescribeRolloutResponse = await target.call(
                    lambda: stub.DescribeRollout(request, timeout=patience_s)
                )
            except ServiceError:
                return None
            return response

        others = [each for each in self.brokers.all() if each.id != self.own_id]
        found = await asyncio.gather(*(ask(each) for each in others))
        return [each for each in found if each is not None]


class RolloutHandlers:
    """The part of IndexService that is about rollouts."""

    _board: RoutesBoard
    _writers: Targets
    _probe: Probe
    _peers: Peers

    async def SetRollout(self, request: SetRolloutRequest, context: _Context) -> SetRolloutResponse:
        """Have the writer note a rollout, and wait until the topology says so."""
        check_index_name(request.name)
        deadline = Deadline.of(context)
        change = ChangeRolloutRequest(name=request.name)
        if request.HasField("rollout"):
            change.rollout.CopyFrom(request.rollout)
        response = await reach_writer(
            self._writers,
            lambda stub, budget_s: stub.ChangeRollout(change, timeout=budget_s),
            deadline,
        )
        entry = response.entry
        rollout = entry.rollout if entry.HasField("rollout") else None
        await self._board.wait_until(
            lambda routes: (
                entry.name in routes.indexes and routes.indexes[entry.name].rollout == rollout
            ),
            deadline.share(_WAIT_SHARE),
        )
        return SetRolloutResponse(rollout=rollout)

    async def DescribeRollout(
        self, request: DescribeRolloutRequest, context: _Context
    ) -> DescribeRolloutResponse:
        """Say what the brokers know of a rollout."""
        check_index_name(request.name)
        route = self._board.routes.index(request.name)
        shadow, canary = self._peers.report(route), self._peers.canary(route)
        if not request.local:
            for each in await self._peers.reports(request.name, Deadline.of(context)):
                add_report(shadow, each.shadow)
                add_report(canary, each.canary)
        return DescribeRolloutResponse(
            rollout=route.rollout,
            serving_version=route.index_version,
            loaded=route.candidate is not None and is_loaded(route.candidate, self._probe),
            shadow=shadow,
            canary=canary,
        )


_Report = TypeVar("_Report", ShadowReport, CanaryReport)


def add_report(report: _Report, other: _Report) -> None:
    """Add what another broker has seen: lists go on, and counts are summed."""
    for described, theirs in other.ListFields():
        ours = getattr(report, described.name)
        if isinstance(theirs, int):
            setattr(report, described.name, ours + theirs)
        else:
            ours.extend(theirs)


def is_loaded(route: IndexRoute, probe: Probe) -> bool:
    """True if some copy of every shard of a version can be searched, and its queries encoded."""
    return probe.applied_versions(route) is not None and (
        bool(route.encoders) or not route.encoder_model
    )
