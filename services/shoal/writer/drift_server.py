"""How is the writer given samples of questions, and asked for drift?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from shoal.drift.comparison import Measure, Points
from shoal.internal.v1.drift_pb2 import (
    ReadDriftRequest,
    ReadDriftResponse,
    StoreQuerySampleRequest,
    StoreQuerySampleResponse,
    TakeReferenceRequest,
    TakeReferenceResponse,
)
from shoal.rpc.errors import ServiceError
from shoal.v1.drift_pb2 import (
    DriftMeasure,
    DriftPoints,
    MeasureDriftResponse,
    SetDriftReferenceResponse,
)
from shoal.v1.errors_pb2 import Reason
from shoal.writer.drift import RETRY_DELAY_S, DriftReport, DriftThread
from shoal.writer.indexes import Indexes, OpenIndex
from shoal.writer.validation import check_index_name

_Context = grpc.aio.ServicerContext[Any, Any]


class DriftHandlers:
    """The part of WriterService that is about drift."""

    _indexes: Indexes

    def _refuse_while_draining(self) -> None:
        raise NotImplementedError

    async def StoreQuerySample(
        self, request: StoreQuerySampleRequest, context: _Context
    ) -> StoreQuerySampleResponse:
        """Take a sample of the version in force, unless none is wanted or too much waits."""
        del context
        self._refuse_while_draining()
        index = self._by_uid(request.index_uid)
        if index is None or index.entry.feedback_disabled:
            return StoreQuerySampleResponse()
        # A sample of another version would end the window and the reference: brokers may be behind.
        if request.index_version == index.entry.index_version:
            thread = index.drift.thread
            if thread.has_room(measuring=False):
                await thread.run(index.drift.add, request, index.in_force)
        return StoreQuerySampleResponse()

    async def ReadDrift(self, request: ReadDriftRequest, context: _Context) -> ReadDriftResponse:
        """Measure drift now."""
        del context
        self._refuse_while_draining()
        check_index_name(request.measure.index, "index")
        index = self._indexes.get(request.measure.index)
        drift = index.drift
        _require_room(drift.thread)
        report = await drift.thread.run(drift.measure, index.in_force, measuring=True)
        drift.alert = report.alert
        return ReadDriftResponse(measured=report_message(report))

    async def TakeReference(
        self, request: TakeReferenceRequest, context: _Context
    ) -> TakeReferenceResponse:
        """Make what is asked and held now the reference."""
        del context
        self._refuse_while_draining()
        check_index_name(request.set.index, "index")
        index = self._indexes.get(request.set.index)
        drift = index.drift
        _require_room(drift.thread)
        reference = await drift.thread.run(drift.take_reference, index.in_force, measuring=True)
        drift.alert = ""
        taken = SetDriftReferenceResponse(
            queries=len(reference.queries), passages=len(reference.passages)
        )
        taken.reference_time.FromNanoseconds(int(reference.taken_s * 1e9))
        return TakeReferenceResponse(taken=taken)

    def _by_uid(self, uid: str) -> OpenIndex | None:
        for entry in self._indexes.entries():
            if entry.uid == uid:
                return self._indexes.get(entry.name)
        return None


def _require_room(thread: DriftThread) -> None:
    if not thread.has_room(measuring=True):
        raise ServiceError(
            Reason.REASON_OVERLOADED,
            "the drift of other indexes is being measured, one at a time: try again in a moment",
            retry_delay_s=RETRY_DELAY_S,
        )


def report_message(report: DriftReport) -> MeasureDriftResponse:
    """A report as callers see it."""
    message = MeasureDriftResponse(
        alert=report.alert,
        status=report.status,
        measures=_measures(report.measures),
        points=_points(report.points),
    )
    if report.reference is not None:
        message.reference_time.FromNanoseconds(int(report.reference.taken_s * 1e9))
        message.reference_version = report.reference.index_version
        message.reference_queries = len(report.reference.queries)
    if report.window is not None:
        message.window_time.FromNanoseconds(int(report.window.begun_s * 1e9))
        message.window_queries = len(report.window.kept)
        message.asked_queries = report.window.asked_count
    return message


def _measures(measures: Sequence[Measure]) -> list[DriftMeasure]:
    return [
        DriftMeasure(
            subject=each.subject,
            name=each.name,
            stability_index=None if each.shift is None else each.shift.index,
            chance_index=0.0 if each.shift is None else each.shift.by_chance,
            discrepancy=each.discrepancy,
            p_value=each.p_value,
            alarming=each.alarming,
            before=each.before,
            now=each.now,
            bins=each.bins,
            reference_counts=each.before_counts,
            window_counts=each.now_counts,
        )
        for each in measures
    ]


def _points(points: Sequence[Points]) -> list[DriftPoints]:
    return [
        DriftPoints(
            subject=each.subject,
            reference=each.reference,
            x=each.places[:, 0].tolist(),
            y=each.places[:, 1].tolist(),
        )
        for each in points
        if each.places.shape[1] > 1
    ]
