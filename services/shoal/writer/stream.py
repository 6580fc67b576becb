"""How does a stream of documents become durable, and when is it acknowledged?

Messages are read ahead up to a bound, and go through the writer in chunks. While few chunks are on
their way, whatever has arrived makes the next, so a lone document waits for nothing; while many
are, only a full one is started, so a flood is not cut into small pieces.
Chunks are prepared and encoded side by side, committed in the order of the stream, and acknowledged
in that order, after the commit and never before. An error ends the stream only after everything
before it has been acknowledged.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.internal.v1.writer_pb2 import WriteDocumentsRequest
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.v1.documents_pb2 import UpsertDocumentsRequest, UpsertDocumentsResponse
from shoal.v1.errors_pb2 import Reason
from shoal.writer.config import WriterSettings
from shoal.writer.encoders import EncoderPool
from shoal.writer.indexes import Indexes, OpenIndex
from shoal.writer.preparation import PreparedChunk, Preparer, failure_of, now_us
from shoal.writer.tokens import Measure
from shoal.writer.validation import check_index_name

# Seconds for callers who set no deadline, as bulk loads do: a stream may be open for long.
STREAM_BUDGET_S: Final = 7 * 86_400.0
# Chunks on their way below which the next need not be full: one is committed, one prepared.
EAGER_CHUNKS: Final = 2
# For which a chunk waits for a model whose build encodes anew what it misses.
_SPARE_S: Final = 2.0


@dataclass(frozen=True)
class WriterParts:
    """What all streams of a writer share."""

    settings: WriterSettings
    indexes: Indexes
    encoders: EncoderPool
    measure: Measure
    executor: Executor
    draining: asyncio.Event


@dataclass
class _Submitted:
    """A chunk that was handed to the committer."""

    chunk: PreparedChunk
    # Gives the table version; None if no document of the chunk was good.
    done: asyncio.Future[int] | None


class _Ended(Exception):  # noqa: N818  # no error: the end of the stream
    """Nothing follows; `error` says why, unless the caller is simply done."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error


class UpsertStream:
    """One caller's stream, from the messages to the acknowledgements."""

    def __init__(
        self, parts: WriterParts, requests: AsyncIterator[WriteDocumentsRequest], deadline: Deadline
    ) -> None:
        """Deadline: of the whole call."""
        self._parts = parts
        self._requests = requests
        self._deadline = deadline
        self._index: OpenIndex | None = None
        self._inbox: deque[UpsertDocumentsRequest] = deque()
        self._inbox_bytes = 0
        # Of those, what is to be encoded.
        self._inbox_text_bytes = 0
        self._last_number = 0
        # Chunks between the inbox and the acknowledgement.
        self._chunks = 0
        # Set when a chunk may perhaps be started: something arrived, or nothing more will, or a
        # chunk is done.
        self._moved = asyncio.Event()
        # Set when something was taken from the inbox.
        self._taken = asyncio.Event()
        self._ended: _Ended | None = None
        self._stopping = False
        # Chunks in the order of the stream, prepared and encoded, or about to be.
        self._started: asyncio.Queue[asyncio.Task[_Ready] | _Ended] = asyncio.Queue()
        self._submitted: asyncio.Queue[_Submitted | _Ended] = asyncio.Queue()

    async def acknowledgements(self) -> AsyncGenerator[UpsertDocumentsResponse]:
        """Run the stream. Raises ServiceError for the stream's own errors."""
        tasks = [
            asyncio.create_task(step())
            for step in (self._read, self._start_chunks, self._submit_chunks)
        ]
        try:
            while True:
                submitted = await self._submitted.get()
                if isinstance(submitted, _Ended):
                    if submitted.error is not None:
                        raise submitted.error
                    return
                response = await self._acknowledge(submitted)
                yield response
        finally:
            await self._abandon(tasks)

    async def _acknowledge(self, submitted: _Submitted) -> UpsertDocumentsResponse:
        assert self._index is not None
        try:
            version = self._index.table.version
            if submitted.done is not None:
                version = await submitted.done
        finally:
            self._chunks -= 1
            self._moved.set()
        chunk = submitted.chunk
        return UpsertDocumentsResponse(
            durable_number=chunk.number,
            table_version=version,
            failures=chunk.failures,
            passage_count=sum(len(each.passages) for each in chunk.documents),
        )

    async def _abandon(self, tasks: list[asyncio.Task[None]]) -> None:
        while not self._started.empty():
            started = self._started.get_nowait()
            if isinstance(started, asyncio.Task):
                tasks.append(started)  # type: ignore[arg-type]  # only to be cancelled
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while not self._submitted.empty():
            submitted = self._submitted.get_nowait()
            # The commit goes on without us; its error is everyone else's.
            if isinstance(submitted, _Submitted) and submitted.done is not None:
                submitted.done.add_done_callback(_forget)

    # From the caller to the inbox.

    async def _read(self) -> None:
        reader = asyncio.current_task()
        assert reader is not None
        # One watch for the whole stream, so that a message costs no task of its own.
        watch = asyncio.create_task(self._stop_reading(reader))
        try:
            await self._read_all()
            self._ended = _Ended(None)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            reader.uncancel()
            self._ended = _Ended(
                ServiceError(
                    Reason.REASON_DRAINING,
                    "the writer is stopping: send again what was not acknowledged",
                )
            )
        except Exception as error:  # noqa: BLE001  # ends the stream, with its reason
            self._ended = _Ended(error)
        finally:
            watch.cancel()
            self._moved.set()

    async def _stop_reading(self, reader: asyncio.Task[None]) -> None:
        await self._parts.draining.wait()
        self._stopping = True
        reader.cancel()

    async def _read_all(self) -> None:
        async for message in self._requests:
            request = message.upsert
            self._check_order(request)
            await self._inbox_room()
            self._inbox.append(request)
            self._inbox_bytes += request.ByteSize()
            self._inbox_text_bytes += _text_bytes(request)
            self._moved.set()

    def _check_order(self, request: UpsertDocumentsRequest) -> None:
        if self._index is None:
            check_index_name(request.index, "index")
            self._index = self._parts.indexes.get(request.index)
        elif request.index and request.index != self._index.entry.name:
            raise InvalidFieldError(
                "index",
                f"is {request.index!r}, but the stream writes to {self._index.entry.name!r}: open "
                "a stream for each index",
            )
        if request.number <= self._last_number:
            raise InvalidFieldError(
                "number",
                f"is {request.number} after {self._last_number}: numbers start at 1 and rise",
            )
        self._last_number = request.number

    async def _inbox_room(self) -> None:
        while self._inbox_full:
            self._taken.clear()
            await self._taken.wait()

    # From the inbox to chunks on their way.

    async def _start_chunks(self) -> None:
        while True:
            while not self._may_start:
                if self._ended is not None and not self._inbox:
                    self._started.put_nowait(self._ended)
                    return
                self._moved.clear()
                await self._moved.wait()
            self._chunks += 1
            requests = self._take_chunk()
            self._started.put_nowait(asyncio.create_task(self._make_ready(requests)))

    @property
    def _may_start(self) -> bool:
        if self._chunks < EAGER_CHUNKS:
            return bool(self._inbox)
        return self._chunks < self._parts.settings.stream_chunks and self._chunk_full

    @property
    def _inbox_full(self) -> bool:
        settings = self._parts.settings
        return (
            len(self._inbox) >= settings.chunk_documents
            or self._inbox_bytes >= settings.chunk_bytes
        )

    @property
    def _chunk_full(self) -> bool:
        return self._inbox_full or self._inbox_text_bytes >= self._parts.settings.chunk_text_bytes

    def _take_chunk(self) -> list[UpsertDocumentsRequest]:
        # The inbox holds no more than a chunk may, save for what is to be encoded.
        requests: list[UpsertDocumentsRequest] = []
        text_bytes = 0
        while self._inbox and text_bytes < self._parts.settings.chunk_text_bytes:
            request = self._inbox.popleft()
            self._inbox_bytes -= request.ByteSize()
            text_bytes += _text_bytes(request)
            requests.append(request)
        self._inbox_text_bytes -= text_bytes
        self._taken.set()
        return requests

    async def _make_ready(self, requests: list[UpsertDocumentsRequest]) -> _Ready:
        index = self._index
        assert index is not None
        table, parts = index.table, self._parts
        preparer = Preparer(
            parts.settings,
            parts.measure,
            table.dimension,
            table.fields,
            table.analyzer,
            takes_vectors=not index.entry.retired,
        )
        loop = asyncio.get_running_loop()
        chunk = await loop.run_in_executor(self._parts.executor, preparer.prepare, requests)
        texts = chunk.texts
        ready = _Ready(chunk)
        if texts and not _is_retired(index):
            encoded = await parts.encoders.encode(texts, self._deadline, index.entry.encoder_model)
            dimension = encoded.vectors.shape[1]
            if dimension == table.dimension:
                await parts.indexes.check_model(index, encoded.model)
                # It may have been let go of while the texts were encoded.
                ready.vectors = None if _is_retired(index) else encoded.vectors
            else:
                self._without_encoder(chunk, index, dimension)
        await self._add_models(ready, index)
        return ready

    async def _add_models(self, ready: _Ready, index: OpenIndex) -> None:
        """Have the models encode a chunk that do so beside the index's own.

        One that has not encoded the whole index yet may be away: its build encodes what it misses.
        Raises ServiceError, as encoding by the index's own model does.
        """
        shown = ready.chunk.shown
        for model, required in index.further_models.items():
            may_wait = required or self._parts.encoders.serves(model)
            if model in ready.further or not shown or not may_wait:
                continue
            try:
                # What may be away must not hold up writes when it hangs either.
                deadline = self._deadline if required else self._deadline.within(_SPARE_S)
                encoded = await self._parts.encoders.encode(shown, deadline, model)
            except ServiceError as error:
                if required and error.reason == Reason.REASON_MODEL_MISMATCH:
                    raise ServiceError(  # They are about to come, and it may be sent again.
                        Reason.REASON_ENCODER_UNAVAILABLE,
                        f"no encoder of {model} answers, with which a version of index "
                        f"{index.entry.name!r} was made. Send again what was not acknowledged",
                    ) from error
                if required:
                    raise
            else:
                ready.further[model] = encoded.vectors

    def _without_encoder(self, chunk: PreparedChunk, index: OpenIndex, dimension: int) -> None:
        """Refuse the documents that needed an encoder whose vectors do not fit the index."""
        if index.entry.encoder_model:
            raise ServiceError(
                Reason.REASON_MODEL_MISMATCH,
                f"index {index.entry.name!r} has dimension {index.table.dimension}, and the "
                f"encoders make {dimension}: give them the bundle {index.entry.encoder_model}",
            )
        error = InvalidFieldError(
            "document.vector",
            f"is missing: the index has dimension {index.table.dimension} and the encoders make "
            f"{dimension}, so its documents must bring their vectors",
            Reason.REASON_DIMENSION_MISMATCH,
        )
        refused = [each for each in chunk.documents if each.texts]
        chunk.documents = [each for each in chunk.documents if not each.texts]
        chunk.failures.extend(
            failure_of(each.number, each.document.document_id, error) for each in refused
        )
        chunk.failures.sort(key=lambda failure: failure.number)

    # From chunks to commits.

    async def _submit_chunks(self) -> None:
        while True:
            started = await self._started.get()
            if isinstance(started, _Ended):
                self._submitted.put_nowait(started)
                return
            index = self._index
            assert index is not None
            try:
                ready = await started
                while ready.lacks(index):  # A build has got so far since it was encoded.
                    await self._add_models(ready, index)
            except Exception as error:  # noqa: BLE001  # ends the stream, with its reason
                self._submitted.put_nowait(_Ended(error))
                return
            rows = ready.chunk.rows(ready.vectors, now_us(), ready.further)
            done = index.committer.submit(rows) if rows else None
            self._submitted.put_nowait(_Submitted(ready.chunk, done))


@dataclass
class _Ready:
    """A chunk with all that is needed to commit it."""

    chunk: PreparedChunk
    # Of the chunk's `texts`; None if there are none.
    vectors: NDArray[np.float32] | None = None
    # Of the chunk's `shown`, by model.
    further: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def lacks(self, index: OpenIndex) -> bool:
        """True if a model has not encoded it that must."""
        models = index.further_models.items()
        missing = any(required and model not in self.further for model, required in models)
        return missing and bool(self.chunk.documents)


def _text_bytes(request: UpsertDocumentsRequest) -> int:
    """Size of what must be encoded; characters stand for bytes."""
    document = request.document
    return 0 if document.HasField("vector") else len(document.text)


def _forget(done: asyncio.Future[int]) -> None:
    if not done.cancelled():
        done.exception()


def _is_retired(index: OpenIndex) -> bool:
    """True if the model that the index was made with is gone: it changes while one waits."""
    return index.entry.retired
