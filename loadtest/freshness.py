"""How soon is a write seen on every replica, and do folds make searches wait?

A writer, a broker and two replicas of a trained index, as processes. While queries run, and
documents are written and deleted all the time, so that tails fill and are folded, single documents
are written and deleted, and each replica is asked directly, from the acknowledgement on, until it
finds the document, or finds it no more. The latency of the queries is compared between folds and at
rest.

    python -m loadtest.freshness --cache FOLDER

Exits with 1 if a write takes longer than a second to be seen, at the 95th percentile, or if a query
fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from shoal.client import AsyncClient, ShoalError
from shoal.internal.v1.shard_pb2 import Fill, SearchShardsRequest
from shoal.internal.v1.shard_pb2_grpc import ShardServiceStub
from shoal.rpc.arrays import pack_vectors

from loadtest import machine
from loadtest.measures import percentile
from loadtest.replicas import INDEX, SERVERS, Replicas
from loadtest.vectors import Vectors, VectorSet, document_id, unit

TARGET_S: Final = 1.0
# Between two looks at a replica: what is measured is late by up to so much and a call.
_LOOK_S: Final = 0.005
_GIVE_UP_S: Final = 30.0
_TOP_K: Final = 10
_FOLDED: Final = re.compile(r"^(\S+ \S+) INFO \S+: folded .* in ([\d.]+) s$", re.MULTILINE)


@dataclass
class Tally:
    """What was measured."""

    # Seconds from the acknowledgement, on each replica.
    seen_s: list[float] = field(default_factory=list)
    gone_s: list[float] = field(default_factory=list)
    # When a query ended, by the wall clock, and how long it took.
    queries: list[tuple[float, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    written: int = 0


class Load:
    """Everything that is asked and written at the same time."""

    def __init__(self, replicas: Replicas, vectors: Vectors, chosen: argparse.Namespace) -> None:
        """chosen: the command line."""
        self._replicas, self._vectors, self._chosen = replicas, vectors, chosen
        self._random = np.random.default_rng(3)
        self.tally = Tally()
        self._ended = False

    async def run(self) -> None:
        """Probe as often as was chosen, under load."""
        addresses = self._replicas.addresses
        options = [("grpc.enable_http_proxy", 0)]
        async with AsyncClient(addresses["broker-0"]) as client:
            await self._until_routed(client)
            running = [
                asyncio.create_task(self._query(client)) for _ in range(self._chosen.callers)
            ]
            running.append(asyncio.create_task(self._write(client)))
            channels = [grpc.aio.insecure_channel(addresses[each], options) for each in SERVERS]
            stubs = [ShardServiceStub(each) for each in channels]
            try:
                ends_s = time.monotonic() + self._chosen.seconds
                number = 0
                while number < self._chosen.probes or time.monotonic() < ends_s:
                    await self._probe(client, stubs, f"probe-{number}")
                    number += 1
            finally:
                self._ended = True
                await asyncio.gather(*running)
                for each in channels:
                    await each.close()

    async def _until_routed(self, client: AsyncClient) -> None:
        async with asyncio.timeout(_GIVE_UP_S):
            while True:
                try:
                    answer = await client.search(INDEX, self._vectors.queries[0], top_k=_TOP_K)
                except ShoalError:
                    pass
                else:
                    if answer.coverage.complete:
                        return
                await asyncio.sleep(0.1)

    async def _query(self, client: AsyncClient) -> None:
        """One caller, who pauses between questions: latency at a stated load."""
        asked = self._vectors.asked
        while not self._ended:
            row = asked[self._random.integers(len(asked))]
            started_s = time.perf_counter()
            try:
                answer = await client.search(
                    INDEX, row, top_k=_TOP_K, bypass_cache=True, omit_text=True, timeout_s=10.0
                )
                if not answer.coverage.complete:
                    self.tally.failures.append(str(answer.coverage))
            except ShoalError as error:
                self.tally.failures.append(f"{error.reason}: {error.message}")
            self.tally.queries.append((time.time(), time.perf_counter() - started_s))
            await asyncio.sleep(max(0.0, started_s + self._chosen.pause_s - time.perf_counter()))

    async def _write(self, client: AsyncClient) -> None:
        """Replace documents and delete some, a tenth of a second's worth at a time."""
        count, deleted, number = self._chosen.upserts // 10, self._chosen.deletes // 10, 0
        rows = self._vectors.rows
        next_s = time.monotonic()
        while not self._ended:
            places = self._random.integers(len(rows), size=count)
            block = [self._document(f"new-{number + at}", rows[i]) for at, i in enumerate(places)]
            await client.upsert(INDEX, block)
            if deleted:
                gone = self._random.integers(len(rows), size=deleted).tolist()
                await client.delete(INDEX, [document_id(each) for each in gone])
            number += count
            self.tally.written += count + deleted
            next_s += 0.1
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))

    def _document(self, name: str, row: np.ndarray) -> dict[str, Any]:
        return {"id": name, "text": f"{name}.", "vector": row}

    async def _probe(
        self, client: AsyncClient, stubs: Sequence[ShardServiceStub], name: str
    ) -> None:
        (vector,) = unit(self._random.standard_normal((1, self._vectors.chosen.dimension)))
        for there, write in (
            (True, client.upsert(INDEX, [self._document(name, vector)])),
            (False, client.delete(INDEX, [name])),
        ):
            await write
            acknowledged_s = time.monotonic()
            took = await asyncio.gather(
                *(self._until(stub, name, vector, there, acknowledged_s) for stub in stubs)
            )
            (self.tally.seen_s if there else self.tally.gone_s).extend(took)

    async def _until(
        self, stub: Any, name: str, vector: np.ndarray, there: bool, acknowledged_s: float
    ) -> float:
        """Ask one replica until a document is there, or is not; return how long that took."""
        request = SearchShardsRequest(
            layout=self._replicas.layout,
            shards=range(self._replicas.shard_count),
            queries=pack_vectors(vector[None]),
            top_k=[_TOP_K],
            fill=[Fill.FILL_REFERENCE],
        )
        while True:
            answer = await stub.SearchShards(request, timeout=10.0)
            now_s = time.monotonic() - acknowledged_s
            found = any(hit.document_id == name for hit in answer.results[0].hits)
            if found is there or now_s > _GIVE_UP_S:
                return now_s
            await asyncio.sleep(_LOOK_S)


def folds_of(log: str) -> list[tuple[float, float]]:
    """When folds began and ended, by the wall clock, from a shard server's log."""
    found = []
    for stamp, took_s in _FOLDED.findall(log):
        ended_s = datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp()  # noqa: DTZ007
        found.append((ended_s - float(took_s), ended_s))
    return found


def divide(
    queries: Sequence[tuple[float, float]], folds: Sequence[tuple[float, float]]
) -> tuple[list[float], list[float]]:
    """Latencies of the queries that a fold went beside, and of the others."""
    beside: list[float] = []
    at_rest: list[float] = []
    for ended_s, took_s in queries:
        beside_one = any(first <= ended_s and ended_s - took_s <= last for first, last in folds)
        (beside if beside_one else at_rest).append(took_s)
    return beside, at_rest


def _row(name: str, values_s: Sequence[float]) -> str:
    figures = (f"{1e3 * percentile(values_s, share):8.1f}" for share in (0.5, 0.95, 0.99, 1.0))
    return f"{name:34} {len(values_s):6} {' '.join(figures)}"


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Start everything, measure, stop everything."""
    vectors = Vectors(VectorSet(count=chosen.vectors), chosen.cache)
    with tempfile.TemporaryDirectory(dir=chosen.cache, prefix="freshness-") as name:
        replicas = Replicas(vectors, Path(name), chosen.shards, tuple(chosen.set))
        try:
            load = Load(replicas, vectors, chosen)
            asyncio.run(load.run())
            logs = [replicas.log_of(each).read_text("utf-8") for each in SERVERS]
        finally:
            replicas.stop()
    tally, folds = load.tally, [each for log in logs for each in folds_of(log)]
    beside, at_rest = divide(tally.queries, folds)
    latencies = {
        "seen after its acknowledgement": tally.seen_s,
        "gone after its acknowledgement": tally.gone_s,
        "search at rest": at_rest,
        "search beside a fold": beside,
    }
    print(f"{'milliseconds':34} {'count':>6} {'p50':>8} {'p95':>8} {'p99':>8} {'most':>8}")
    for name, values in latencies.items():
        print(_row(name, values))
    ratio = percentile(beside, 0.99) / percentile(at_rest, 0.99)
    fold_s = [last - first for first, last in folds]
    print(
        f"{len(folds)} folds of {percentile(fold_s, 0.5):.2f} s (median) in both servers, "
        f"{tally.written:,} writes beside the probes, {len(tally.failures)} failed queries; "
        f"p99 beside a fold / at rest: {ratio:.2f}"
    )
    return {
        "machine": machine.facts(),
        "plan": {
            key: getattr(chosen, key)
            for key in ("vectors", "shards", "upserts", "deletes", "callers", "pause_s", "set")
        },
        "milliseconds": {
            name: {
                f"p{100 * share:g}": round(1e3 * percentile(values, share), 2)
                for share in (0.5, 0.95, 0.99, 1.0)
            }
            | {"count": len(values)}
            for name, values in latencies.items()
        },
        "folds": len(folds),
        "fold_s": fold_s,
        "p99_beside_a_fold_to_rest": ratio,
        "failures": tally.failures[:10],
        "met": {
            "seen within a second": percentile(tally.seen_s, 0.95) <= TARGET_S,
            "gone within a second": percentile(tally.gone_s, 0.95) <= TARGET_S,
            "no failed queries": not tally.failures,
        },
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.freshness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--cache", type=Path, required=True, help="folder for vectors, table and index")
    add("--vectors", type=int, default=100_000, help="vectors in the table before")
    add("--shards", type=int, default=2, help="shards of the index")
    add("--probes", type=int, default=100, help="documents that are followed, at least")
    add("--seconds", type=float, default=60.0, help="least time of load")
    add("--upserts", type=int, default=200, help="documents written a second")
    add("--deletes", type=int, default=20, help="documents deleted a second")
    add("--callers", type=int, default=4, help="callers of searches")
    add("--pause-s", type=float, default=0.05, help="seconds from a caller's question to the next")
    add("--set", action="append", default=[], help="key=value, a setting of the shard servers")
    add("--output", type=Path, help="file of the results, as JSON")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, print the table, write the results."""
    chosen = parse()
    chosen.cache.mkdir(parents=True, exist_ok=True)
    results = measure(chosen)
    if chosen.output:
        chosen.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    missed = [name for name, met in results["met"].items() if not met]
    if missed:
        print(f"missed: {', '.join(missed)} {results['failures'][:1]}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
