"""How are queries and writes sent at rates that do not wait for the answers?

An open loop: queries arrive as those of many callers do, by a Poisson process, whether or not the
earlier ones were answered, and their latency counts from the moment at which they were due, so that
a stall is seen by all that it delays. A share of them names the latest table version that was
acknowledged before it: such a query must see every write up to then; the others may be a little
behind. Writes go out ten times a second: half of the upserts replace a document, the others are
new, and each document has one write under way at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import grpc
import numpy as np
from numpy.typing import NDArray
from shoal.client import AsyncClient, ShoalError
from shoal.rpc.arrays import pack_vectors
from shoal.v1.search_pb2 import SearchRequest
from shoal.v1.search_pb2_grpc import SearchServiceStub

from loadtest.oracle import Oracle
from loadtest.vectors import document_id, row_of

QUERY_TIMEOUT_S: Final = 10.0
WRITE_TIMEOUT_S: Final = 60.0
# Of the queries, those that name a table version.
FRESH_SHARE: Final = 0.1
# Beyond it queries are not sent, and count as failed: the broker has its own bound, far below.
MAX_IN_FLIGHT: Final = 2_000
# Calls of writes on their way; beyond it the next round waits, which shows in the rate.
MAX_WRITES: Final = 64
ROUNDS_PER_S: Final = 10
_GET_IDS: Final = 500

_Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Outcome:
    """What became of one query. Times are monotonic, in seconds."""

    query: int
    """Its row among the queries."""
    due_s: float
    sent_s: float
    done_s: float
    fresh: bool
    """Whether it named the table version that was acknowledged last."""
    failure: str = ""
    complete: bool = True
    documents: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def latency_ms(self) -> float:
        """From when it was due."""
        return (self.done_s - self.due_s) * 1e3


@dataclass
class WriteTally:
    """What became of the writes."""

    upserts: int = 0
    """Acknowledged."""
    deletes: int = 0
    """Acknowledged."""
    failed: int = 0
    failure: str = ""
    """The first one."""
    table_version: int = 0
    """The latest that was acknowledged."""
    latencies_ms: list[float] = field(default_factory=list)
    """Of rounds of upserts."""


class Queries:
    """Sends queries, and keeps what became of them."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        index: str,
        queries: _Rows,
        *,
        top_k: int,
        per_s: float,
        writes: WriteTally,
        seed: int = 3,
    ) -> None:
        """queries: float32 of shape [count, dimension]. per_s: arrivals a second."""
        self._search = SearchServiceStub(channel).Search
        self._requests = [
            SearchRequest(
                index=index,
                vector=pack_vectors(row[None]),
                top_k=top_k,
                omit_text=True,
                bypass_cache=True,
            )
            for row in queries
        ]
        self._per_s, self._writes = per_s, writes
        self._random = np.random.default_rng(seed)
        self._in_flight: set[asyncio.Task[None]] = set()
        self.outcomes: list[Outcome] = []

    async def run(self) -> None:
        """Send until cancelled; then wait for the answers."""
        due_s = time.perf_counter()
        try:
            while True:
                due_s += float(self._random.exponential(1.0 / self._per_s))
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                number = int(self._random.integers(len(self._requests)))
                fresh = bool(self._random.random() < FRESH_SHARE)
                if len(self._in_flight) >= MAX_IN_FLIGHT:
                    now_s = time.perf_counter()
                    full = f"{MAX_IN_FLIGHT} queries were under way"
                    self.outcomes.append(Outcome(number, due_s, now_s, now_s, fresh, full))
                    continue
                task = asyncio.create_task(self._ask(number, due_s, fresh))
                self._in_flight.add(task)
                task.add_done_callback(self._in_flight.discard)
        finally:
            await asyncio.gather(*self._in_flight)

    async def _ask(self, number: int, due_s: float, fresh: bool) -> None:
        request = self._requests[number]
        sent_s = time.perf_counter()
        if fresh:
            version, request = self._writes.table_version, SearchRequest()
            request.CopyFrom(self._requests[number])
            request.min_table_version = version
        try:
            answer = await self._search(request, timeout=QUERY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            failure = f"{error.code().name}: {error.details()}"
            now_s = time.perf_counter()
            self.outcomes.append(Outcome(number, due_s, sent_s, now_s, fresh, failure))
            return
        self.outcomes.append(
            Outcome(
                number,
                due_s,
                sent_s,
                time.perf_counter(),
                fresh,
                complete=answer.coverage.complete,
                documents=tuple(row_of(hit.document_id) for hit in answer.hits),
                scores=tuple(hit.score for hit in answer.hits),
            )
        )


class Writes:
    """Sends upserts and deletions, and tells the oracle."""

    def __init__(
        self,
        client: AsyncClient,
        index: str,
        further: _Rows,
        oracle: Oracle,
        *,
        base_count: int,
        upserts_per_s: int,
        deletes_per_s: int,
        seed: int = 4,
    ) -> None:
        """further: vectors to write, each once. base_count: documents that are there."""
        self._client, self._index, self._further, self._oracle = client, index, further, oracle
        self._per_round = (upserts_per_s // ROUNDS_PER_S, deletes_per_s // ROUNDS_PER_S)
        self._random = np.random.default_rng(seed)
        # Documents that can be found and have no write under way.
        self._idle = list(range(base_count))
        self._next_document, self._next_vector = base_count, 0
        self._in_flight: set[asyncio.Task[None]] = set()
        self.texts: dict[int, str | None] = {}
        """Of each document whose write was acknowledged: its text; None if it was deleted."""
        self.uncertain: set[int] = set()
        """Documents with a write that was never acknowledged: whatever they are is right."""
        self.tally = WriteTally()

    async def run(self) -> None:
        """Write until cancelled, or until all vectors are written; then wait for the answers."""
        due_s = time.perf_counter()
        try:
            while self._next_vector + self._per_round[0] <= len(self._further):
                due_s += 1 / ROUNDS_PER_S
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                if len(self._in_flight) >= MAX_WRITES:
                    await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
                for work in (self._upsert(), self._delete()):
                    task = asyncio.create_task(work)
                    self._in_flight.add(task)
                    task.add_done_callback(self._in_flight.discard)
        finally:
            await asyncio.gather(*self._in_flight)

    def _take(self, count: int) -> list[int]:
        """Take idle documents at random."""
        taken = []
        for _ in range(min(count, len(self._idle))):
            at = int(self._random.integers(len(self._idle)))
            self._idle[at], self._idle[-1] = self._idle[-1], self._idle[at]
            taken.append(self._idle.pop())
        return taken

    async def _upsert(self) -> None:
        count = self._per_round[0]
        documents = self._take(count // 2)
        added = count - len(documents)
        documents += range(self._next_document, self._next_document + added)
        self._next_document += added
        vectors = range(self._next_vector, self._next_vector + count)
        self._next_vector += count
        texts = [f"Write {number}." for number in vectors]
        now_s = time.perf_counter()
        writes = [
            self._oracle.begin(document, vector, now_s)
            for document, vector in zip(documents, vectors, strict=True)
        ]
        messages = [
            {"id": document_id(document), "text": text, "vector": self._further[vector]}
            for document, text, vector in zip(documents, texts, vectors, strict=True)
        ]
        try:
            done = await self._client.upsert(self._index, messages, timeout_s=WRITE_TIMEOUT_S)
            if done.failures:
                raise RuntimeError(f"refused: {done.failures[0].message}")
        except (ShoalError, RuntimeError) as error:
            self._failed(documents, error)
            return
        acknowledged_s = time.perf_counter()
        for write in writes:
            self._oracle.acknowledge(write, acknowledged_s)
        self.tally.upserts += count
        self.tally.latencies_ms.append((acknowledged_s - now_s) * 1e3)
        self._done(documents, texts, done.table_version)
        self._idle += documents

    async def _delete(self) -> None:
        documents = self._take(self._per_round[1])
        if not documents:
            return
        now_s = time.perf_counter()
        writes = [self._oracle.begin(document, None, now_s) for document in documents]
        ids = [document_id(document) for document in documents]
        try:
            version = await self._client.delete(self._index, ids, timeout_s=WRITE_TIMEOUT_S)
        except ShoalError as error:
            self._failed(documents, error)
            return
        acknowledged_s = time.perf_counter()
        for write in writes:
            self._oracle.acknowledge(write, acknowledged_s)
        self.tally.deletes += len(documents)
        self._done(documents, [None] * len(documents), version)

    def _done(self, documents: list[int], texts: Sequence[str | None], version: int) -> None:
        self.texts.update(zip(documents, texts, strict=True))
        self.tally.table_version = max(self.tally.table_version, version)

    def _failed(self, documents: list[int], error: Exception) -> None:
        # Not idle again: what state they are in is not known.
        self.uncertain.update(documents)
        self.tally.failed += len(documents)
        self.tally.failure = self.tally.failure or str(error)


@dataclass(frozen=True)
class Kept:
    """Whether the acknowledged writes are there."""

    checked: int
    lost: int
    """Upserts whose document is missing, or has another text."""
    resurrected: int
    """Deletions whose document is there."""


async def check_kept(client: AsyncClient, index: str, writes: Writes) -> Kept:
    """Read back every document that was written."""
    wanted = {each: text for each, text in writes.texts.items() if each not in writes.uncertain}
    documents, lost, resurrected = sorted(wanted), 0, 0
    for start in range(0, len(documents), _GET_IDS):
        ids = [document_id(each) for each in documents[start : start + _GET_IDS]]
        answer = await client.get(
            index, ids, min_table_version=writes.tally.table_version, timeout_s=WRITE_TIMEOUT_S
        )
        found = {each.id: each.text for each in answer.documents}
        for name in ids:
            text = wanted[row_of(name)]
            resurrected += text is None and name in found
            lost += text is not None and found.get(name) != text
    return Kept(len(documents), lost, resurrected)
