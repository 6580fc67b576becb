"""The part of both clients that is about feedback and drift: what is learnt from use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc
from shoal.client._errors import error_of
from shoal.v1.drift_pb2 import (
    MeasureDriftRequest,
    MeasureDriftResponse,
    SetDriftReferenceRequest,
    SetDriftReferenceResponse,
)
from shoal.v1.feedback_pb2 import (
    Choice,
    ExportFeedbackRequest,
    Feedback,
    FeedbackRecord,
    RecordFeedbackRequest,
    RecordFeedbackResponse,
)
from shoal.v1.search_pb2 import SearchResponse

if TYPE_CHECKING:
    from shoal.v1.drift_pb2_grpc import DriftServiceAsyncStub, DriftServiceStub
    from shoal.v1.feedback_pb2_grpc import FeedbackServiceAsyncStub, FeedbackServiceStub


def feedback_on(
    answer: SearchResponse | bytes,
    chosen: Iterable[int] | Mapping[int, float] = (),
    *,
    seen_count: int = 0,
    principal: str = "",
) -> Feedback:
    """What became of one answer, for `record_feedback`.

    answer: as it came, or its `answer_token`. chosen: ranks of the hits that were chosen, from 1,
    or the seconds that each was looked at for, by rank; none means that nothing shown was wanted.
    seen_count: how many hits were seen, from the first; 0 means all of them. principal: who asked;
    only a salted hash of it is stored.
    """
    token = answer if isinstance(answer, bytes) else answer.answer_token
    choices = []
    for rank in chosen:
        choice = Choice(rank=rank)
        if isinstance(chosen, Mapping):
            choice.dwell.FromNanoseconds(int(chosen[rank] * 1e9))
        choices.append(choice)
    return Feedback(answer_token=token, choices=choices, seen_count=seen_count, principal=principal)


def _export_request(index: str, since: datetime | None) -> ExportFeedbackRequest:
    request = ExportFeedbackRequest(index=index)
    if since is not None:
        request.since.FromDatetime(since if since.tzinfo else since.replace(tzinfo=UTC))
    return request


class FeedbackCalls:
    """Of `Client`."""

    _feedback: FeedbackServiceStub
    _drift: DriftServiceStub
    _wait_for_ready: bool

    def measure_drift(self, index: str, *, timeout_s: float = 30.0) -> MeasureDriftResponse:
        """Compare what an index is asked, holds and answers with its reference."""
        try:
            return self._drift.MeasureDrift(
                MeasureDriftRequest(index=index),
                timeout=timeout_s,
                wait_for_ready=self._wait_for_ready,
            )
        except grpc.RpcError as error:
            raise error_of(error) from error

    def set_drift_reference(
        self, index: str, *, timeout_s: float = 30.0
    ) -> SetDriftReferenceResponse:
        """Make what is asked and held now what drift is measured against."""
        try:
            return self._drift.SetDriftReference(
                SetDriftReferenceRequest(index=index),
                timeout=timeout_s,
                wait_for_ready=self._wait_for_ready,
            )
        except grpc.RpcError as error:
            raise error_of(error) from error

    def record_feedback(
        self, index: str, feedback: Iterable[Feedback], *, timeout_s: float = 10.0
    ) -> RecordFeedbackResponse:
        """Say what became of up to 256 answers of an index; make each with `feedback_on`.

        Durable on return. May be repeated: of several on one answer the last counts.
        """
        request = RecordFeedbackRequest(index=index, feedback=feedback)
        try:
            return self._feedback.RecordFeedback(
                request, timeout=timeout_s, wait_for_ready=self._wait_for_ready
            )
        except grpc.RpcError as error:
            raise error_of(error) from error

    def export_feedback(
        self, index: str, *, since: datetime | None = None, timeout_s: float | None = None
    ) -> Iterator[FeedbackRecord]:
        """The last feedback on each answer of an index, by the answers' times.

        since: only what was recorded then or later; without a zone it is UTC. timeout_s: for all of
        it; None sets no limit.
        """
        call = self._feedback.ExportFeedback(
            _export_request(index, since), timeout=timeout_s, wait_for_ready=self._wait_for_ready
        )
        try:
            for response in call:
                yield from response.records
        except grpc.RpcError as error:
            raise error_of(error) from error
        finally:
            call.cancel()


class AsyncFeedbackCalls:
    """Of `AsyncClient`."""

    _feedback: FeedbackServiceAsyncStub
    _drift: DriftServiceAsyncStub
    _wait_for_ready: bool

    async def measure_drift(self, index: str, *, timeout_s: float = 30.0) -> MeasureDriftResponse:
        """Compare what an index is asked, holds and answers with its reference."""
        try:
            return await self._drift.MeasureDrift(
                MeasureDriftRequest(index=index),
                timeout=timeout_s,
                wait_for_ready=self._wait_for_ready,
            )
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error

    async def set_drift_reference(
        self, index: str, *, timeout_s: float = 30.0
    ) -> SetDriftReferenceResponse:
        """Make what is asked and held now what drift is measured against."""
        try:
            return await self._drift.SetDriftReference(
                SetDriftReferenceRequest(index=index),
                timeout=timeout_s,
                wait_for_ready=self._wait_for_ready,
            )
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error

    async def record_feedback(
        self, index: str, feedback: Iterable[Feedback], *, timeout_s: float = 10.0
    ) -> RecordFeedbackResponse:
        """Say what became of up to 256 answers of an index; make each with `feedback_on`.

        Durable on return. May be repeated: of several on one answer the last counts.
        """
        request = RecordFeedbackRequest(index=index, feedback=feedback)
        try:
            return await self._feedback.RecordFeedback(
                request, timeout=timeout_s, wait_for_ready=self._wait_for_ready
            )
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error

    async def export_feedback(
        self, index: str, *, since: datetime | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[FeedbackRecord]:
        """The last feedback on each answer of an index, by the answers' times.

        since: only what was recorded then or later; without a zone it is UTC. timeout_s: for all of
        it; None sets no limit.
        """
        call = self._feedback.ExportFeedback(
            _export_request(index, since), timeout=timeout_s, wait_for_ready=self._wait_for_ready
        )
        try:
            async for response in call:
                for record in response.records:
                    yield record
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        finally:
            call.cancel()
