"""Writers and readers that go on while something else happens, and the history of what they did."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.client import AsyncClient, ShoalError
from shoal.v1.documents_pb2 import PurgeDocumentsResponse

from tests.harness.controlled import until
from tests.harness.history import ABSENT, History, Read, State, Write
from tests.model.conditions import some
from tests.model.oracle import Author, Oracle, Stored, check_answer, states_of

# Ids that each writer has for itself. Those of the second change all the time: also while a fold,
# which takes a few milliseconds, is under way.
IDS: Final = (tuple(f"t{at}" for at in range(20)), ("tt0", "tt1", "tt2"))
WRITERS: Final = len(IDS)
READERS: Final = 2
# At least so many operations of each, however soon the other thing is over.
LEAST: Final = 8
# Enough for what is looked for to be found, although its code is coarse.
TOP_K: Final = 40
# What expires within this time does so before the next check; of the rest no example sees the end.
SOON: Final = timedelta(seconds=30)
# How long documents live that writers give an end.
BRIEFLY: Final = timedelta(seconds=0.3)
_NEVER: Final = float("inf")


class Ledger:
    """Writes through the client, and enters what was acknowledged in the oracle and the history."""

    def __init__(self, client: AsyncClient, index: str) -> None:
        """Nothing was written yet."""
        self.client, self.index = client, index
        self.author = Author()
        self.oracle = Oracle(self.author)
        self.history = History()

    async def upsert(self, documents: Sequence[Stored]) -> None:
        """Write documents, all of which are taken."""
        start_s = time.monotonic()
        summary = await self.client.upsert(self.index, [each.fields() for each in documents])
        assert (summary.acknowledged, summary.failures) == (len(documents), ())
        states = [(each.id, each.content_hash, _monotonic_s(each)) for each in documents]
        self._note(states, start_s, summary.table_version)
        self.oracle.wrote(documents, summary.table_version)

    async def delete(self, ids: Sequence[str], *, patient: bool = False) -> None:
        """Delete documents. patient: until it is acknowledged."""
        start_s = time.monotonic()
        while True:
            try:
                version = await self.client.delete(self.index, ids)
                break
            except ShoalError:
                if not patient:
                    raise
        self._note([(each, ABSENT, _NEVER) for each in ids], start_s, version)
        self.oracle.deleted(ids, version)

    async def purge(self, ids: Sequence[str]) -> PurgeDocumentsResponse:
        """Purge documents, whether they are there or not."""
        start_s = time.monotonic()
        purged = await self.client.purge(self.index, ids)
        self._note([(each, ABSENT, _NEVER) for each in ids], start_s, purged.table_version)
        self.oracle.deleted(ids, purged.table_version)
        return purged

    async def outlive(self) -> list[str]:
        """Wait until all that expires soon has expired, and drop it; return its ids."""
        ends = [each.expires_at for each in self.oracle.present.values() if each.expires_at]
        soon = [each for each in ends if each < datetime.now(UTC) + SOON]
        last = max(soon, default=datetime.now(UTC))
        await until(lambda: datetime.now(UTC) >= last)
        return self.oracle.expire(datetime.now(UTC))

    def _note(self, states: list[tuple[str, State, float]], start_s: float, version: int) -> None:
        end_s = time.monotonic()
        self.history.write(
            *(
                Write(key, state, start_s, end_s, version, place, expires_s)
                for place, (key, state, expires_s) in enumerate(states)
            )
        )


def _monotonic_s(stored: Stored) -> float:
    """When it expires, on the clock of the history."""
    if stored.expires_at is None:
        return _NEVER
    return time.monotonic() + (stored.expires_at - datetime.now(UTC)).total_seconds()


class Traffic:
    """Writers and readers of one index."""

    def __init__(self, ledger: Ledger, seed: int, *, may_fail: bool) -> None:
        """may_fail: reads may fail or be incomplete, as something is being killed."""
        self._ledger, self._seed, self._may_fail = ledger, seed, may_fail
        self._client, self._index = ledger.client, ledger.index
        self._stop = asyncio.Event()

    @contextlib.asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        """Write and read meanwhile."""
        async with asyncio.TaskGroup() as group:
            for number in range(WRITERS):
                group.create_task(self._write(number))
            for number in range(READERS):
                group.create_task(self._read(number))
            try:
                yield
            finally:
                self._stop.set()

    async def _write(self, number: int) -> None:
        random = np.random.default_rng([self._seed, number])
        ids, done = IDS[number], 0
        while done < LEAST or not self._stop.is_set():
            done += 1
            chosen = [str(each) for each in random.choice(ids, int(random.integers(1, 4)))]
            if random.random() < 0.3:
                await self._ledger.delete(chosen, patient=self._may_fail)
            else:
                author = self._ledger.author
                ends = [random.random() < 0.2 for _ in chosen]
                soon = datetime.now(UTC) + BRIEFLY
                await self._ledger.upsert(
                    [
                        author.document(each, random, soon if brief else None)
                        for each, brief in zip(chosen, ends, strict=True)
                    ]
                )

    async def _read(self, number: int) -> None:
        random = np.random.default_rng([self._seed, WRITERS + number])
        done = 0
        while done < LEAST or not self._stop.is_set():
            done += 1
            try:
                if random.random() < 0.3:
                    await self._get(random)
                else:
                    await self._search(random)
            except ShoalError:
                if not self._may_fail:
                    raise

    async def _get(self, random: np.random.Generator) -> None:
        wanted = sorted(set(random.choice(sorted(self._ledger.history.writes), 30).tolist()))
        version, start_s = self._ledger.oracle.table_version, time.monotonic()
        found = await self._client.get(self._index, wanted, min_table_version=version)
        seen: dict[str, State] = dict.fromkeys(found.missing_ids, ABSENT)
        seen |= {each.id: each.content_hash for each in found.documents}
        assert seen.keys() == set(wanted)
        self._ledger.history.read(Read(start_s, time.monotonic(), version, seen, name="get"))

    async def _search(self, random: np.random.Generator) -> None:
        """Look for a document by its own vector: whatever else is found, it must be.

        Half of the time under a filter, if it matches that.
        """
        wanted, query = self._something(random)
        (condition,) = some(random, 1) if random.random() < 0.5 else [None]
        must = condition is None or condition.matches(wanted.metadata)
        version, start_s = self._ledger.oracle.table_version, time.monotonic()
        answer = await self._client.search(
            self._index,
            query,
            top_k=TOP_K,
            filter=condition.text if condition else "",
            min_table_version=version,
            explain=True,
            bypass_cache=random.random() < 0.5,
        )
        assert answer.table_version >= version
        check_answer(answer, query, self._ledger.author, condition)
        complete = answer.coverage.complete
        assert complete or self._may_fail, answer.coverage
        self._ledger.history.read(
            Read(
                start_s,
                time.monotonic(),
                answer.table_version,
                states_of(answer.hits),
                {wanted.id: wanted.content_hash} if complete and must else {},
                name=f"search for {condition.text}" if condition else "search",
            )
        )

    def _something(self, random: np.random.Generator) -> tuple[Stored, NDArray[np.float32]]:
        """A document that is present, of those that change if there is one, and its vector."""
        present = self._ledger.oracle.present
        names = list(present)
        if random.random() < 0.7:
            names = [each for each in names if each.startswith("t")] or names
        while True:
            stored = present[names[random.integers(len(names))]]
            if stored.vector is not None:
                return stored, stored.vector
            names = list(present)
