"""How does one stream of a synchronous upsert run?"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import TypeAlias

import grpc
from shoal.client._errors import ShoalError, error_of
from shoal.client._upsert import (
    CLOSE_S,
    STALL_S,
    LostStreamError,
    OnAcknowledge,
    Upload,
    UpsertSummary,
    ended_early,
    stalled,
)
from shoal.v1.documents_pb2 import (
    Document,
    UpsertDocumentsRequest,
    UpsertDocumentsResponse,
)

# In quotes, as grpc's classes are generic for type checkers only.
_UpsertMethod: TypeAlias = (
    "grpc.StreamStreamMultiCallable[UpsertDocumentsRequest, UpsertDocumentsResponse]"
)


class UpsertStream:
    """One stream of an upsert.

    Documents are taken, and acknowledgements reported, in the caller's thread; gRPC's own thread
    takes the messages from a queue, and one more thread waits for what comes back. Both queues are
    bounded by the upload's window.
    """

    def __init__(
        self, method: _UpsertMethod, upload: Upload, deadline_s: float | None, wait_for_ready: bool
    ) -> None:
        """method: of the stub. deadline_s: on the monotonic clock; None for no limit."""
        self._upload = upload
        self._outgoing: queue.SimpleQueue[UpsertDocumentsRequest | None] = queue.SimpleQueue()
        self._incoming: queue.SimpleQueue[UpsertDocumentsResponse | ShoalError] = (
            queue.SimpleQueue()
        )
        for request in upload.pending:
            self._outgoing.put(request)
        self._call = method(
            iter(self._outgoing.get, None),
            timeout=None if deadline_s is None else max(0.0, deadline_s - time.monotonic()),
            wait_for_ready=wait_for_ready,
        )
        self._reader = threading.Thread(target=self._read, name="shoal-upsert", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            for response in self._call:
                self._incoming.put(response)
            self._incoming.put(ended_early())
        except grpc.RpcError as error:
            self._incoming.put(error_of(error))

    def run(self, source: Iterator[Document], on_acknowledge: OnAcknowledge) -> UpsertSummary:
        """Send all that the source has; return when it is acknowledged."""
        upload, exhausted = self._upload, False
        while True:
            while not exhausted and upload.has_room and self._incoming.empty():
                document = next(source, None)
                exhausted = document is None
                self._outgoing.put(None if document is None else upload.add(document))
            if exhausted and upload.done:
                # The server ends its side; waiting for that spares it a cancelled call.
                self._reader.join(CLOSE_S)
                return upload.summary
            self._receive()
            on_acknowledge(upload.summary)

    def _receive(self) -> None:
        try:
            event = self._incoming.get(timeout=STALL_S)
        except queue.Empty:
            raise stalled() from None
        if isinstance(event, ShoalError):
            raise LostStreamError(event)
        self._upload.acknowledge(event)

    def close(self) -> None:
        """End both threads."""
        self._outgoing.put(None)
        self._call.cancel()
        self._reader.join()
