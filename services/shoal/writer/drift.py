"""Is what an index is asked and holds still like its reference, and since when is it not?

Brokers send samples of questions; each is looked at and its text thrown away. All of an index's
samples are touched in one thread, which serves all indexes, one thing at a
time: what comes while too much waits is dropped, as one sample is as good as the next. Vectors
of two models do not compare: everything is of the version in force, in its model's space.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray
from shoal.drift.comparison import (
    MIN_SAMPLE,
    PASSAGE,
    QUERY,
    Measure,
    Points,
    alert_of,
    compare,
    compare_choices,
)
from shoal.drift.samples import Reference, Sampled, Window, sampled
from shoal.drift.texts import Pieces
from shoal.internal.v1.drift_pb2 import StoreQuerySampleRequest
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.table import PassageTable
from shoal.table.feedback import FeedbackTable
from shoal.table.sampling import sample_passages
from shoal.table.versions import InForce
from shoal.v1.errors_pb2 import Reason
from shoal.writer.config import WriterSettings
from shoal.writer.drift_files import DriftFiles

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_Sample = TypeVar("_Sample", Window, Reference)

# Samples that wait to be looked at, over all indexes.
_MAX_WAITING: Final = 64
# Measurements that wait.
_MAX_MEASURING: Final = 4
RETRY_DELAY_S: Final = 2.0


class DriftThread:
    """The one thread in which samples are looked at."""

    def __init__(self) -> None:
        """Idle."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="drift")
        self._waiting = {False: 0, True: 0}

    def has_room(self, *, measuring: bool) -> bool:
        """Whether something may wait for the thread."""
        return self._waiting[measuring] < (_MAX_MEASURING if measuring else _MAX_WAITING)

    async def run(
        self, work: Callable[..., _Result], *arguments: Any, measuring: bool = False
    ) -> _Result:
        """Have something done."""
        self._waiting[measuring] += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, work, *arguments)
        finally:
            self._waiting[measuring] -= 1

    def close(self) -> None:
        """End, once what is under way is done."""
        self._executor.shutdown()


@dataclass(frozen=True)
class DriftReport:
    """What was measured."""

    status: str
    alert: str = ""
    reference: Reference | None = None
    window: Window | None = None
    measures: Sequence[Measure] = ()
    points: Sequence[Points] = ()


class DriftWatch:
    """The samples of one index. `alert` and `close` on the event loop, all else in the thread."""

    def __init__(
        self,
        folder: Path,
        table: PassageTable,
        feedback: FeedbackTable,
        settings: WriterSettings,
        thread: DriftThread,
        tokenize: Pieces | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """folder: of the index's storage; reads what is stored there. tokenize: the encoder's."""
        self._files = DriftFiles(folder)
        self._table, self._feedback, self._settings = table, feedback, settings
        self.thread, self._tokenize, self._wall_clock = thread, tokenize, wall_clock
        self._random = np.random.default_rng()
        self._reference = self._files.reference()
        self._window = self._files.window()
        # The one before, until the present one says enough. Not stored.
        self._full: Window | None = None
        self._closed = False
        self.alert = ""
        """What an operator has to know, by the last check. Empty if all is well."""

    async def close(self) -> None:
        """Store the window; on return the thread does not touch the index any more."""
        await self.thread.run(self._end)

    def _end(self) -> None:
        if self._closed:
            return
        self._save_window()
        self._closed = True

    def add(self, request: StoreQuerySampleRequest, in_force: InForce) -> None:
        """Take a broker's sample. Raises InvalidFieldError for one of another shape.

        in_force: of the version in force; a sample of another one is dropped.
        """
        if self._closed or (request.encoder_model, request.index_version) != _made_by(in_force):
            return
        questions = _questions(request, in_force.dimension, self._tokenize)
        now_s = self._wall_clock()
        window = _within(in_force, self._window)
        if window is None:
            self._full = None
            window = self._begin(in_force, now_s)
        if self._reference is not None and _within(in_force, self._reference) is None:
            # Another model's vectors cannot be compared; a new version is what was asked for.
            self._reference = None
            self._files.drop_reference()
        window.add(questions, request.asked_count, self._settings.drift_sample, self._random)
        if (
            len(window.kept) >= MIN_SAMPLE
            and now_s - window.begun_s >= self._settings.drift_window_s
        ):
            if self._reference is None:
                self._take(window, in_force)
            self._full = window
            self._begin(in_force, now_s)

    def measure(self, in_force: InForce) -> DriftReport:
        """Compare what there is with the reference. About a second.

        in_force: of the version in force; what is of another one is as good as none.
        """
        reference, window = _within(in_force, self._reference), self._compared(in_force)
        # What comes while the report is on its way is not part of it.
        window = None if window is None else replace(window)
        if reference is None or window is None or len(window.kept) < MIN_SAMPLE:
            return DriftReport(self._missing(reference, window), "", reference, window)
        measures, points = compare(QUERY, reference.queries, window.kept)
        passages, _ = self._passages(in_force)
        if min(len(reference.passages), len(passages)) >= MIN_SAMPLE:
            of_passages, more = compare(PASSAGE, reference.passages, passages)
            measures, points = measures + of_passages, points + more
        choices = compare_choices(
            reference.answers, self._feedback.answers(int(window.begun_s * 1e6))
        )
        if choices is not None:
            measures.append(choices)
        since = datetime.fromtimestamp(reference.taken_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
        status = (
            f"{len(window.kept)} questions, drawn from {window.asked_count} since "
            f"{datetime.fromtimestamp(window.begun_s, UTC):%Y-%m-%d %H:%M} UTC, compared with "
            f"{len(reference.queries)} of {since}"
        )
        return DriftReport(status, alert_of(measures, since), reference, window, measures, points)

    def check(self, in_force: InForce) -> str:
        """Measure, and store the window; returns the alert."""
        if self._closed:
            return ""
        self._save_window()
        return self.measure(in_force).alert

    def take_reference(self, in_force: InForce) -> Reference:
        """Make what is there now the reference; durable on return. Raises TOO_FEW_QUERIES."""
        window = self._compared(in_force)
        count = 0 if window is None else len(window.kept)
        if window is None or count < MIN_SAMPLE:
            raise ServiceError(
                Reason.REASON_TOO_FEW_QUERIES,
                f"{count} questions were sampled, and a reference needs {MIN_SAMPLE}: try again "
                "when more have been asked",
            )
        reference = self._take(window, in_force)
        # It is there to be taken again, by a call that was repeated.
        self._full = window
        self._begin(in_force, self._wall_clock())
        return reference

    def purge(self, document_ids: Sequence[str]) -> None:
        """Take the vectors of some documents' passages out. Raises StorageFullError."""
        if self._reference is None or self._closed:
            return
        without = self._reference.without(_digests(document_ids))
        if len(without.passages) < len(self._reference.passages):
            self._files.save_reference(without)
            self._reference = without

    def clear(self) -> None:
        """Forget everything."""
        self._reference = self._window = self._full = None
        self._files.clear()

    def _begin(self, in_force: InForce, now_s: float) -> Window:
        self._window = Window(*_made_by(in_force), now_s, Sampled.none(in_force.dimension))
        return self._window

    def _compared(self, in_force: InForce) -> Window | None:
        """The window that says enough: the present one, or the one before it."""
        window, full = _within(in_force, self._window), _within(in_force, self._full)
        if full is not None and (window is None or len(window.kept) < MIN_SAMPLE):
            return full
        return window

    def _take(self, window: Window, in_force: InForce) -> Reference:
        passages, digests = self._passages(in_force)
        reference = Reference(
            window.model,
            window.index_version,
            self._wall_clock(),
            window.kept,
            passages,
            digests,
            self._feedback.answers(int(window.begun_s * 1e6)),
        )
        self._files.save_reference(reference)
        self._reference = reference
        return reference

    def _passages(self, in_force: InForce) -> tuple[Sampled, NDArray[np.uint64]]:
        seed = int(self._random.integers(2**31))
        # A view of its own: the writer's stands at the column of the model that it was made with.
        table = PassageTable.open(self._table.uri, model=in_force.column_model)
        drawn = sample_passages(table, self._settings.drift_sample, seed)
        return sampled(drawn.vectors, drawn.texts, self._tokenize), _digests(drawn.document_ids)

    def _missing(self, reference: Reference | None, window: Window | None) -> str:
        count = 0 if window is None else len(window.kept)
        if reference is None:
            return (
                f"there is no reference yet: {count} questions were sampled, and it takes "
                f"{MIN_SAMPLE}, and {self._settings.drift_window_s / 3600:g} hours unless it is "
                "taken by hand"
            )
        return f"too few to compare: {count} questions were sampled, and it takes {MIN_SAMPLE}"

    def _save_window(self) -> None:
        if self._window is not None and len(self._window.kept):
            self._files.save_window(self._window)


def _made_by(in_force: InForce) -> tuple[str, int]:
    return in_force.model, in_force.index_version


def _within(in_force: InForce, sample: _Sample | None) -> _Sample | None:
    """A sample of that version's questions; None if it is of another one's."""
    if sample is None or (sample.model, sample.index_version) != _made_by(in_force):
        return None
    return sample


def _questions(
    request: StoreQuerySampleRequest, dimension: int, tokenize: Pieces | None
) -> Sampled:
    count = len(request.texts)
    if len(request.vectors) != 4 * dimension * count or len(request.best_scores) != count:
        raise InvalidFieldError("vectors", f"must hold {count} rows of {dimension} numbers")
    vectors = np.frombuffer(request.vectors, "<f4").reshape(count, dimension)
    return sampled(vectors, request.texts, tokenize, np.asarray(request.best_scores, np.float32))


def _digests(document_ids: Sequence[str]) -> NDArray[np.uint64]:
    return np.array([xxhash.xxh3_64_intdigest(each.encode()) for each in document_ids], np.uint64)
