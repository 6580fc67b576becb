"""The part of both clients that is about rolling out a version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.v1.indexes_pb2 import (
    DescribeRolloutRequest,
    DescribeRolloutResponse,
    Rollout,
    SetRolloutRequest,
    SetRolloutResponse,
)

if TYPE_CHECKING:
    from shoal.v1.indexes_pb2_grpc import IndexServiceAsyncStub, IndexServiceStub


class RolloutCalls:
    """Of `Client`."""

    _indexes: IndexServiceStub

    def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        raise NotImplementedError

    def set_rollout(
        self,
        name: str,
        candidate_version: int | None,
        *,
        shadow_share: float = 0.0,
        canary_share: float = 0.0,
        timeout_s: float = 30.0,
    ) -> SetRolloutResponse:
        """Begin, change or end the rollout of a version that is READY.

        candidate_version: None ends it. shadow_share: part of the queries that are run in it too.
        canary_share: part of the callers that are answered from it.
        """
        request = rollout_request(name, candidate_version, shadow_share, canary_share)
        response: SetRolloutResponse = self._call(self._indexes.SetRollout, request, timeout_s)
        return response

    def describe_rollout(self, name: str, *, timeout_s: float = 10.0) -> DescribeRolloutResponse:
        """Say how far a rollout is, and what comparing the two versions has shown."""
        request = DescribeRolloutRequest(name=name)
        response: DescribeRolloutResponse = self._call(
            self._indexes.DescribeRollout, request, timeout_s
        )
        return response


class AsyncRolloutCalls:
    """Of `AsyncClient`."""

    _indexes: IndexServiceAsyncStub

    async def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        raise NotImplementedError

    async def set_rollout(
        self,
        name: str,
        candidate_version: int | None,
        *,
        shadow_share: float = 0.0,
        canary_share: float = 0.0,
        timeout_s: float = 30.0,
    ) -> SetRolloutResponse:
        """Begin, change or end the rollout of a version: as `Client.set_rollout`."""
        request = rollout_request(name, candidate_version, shadow_share, canary_share)
        response: SetRolloutResponse = await self._call(
            self._indexes.SetRollout, request, timeout_s
        )
        return response

    async def describe_rollout(
        self, name: str, *, timeout_s: float = 10.0
    ) -> DescribeRolloutResponse:
        """Say how far a rollout is: as `Client.describe_rollout`."""
        request = DescribeRolloutRequest(name=name)
        response: DescribeRolloutResponse = await self._call(
            self._indexes.DescribeRollout, request, timeout_s
        )
        return response


def rollout_request(
    name: str, candidate_version: int | None, shadow_share: float, canary_share: float
) -> SetRolloutRequest:
    """What is to become of a rollout."""
    if candidate_version is None:
        return SetRolloutRequest(name=name)
    rollout = Rollout(
        candidate_version=candidate_version, shadow_share=shadow_share, canary_share=canary_share
    )
    return SetRolloutRequest(name=name, rollout=rollout)
