"""What of an upsert was sent, what is durable, and what has to be sent again?

The state of one upsert, without any input or output: the synchronous and the asynchronous client
drive it in the same way. Messages are numbered from 1 over the whole upsert, also when the stream
breaks and a new one takes over, so an acknowledgement always means the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import grpc
from shoal.client._errors import (
    DeadlineExceededError,
    OverloadedError,
    ShoalError,
    UnavailableError,
)
from shoal.v1.documents_pb2 import (
    Document,
    UpsertDocumentsRequest,
    UpsertDocumentsResponse,
    UpsertFailure,
)

# What may be on its way without an acknowledgement. Enough to keep a writer's group commits and
# its encoders busy; it bounds what is held here, and what a lost stream costs to send again.
WINDOW_COUNT: Final = 1_024
WINDOW_BYTES: Final = 16 * 1024 * 1024

# Lost streams in a row, without an acknowledgement in between, after which the upsert fails. The
# pauses double from 0.1 to 2 seconds and add up to about 11: a writer that was killed is back by
# then.
MAX_ATTEMPTS: Final = 10
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0

# A writer that takes longer than this over what it was sent is stuck: the largest batch that it
# commits together takes seconds. A machine that vanished is noticed much earlier, by keepalive.
STALL_S: Final = 120.0

# How long a server may take to end a stream on which everything is acknowledged.
CLOSE_S: Final = 1.0


@dataclass(frozen=True)
class UpsertSummary:
    """What has become of an upsert, or of the part of it that was acknowledged so far."""

    # Documents that are in the table, and survive the death of any process.
    acknowledged: int = 0
    # Table version that holds them all: pass it as `min_table_version` to read your own writes.
    table_version: int = 0
    # Passages that they were split into.
    passage_count: int = 0
    # Documents that were refused: `number` counts from 1 in the order they were given.
    failures: tuple[UpsertFailure, ...] = ()

    @property
    def processed(self) -> int:
        """Documents that are done with, one way or the other: for progress bars."""
        return self.acknowledged + len(self.failures)


OnAcknowledge = Callable[[UpsertSummary], None]


@dataclass
class Upload:
    """The state of one upsert."""

    index: str
    window_count: int = WINDOW_COUNT
    window_bytes: int = WINDOW_BYTES
    summary: UpsertSummary = UpsertSummary()
    _last_number: int = 0
    _durable_number: int = 0
    _pending: deque[UpsertDocumentsRequest] = field(default_factory=deque)
    _pending_bytes: int = 0
    _attempts: int = 0

    @property
    def has_room(self) -> bool:
        """True if another message may be sent before the next acknowledgement."""
        return len(self._pending) < self.window_count and self._pending_bytes < self.window_bytes

    @property
    def done(self) -> bool:
        """True if nothing waits for an acknowledgement."""
        return not self._pending

    @property
    def pending(self) -> tuple[UpsertDocumentsRequest, ...]:
        """What was not acknowledged, in order: what a new stream starts with."""
        return tuple(self._pending)

    def add(self, document: Document) -> UpsertDocumentsRequest:
        """Number a document; return the message to send."""
        self._last_number += 1
        request = UpsertDocumentsRequest(
            index=self.index, number=self._last_number, document=document
        )
        self._pending.append(request)
        self._pending_bytes += request.ByteSize()
        return request

    def acknowledge(self, response: UpsertDocumentsResponse) -> UpsertSummary:
        """Take an acknowledgement; return how the upsert stands."""
        self._attempts = 0
        while self._pending and self._pending[0].number <= response.durable_number:
            self._pending_bytes -= self._pending.popleft().ByteSize()
        # A new stream starts without acknowledgements, so its first may be lower than the last.
        self._durable_number = max(self._durable_number, response.durable_number)
        failures = (*self.summary.failures, *response.failures)
        self.summary = UpsertSummary(
            acknowledged=self._durable_number - len(failures),
            table_version=max(self.summary.table_version, response.table_version),
            passage_count=self.summary.passage_count + response.passage_count,
            failures=failures,
        )
        return self.summary

    def lost(self, error: ShoalError) -> float:
        """Take the loss of a stream; return the pause in seconds before the next one.

        Raises the error if another stream would not help, or if enough of them were lost.
        """
        retriable = error.code in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )
        self._attempts += 1
        if not retriable or self._attempts >= MAX_ATTEMPTS:
            error.add_note(
                f"{self.summary.processed} documents had been acknowledged; it is safe to send all "
                "of them again"
            )
            raise error
        pause_s: float = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (self._attempts - 1))
        if isinstance(error, OverloadedError) and error.retry_delay_s is not None:
            pause_s = max(pause_s, error.retry_delay_s)
        return pause_s


class LostStreamError(Exception):
    """A stream ended before everything on it was acknowledged."""

    def __init__(self, error: ShoalError) -> None:
        """error: why it ended."""
        super().__init__(str(error))
        self.error = error


def stalled() -> ShoalError:
    """The error for a stream on which nothing was acknowledged for STALL_S."""
    return DeadlineExceededError(
        "DEADLINE_EXCEEDED",
        grpc.StatusCode.DEADLINE_EXCEEDED,
        f"no document was acknowledged for {STALL_S:.0f} seconds: see the writer's log",
    )


def ended_early() -> ShoalError:
    """The error for a stream that the server ended without having acknowledged everything."""
    return UnavailableError(
        "WRITER_UNAVAILABLE",
        grpc.StatusCode.UNAVAILABLE,
        "the server ended the stream before it had acknowledged everything",
    )
