"""How is feedback stored, so that none is lost that was acknowledged, and nobody waits for long?

While one commit is under way the next one gathers, as for documents; what waits is bounded, and
more is refused at once. The table has a lock of its own: appends wait while old feedback goes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, TypeVar

import pyarrow as pa
from shoal.internal.v1.feedback_pb2 import AnswerFeedback
from shoal.rpc.errors import ServiceError
from shoal.table import TableNotFoundError
from shoal.table import feedback as columns
from shoal.table.feedback import LAYOUT, FeedbackTable
from shoal.v1.errors_pb2 import Reason
from shoal.v1.feedback_pb2 import Choice, FeedbackRecord, ShownHit
from shoal.writer.config import WriterSettings

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_R = TypeVar("_R")

# After which a refused piece of feedback is worth sending again: several commits.
RETRY_DELAY_S: Final = 1.0
_DAY_S: Final = 86_400.0
# Clocks of brokers and writer may differ by so much: answers of before a purge are told by time.
_CLOCKS_DIFFER_US: Final = 10_000_000
_UNKNOWN: Final = -1

Hash = Callable[[str], bytes]


@dataclass
class _Pending:
    feedback: Sequence[AnswerFeedback]
    recorded_at_us: int
    hash_of: Hash
    size_bytes: int
    done: asyncio.Future[int]


class FeedbackLog:
    """The feedback on one index."""

    def __init__(
        self,
        table: FeedbackTable,
        settings: WriterSettings,
        executor: Executor,
        maintenance_executor: Executor,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """executor: its threads commit, one at a time. wall_clock: seconds since 1970."""
        self._table, self._settings, self._wall_clock = table, settings, wall_clock
        self._executor, self._maintenance_executor = executor, maintenance_executor
        self._pending: deque[_Pending] = deque()
        self._waiting_count = self._waiting_bytes = 0
        self._commits: asyncio.Task[None] | None = None
        self._maintenance: asyncio.Task[None] | None = None
        self._closed = False
        self.commit_count = 0
        """Commits made: for tests."""

    async def store(self, feedback: Sequence[AnswerFeedback], hash_of: Hash) -> int:
        """Store feedback; returns how many pieces are durable: the others are out of date.

        hash_of: of a principal's name. Raises OVERLOADED if too much waits already, and
        StorageFullError, TableNotFoundError.
        """
        self._require_open()
        size_bytes = sum(each.ByteSize() for each in feedback)
        # Alone it is taken however much it is: a request is bounded.
        if self._pending:
            self._require_room(len(feedback), size_bytes)
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        now_us = int(self._wall_clock() * 1e6)
        self._pending.append(_Pending(feedback, now_us, hash_of, size_bytes, done))
        self._waiting_count += len(feedback)
        self._waiting_bytes += size_bytes
        if self._commits is None or self._commits.done():
            self._commits = asyncio.create_task(self._commit_all())
        # A caller that leaves must not keep the others' commit from being told of.
        return await asyncio.shield(done)

    async def read(self, since_us: int) -> AsyncIterator[list[FeedbackRecord]]:
        """Read the last feedback on each answer that was recorded since a time, in batches.

        By the answers' times. since_us: microseconds since 1970.
        Raises VERSION_CONFLICT if feedback is removed meanwhile.
        """
        self._require_open()
        batches = self._table.read(since_us)
        while True:
            try:
                batch = await self._in_thread(self._executor, next, batches, None)
            except ServiceError as error:
                raise ServiceError(
                    Reason.REASON_VERSION_CONFLICT,
                    "feedback was removed while it was read: read it again",
                ) from error
            if batch is None:
                return
            yield [_record(each) for each in batch.to_pylist()]

    async def clean(self, *, disabled: bool) -> int:
        """Remove what is too old or replaced, or all of it; returns how much it was.

        Raises StorageFullError. disabled: the index takes none any more.
        """
        self._require_open()
        if disabled:
            return await self._in_maintenance(self._table.clear)
        keep_us = int(self._settings.feedback_keep_days * _DAY_S * 1e6)
        now_us = int(self._wall_clock() * 1e6)
        return await self._in_maintenance(self._table.remove_older, now_us - keep_us)

    async def purge(self, document_ids: Sequence[str]) -> int:
        """Remove all feedback on answers that held some documents; returns how much it was.

        Answers of before, on which no feedback has come yet, are out of date from now on: nothing
        in them brings a purged document back. Raises StorageFullError.
        """
        self._require_open()
        before_us = int(self._wall_clock() * 1e6) + _CLOCKS_DIFFER_US
        return await self._in_maintenance(self._table.purge, set(document_ids), before_us)

    async def close(self) -> None:
        """Refuse what comes from now on, and finish what was handed in.

        On return no thread works on the table but those that read.
        """
        self._closed = True
        if self._commits is not None:
            await self._commits
        if self._maintenance is not None:
            await self._maintenance
        # One that waits for the table's lock is done after this.
        await self._in_maintenance(_nothing)

    @property
    def row_count(self) -> int:
        """Pieces of feedback that are kept."""
        return self._table.row_count

    async def _commit_all(self) -> None:
        while self._pending:
            group = list(self._pending)
            self._pending.clear()
            try:
                await self._commit(group)
            finally:
                self._waiting_count -= sum(len(each.feedback) for each in group)
                self._waiting_bytes -= sum(each.size_bytes for each in group)
            if self._maintenance is None or self._maintenance.done():
                self._maintenance = asyncio.create_task(self._maintain())

    async def _maintain(self) -> None:
        """Keep the table quick. What fails is tried again after a later commit."""
        try:
            await self._in_maintenance(self._table.compact)
        except ServiceError:
            _log.warning("cannot compact %s", self._table.uri, exc_info=True)

    async def _commit(self, group: Sequence[_Pending]) -> None:
        try:
            counts = await self._in_thread(self._executor, self._append, group)
        except Exception as error:  # noqa: BLE001  # goes to everyone who waits for this commit
            for pending in group:
                if not pending.done.done():
                    pending.done.set_exception(error)
            return
        self.commit_count += 1
        for pending, count in zip(group, counts, strict=True):
            if not pending.done.done():
                pending.done.set_result(count)

    def _append(self, group: Sequence[_Pending]) -> list[int]:
        table = self._table
        # Of one answer the last piece counts: the others need not reach the disk.
        latest = {
            each.answer.answer_id: (each, pending) for pending in group for each in pending.feedback
        }
        rows = [
            _row(each, pending.recorded_at_us, pending.hash_of) for each, pending in latest.values()
        ]
        table.append(pa.Table.from_pylist(rows, LAYOUT))
        # A purge that came in between has removed more than this says: that is no loss.
        floor_us = table.purged_before_us
        return [
            sum(each.answer.answered_at_us >= floor_us for each in pending.feedback)
            for pending in group
        ]

    def _require_room(self, count: int, size_bytes: int) -> None:
        """Raise OVERLOADED if so much more does not fit into the queue."""
        settings = self._settings
        if (
            self._waiting_count + count <= settings.feedback_waiting
            and self._waiting_bytes + size_bytes <= settings.feedback_waiting_bytes
        ):
            return
        raise ServiceError(
            Reason.REASON_OVERLOADED,
            f"{self._waiting_count} pieces of feedback of {self._waiting_bytes:,} bytes wait for "
            f"the disk, and this writer takes {settings.feedback_waiting} of "
            f"{settings.feedback_waiting_bytes:,} bytes: send it again after the retry delay, or "
            "drop it",
            retry_delay_s=RETRY_DELAY_S,
        )

    def _require_open(self) -> None:
        if self._closed:
            raise TableNotFoundError(self._table.uri)

    async def _in_maintenance(
        self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> _R:
        return await self._in_thread(self._maintenance_executor, work, *args, **kwargs)

    async def _in_thread(self, executor: Executor, work: Callable[..., _R], *arguments: Any) -> _R:
        return await asyncio.get_running_loop().run_in_executor(executor, work, *arguments)


def _nothing() -> None:
    """What is done once everything before it is."""


def _row(feedback: AnswerFeedback, now_us: int, hash_of: Hash) -> dict[str, Any]:
    answer = feedback.answer
    shown = answer.hits[: feedback.seen_count]
    choices = sorted(feedback.choices, key=lambda each: each.rank)
    return {
        columns.SEQUENCE: 0,
        columns.ANSWER_ID: answer.answer_id,
        columns.ANSWERED_AT: answer.answered_at_us,
        columns.RECORDED_AT: now_us,
        columns.QUERY: answer.query,
        columns.INDEX_VERSION: answer.index_version,
        columns.TABLE_VERSION: answer.table_version,
        columns.ENCODER_MODEL: answer.encoder_model,
        columns.RERANKER_MODEL: answer.reranker_model,
        columns.SHOWN_IDS: [each.document_id for each in shown],
        columns.SHOWN_PASSAGES: [each.passage for each in shown],
        columns.SHOWN_SCORES: [each.score for each in shown],
        columns.SHOWN_HASHES: [each.content_prefix for each in shown],
        columns.CHOSEN_RANKS: [each.rank for each in choices],
        columns.CHOSEN_DWELLS: [
            each.dwell.ToMilliseconds() if each.HasField("dwell") else _UNKNOWN for each in choices
        ],
        columns.PRINCIPAL_HASH: hash_of(feedback.principal) if feedback.principal else None,
    }


def _record(row: dict[str, Any]) -> FeedbackRecord:
    record = FeedbackRecord(
        answer_id=row[columns.ANSWER_ID],
        query=row[columns.QUERY],
        index_version=row[columns.INDEX_VERSION],
        table_version=row[columns.TABLE_VERSION],
        encoder_model=row[columns.ENCODER_MODEL],
        reranker_model=row[columns.RERANKER_MODEL],
        shown=_shown(
            zip(
                row[columns.SHOWN_IDS],
                row[columns.SHOWN_PASSAGES],
                row[columns.SHOWN_SCORES],
                row[columns.SHOWN_HASHES],
                strict=True,
            )
        ),
        principal_hash=row[columns.PRINCIPAL_HASH] or b"",
    )
    record.answer_time.FromDatetime(row[columns.ANSWERED_AT])
    record.record_time.FromDatetime(row[columns.RECORDED_AT])
    for rank, dwell_ms in zip(row[columns.CHOSEN_RANKS], row[columns.CHOSEN_DWELLS], strict=True):
        choice = Choice(rank=rank)
        if dwell_ms != _UNKNOWN:
            choice.dwell.FromMilliseconds(dwell_ms)
        record.choices.append(choice)
    return record


def _shown(hits: Iterable[tuple[str, int, float, bytes]]) -> list[ShownHit]:
    return [
        ShownHit(document_id=document_id, passage=passage, score=score, content_prefix=prefix)
        for document_id, passage, score, prefix in hits
    ]
