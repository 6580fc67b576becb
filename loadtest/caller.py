"""How many searches a second does an address answer to so many callers?

The load generator of compositions.py: a process of its own, which reads one order a line from its
standard input, a JSON object, runs that round, and prints what it measured. Callers are closed
loop: each has one call in flight and sends the next one when it is answered. Every composition gets
the same messages from the same stub, so the generator's own cost is the same for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import psutil
from shoal.v1.search_pb2 import SearchRequest, SearchResponse, Vectors, VectorType
from shoal.v1.search_pb2_grpc import SearchServiceStub

from loadtest.measures import percentile
from loadtest.vectors import row_of

# Longer than any composition takes for an answer under the load that it was sized for; a slower one
# is a failure.
_TIMEOUT_S: Final = 20.0

_Search = Callable[[SearchRequest], Awaitable[SearchResponse]]


@dataclass(frozen=True)
class Order:
    """One round."""

    address: str
    callers: int
    seconds: float
    warm_up_s: float
    index: str
    top_k: int
    application: str = ""
    """Sent as a header of this name: Ray Serve finds an application by it, others ignore it."""
    pids: list[int] = field(default_factory=list)
    """Processes whose processor time, with that of their descendants, is the composition's."""


@dataclass
class _Tally:
    """What the callers of a round have seen."""

    latencies_ms: list[float] = field(default_factory=list)
    failed: int = 0
    failure: str = ""
    incomplete: int = 0
    client_cpu_s: float = 0.0
    server_cpu_s: float = 0.0
    # One answer to each query, to judge after the round, when it takes no time from it.
    answers: dict[int, SearchResponse] = field(default_factory=dict)


class Caller:
    """A load generator with the queries that it asks."""

    def __init__(self, queries: np.ndarray, nearest: np.ndarray) -> None:
        """Queries: float32 of shape [count, dimension]. Nearest: the right rows of each."""
        self._queries = queries
        self._nearest = nearest

    def requests(self, index: str, top_k: int) -> list[SearchRequest]:
        """One request a query: by vector, no text wanted, no cache."""
        return [
            SearchRequest(
                index=index,
                vector=Vectors(
                    values=row.astype("<f4").tobytes(),
                    count=1,
                    dimension=len(row),
                    type=VectorType.VECTOR_TYPE_FLOAT32,
                ),
                top_k=top_k,
                omit_text=True,
                bypass_cache=True,
            )
            for row in self._queries
        ]

    async def run(self, order: Order) -> dict[str, Any]:
        """Run a round and say what it measured."""
        requests = self.requests(order.index, order.top_k)
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(order.address, options=options) as channel:
            search = partial(
                SearchServiceStub(channel).Search,
                timeout=_TIMEOUT_S,
                metadata=(("application", order.application),),
            )
            tally = await _load(search, requests, order)
        return {
            "callers": order.callers,
            "answered": len(tally.latencies_ms),
            "failed": tally.failed,
            "failure": tally.failure,
            "seconds": order.seconds,
            "p50_ms": percentile(tally.latencies_ms, 0.5),
            "p99_ms": percentile(tally.latencies_ms, 0.99),
            "recall": self._recall(tally.answers, order.top_k),
            "incomplete": tally.incomplete,
            "client_cpu_s": tally.client_cpu_s,
            "server_cpu_s": tally.server_cpu_s,
        }

    def _recall(self, answers: dict[int, SearchResponse], top_k: int) -> float:
        """Share of the right rows among the hits, over the queries that were answered."""
        if not answers:
            return 0.0
        found = 0
        for number, answer in answers.items():
            rows = {row_of(hit.document_id) for hit in answer.hits[:top_k]}
            found += len(rows & set(self._nearest[number, :top_k].tolist()))
        return found / (len(answers) * top_k)


async def _load(search: _Search, requests: list[SearchRequest], order: Order) -> _Tally:
    """Load the address without a pause through warm-up and round; tally what ends in the round."""
    tally = _Tally()
    counts_from_s = time.perf_counter() + order.warm_up_s
    until_s = counts_from_s + order.seconds
    turns = np.random.default_rng(2).integers(len(requests), size=(order.callers, 997)).tolist()
    callers = [
        asyncio.create_task(_one_caller(search, requests, own, (counts_from_s, until_s), tally))
        for own in turns
    ]
    await asyncio.sleep(order.warm_up_s)
    client_s, server_s = time.process_time(), cpu_s(order.pids)
    await asyncio.sleep(until_s - time.perf_counter())
    tally.client_cpu_s = time.process_time() - client_s
    tally.server_cpu_s = cpu_s(order.pids) - server_s
    # Nothing may be left in the queues of one composition while the next is measured.
    await asyncio.gather(*callers)
    return tally


async def _one_caller(
    search: _Search,
    requests: list[SearchRequest],
    own: list[int],
    counts: tuple[float, float],
    tally: _Tally,
) -> None:
    counts_from_s, until_s = counts
    turn = 0
    while (started_s := time.perf_counter()) < until_s:
        number = own[turn % len(own)]
        turn += 1
        try:
            answer = await search(requests[number])
        except grpc.aio.AioRpcError as error:
            tally.failed += 1
            tally.failure = tally.failure or f"{error.code().name}: {error.details()}"
            await asyncio.sleep(0.01)  # A server that refuses at once must not make this loop spin.
            continue
        ended_s = time.perf_counter()
        if not counts_from_s <= ended_s <= until_s:
            continue
        tally.latencies_ms.append((ended_s - started_s) * 1e3)
        tally.incomplete += not answer.coverage.complete
        tally.answers.setdefault(number, answer)


def cpu_s(pids: list[int]) -> float:
    """Processor time that these processes and all their descendants have taken so far."""
    total_s = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = each.cpu_times()
                    total_s += times.user + times.system
    return total_s


def main() -> None:
    """Read the folder of queries from the command line and orders from standard input."""
    folder = Path(sys.argv[1])
    nearest = np.load(folder / "nearest.npy")
    caller = Caller(np.load(folder / "queries.npy")[: len(nearest)], nearest)
    for line in sys.stdin:
        print(json.dumps(asyncio.run(caller.run(Order(**json.loads(line))))), flush=True)


if __name__ == "__main__":
    main()
