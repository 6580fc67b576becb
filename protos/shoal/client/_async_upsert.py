"""How does one stream of an asynchronous upsert run?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
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

# In quotes, as not every supported release of grpcio has generic classes at run time.
_UpsertMethod: TypeAlias = (
    "grpc.aio.StreamStreamMultiCallable[UpsertDocumentsRequest, UpsertDocumentsResponse]"
)


class AsyncUpsertStream:
    """One stream of an upsert. Both queues are bounded by the upload's window."""

    def __init__(
        self, method: _UpsertMethod, upload: Upload, deadline_s: float | None, wait_for_ready: bool
    ) -> None:
        """method: of the stub. deadline_s: on the monotonic clock; None for no limit."""
        self._upload = upload
        self._outgoing: asyncio.Queue[UpsertDocumentsRequest | None] = asyncio.Queue()
        self._incoming: asyncio.Queue[UpsertDocumentsResponse | ShoalError] = asyncio.Queue()
        self._answered = asyncio.Event()
        for request in upload.pending:
            self._outgoing.put_nowait(request)
        if upload.done:
            self._answered.set()
        self._call = method(
            self._requests(),
            timeout=None if deadline_s is None else max(0.0, deadline_s - time.monotonic()),
            wait_for_ready=wait_for_ready,
        )
        self._reader = asyncio.create_task(self._read(), name="shoal-upsert")

    async def _requests(self) -> AsyncIterator[UpsertDocumentsRequest]:
        while (request := await self._outgoing.get()) is not None:
            yield request
            # A stream that takes over from a lost one pauses after its first message: grpc.aio
            # loses the status of a stream that is refused during a write (see shoal.v1.status).
            await self._answered.wait()

    async def _read(self) -> None:
        try:
            async for response in self._call:
                self._incoming.put_nowait(response)
                self._answered.set()
            self._incoming.put_nowait(ended_early())
        except grpc.aio.AioRpcError as error:
            self._incoming.put_nowait(error_of(error))
        finally:
            self._answered.set()

    async def run(
        self, source: AsyncIterator[Document], on_acknowledge: OnAcknowledge
    ) -> UpsertSummary:
        """Send all that the source has; return when it is acknowledged."""
        upload, exhausted = self._upload, False
        while True:
            while not exhausted and upload.has_room and self._incoming.empty():
                document = await anext(source, None)
                exhausted = document is None
                self._outgoing.put_nowait(None if document is None else upload.add(document))
            if exhausted and upload.done:
                # The server ends its side; waiting for that spares it a cancelled call.
                await asyncio.wait([self._reader], timeout=CLOSE_S)
                return upload.summary
            await self._receive()
            on_acknowledge(upload.summary)

    async def _receive(self) -> None:
        try:
            async with asyncio.timeout(STALL_S):
                event = await self._incoming.get()
        except TimeoutError:
            raise stalled() from None
        if isinstance(event, ShoalError):
            raise LostStreamError(event)
        self._upload.acknowledge(event)

    async def aclose(self) -> None:
        """End the call and its reader."""
        self._call.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
