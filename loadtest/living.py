"""Does a living index stay whole, right and quick while everything about it is changed?

    python -m loadtest.living --cache FOLDER [--vectors 1000000] [--queries-per-s 40]

A real cluster, brought up by `shoal up` on a table of a million vectors of 384 numbers, in 2
shards. It is asked and written to without a pause, at rates that do not wait for the answers
(traffic.py), through

    rest, build, promotion, reshard 2 -> 4, rollback, rest

and every answer of all phases is judged by exact search over what was live when it was given
(oracle.py). That is done after the run, from what was recorded: it is as exact, and the processor
that a judge beside the load would take is then not taken from what is judged.

The rate, 40 queries a second, is about a twentieth of what two cores that callers and cluster share
can answer at rest: what is measured is what changes do to a query, not how a saturated queue grows.
Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from shoal.client import AsyncClient
from shoal.v1.indexes_pb2 import Index, IndexVersionState

from loadtest import machine
from loadtest.adopted import LocalCluster, adopt
from loadtest.bench_table import ensure_table
from loadtest.living_report import print_living
from loadtest.oracle import Asked, Judged, Oracle
from loadtest.phases import (
    REST,
    Phase,
    Targets,
    as_json,
    figures_of,
    judge,
    rounded,
    undisturbed,
)
from loadtest.traffic import Kept, Outcome, Queries, Writes, check_kept
from loadtest.vectors import Vectors, VectorSet
from loadtest.witness import Standstill, Witness

RESULTS: Final = Path(__file__).parent / "results"
INDEX: Final = "living"
# A build of a million vectors takes minutes on two cores that serve meanwhile.
_BUILD_TIMEOUT_S: Final = 1_800.0
_CHANGE_TIMEOUT_S: Final = 600.0
_POLL_S: Final = 0.2
# Of the load before anything is measured: connections are made, caches filled.
_WARM_UP_S: Final = 10.0
_ENDED: Final = (
    IndexVersionState.INDEX_VERSION_STATE_READY,
    IndexVersionState.INDEX_VERSION_STATE_FAILED,
)


@dataclass(frozen=True)
class Plan:
    """What to do; everything that the result depends on."""

    vectors: VectorSet = field(default_factory=lambda: VectorSet(count=1_000_000))
    queries_per_s: float = 40.0
    upserts_per_s: int = 200
    deletes_per_s: int = 20
    shards: int = 2
    new_shards: int = 4
    top_k: int = 10
    rest_s: float = 60.0
    """Length of each rest."""
    least_s: float = 30.0
    """Shortest length of a phase with a change: what the change leaves behind is part of it."""
    window_s: float = 10.0
    """Recall must reach its target in every window of this length."""
    slack_s: float = 1.0
    """Seconds after its acknowledgement within which a write need not show."""
    limit_s: float = 1_200.0
    """Longest time for which vectors to write are made."""
    targets: Targets = field(default_factory=Targets)


class Run:
    """A run on a cluster that is up."""

    def __init__(
        self,
        plan: Plan,
        client: AsyncClient,
        queries: Queries,
        writes: Writes,
    ) -> None:
        """Nothing is sent before `load`."""
        self._plan, self._client = plan, client
        self.queries, self.writes = queries, writes
        self.phases: list[Phase] = []

    async def first_version(self) -> None:
        """Have the first version built and promoted, before there is any load."""
        await self._until(lambda index: index.shard_count > 0, _CHANGE_TIMEOUT_S)
        number = await self._build()
        await self._until(lambda index: index.index_version == number, _CHANGE_TIMEOUT_S)

    async def load(self) -> None:
        """Go through all phases under load."""
        # What is recorded grows, and looking through it for garbage would delay queries that are
        # due by a tenth of a second, as if the cluster had.
        gc.collect()
        gc.disable()
        tasks = [asyncio.create_task(each.run()) for each in (self.queries, self.writes)]
        try:
            await asyncio.sleep(_WARM_UP_S)
            await self._phase(REST, self._rest)
            for name, change in (
                ("build", self._build_version),
                ("promotion", self._promote),
                ("reshard", self._reshard),
                ("rollback", self._roll_back),
            ):
                await self._phase(name, change)
            await self._phase(REST, self._rest)
        finally:
            gc.enable()
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _phase(self, name: str, change: Callable[[], Awaitable[str]]) -> None:
        from_s = time.perf_counter()
        note = await change()
        took_s = time.perf_counter() - from_s
        await asyncio.sleep(max(0.0, self._plan.least_s - took_s) if name != REST else 0.0)
        until_s = time.perf_counter()
        self.phases.append(Phase(name, from_s, until_s, took_s, note))
        print(f"{name}: {took_s:.1f} s{'; ' if note else ''}{note}", file=sys.stderr)

    async def _rest(self) -> str:
        await asyncio.sleep(self._plan.rest_s)
        return ""

    async def _build_version(self) -> str:
        self._built = await self._build(promote=False)
        return f"version {self._built}"

    async def _promote(self) -> str:
        left = (await self._client.describe_index(INDEX)).index.index_version
        await self._client.promote_index_version(INDEX, self._built, timeout_s=30.0)
        await self._until(lambda index: index.index_version == self._built, _CHANGE_TIMEOUT_S)
        return f"version {left} to {self._built}"

    async def _reshard(self) -> str:
        wanted = self._plan.new_shards
        await self._client.scale(shards=wanted, index=INDEX)
        started_s = time.perf_counter()
        await self._until(lambda index: index.shard_count == wanted, _CHANGE_TIMEOUT_S)
        served_s = time.perf_counter() - started_s
        # The version that stands by is divided after the one that serves.
        further_s = await self._until_divided()
        return (
            f"{self._plan.shards} to {wanted} shards; served after {served_s:.1f} s, "
            f"and what stands by {further_s:.1f} s later"
        )

    async def _roll_back(self) -> str:
        started_s = time.perf_counter()
        back = await self._client.rollback_index(INDEX)
        wanted = back.promoted_version
        await self._until(lambda index: index.index_version == wanted, _CHANGE_TIMEOUT_S)
        return f"back to version {wanted} in {time.perf_counter() - started_s:.2f} s"

    async def _build(self, *, promote: bool = True) -> int:
        number = await self._begin_build(promote=promote)
        deadline_s = time.perf_counter() + _BUILD_TIMEOUT_S
        while time.perf_counter() < deadline_s:
            listed = await self._client.index_versions(INDEX, timeout_s=30.0)
            (version,) = [each for each in listed.versions if each.number == number]
            if version.state in _ENDED:
                if version.state == _ENDED[1]:
                    raise SystemExit(f"version {number} failed: {version.message}")
                return number
            await asyncio.sleep(_POLL_S)
        raise SystemExit(f"version {number} is not built after {_BUILD_TIMEOUT_S:.0f} s")

    async def _begin_build(self, *, promote: bool) -> int:
        # The first one may have been begun by the controller, of its own accord.
        listed = (await self._client.index_versions(INDEX, timeout_s=30.0)).versions
        if promote and listed:
            return listed[0].number
        return (await self._client.build_index_version(INDEX, promote=promote)).number

    async def _until(self, reached: Callable[[Index], bool], timeout_s: float) -> None:
        deadline_s = time.perf_counter() + timeout_s
        while time.perf_counter() < deadline_s:
            if reached((await self._client.describe_index(INDEX, timeout_s=30.0)).index):
                return
            await asyncio.sleep(_POLL_S)
        raise SystemExit(f"the index did not change within {timeout_s:.0f} s")

    async def _until_divided(self) -> float:
        """Wait until what stands by is divided too; return the seconds that it took."""
        started_s = time.perf_counter()
        while time.perf_counter() < started_s + _CHANGE_TIMEOUT_S:
            problems = (await self._client.cluster_status(timeout_s=30.0)).problems
            if not any("being divided" in each for each in problems):
                break
            await asyncio.sleep(_POLL_S)
        return time.perf_counter() - started_s


def living(plan: Plan, cache: Path, port: int = 0) -> dict[str, Any]:
    """Do everything; return the results. Takes 15 minutes for a million vectors."""
    vectors = Vectors(plan.vectors, cache)
    table = ensure_table(vectors)
    further = vectors.more(int(plan.limit_s) * plan.upserts_per_s, seed=1)
    facts = machine.facts()
    data = vectors.folder / "living-data"
    shutil.rmtree(data, ignore_errors=True)
    adopt(data, INDEX, table, plan.vectors.dimension)
    declared = {
        "cluster": "living",
        "scale": {"shards": plan.shards, "rerankers": 0},
        "redis": {"mode": "off"},
    }
    oracle = Oracle(vectors.rows, further, vectors.asked, plan.top_k)
    cluster = LocalCluster(data, declared, port)
    witness = Witness()
    try:
        with witness:
            run, kept = asyncio.run(_drive(plan, cluster.endpoint, vectors, further, oracle))
    finally:
        cluster.stop()
        shutil.rmtree(data, ignore_errors=True)
    print("judging all answers...", file=sys.stderr)
    return summarise(plan, facts, run, oracle, kept, witness.standstills)


async def _drive(
    plan: Plan, endpoint: str, vectors: Vectors, further: Any, oracle: Oracle
) -> tuple[Run, Kept]:
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with (
        AsyncClient(endpoint) as client,
        grpc.aio.insecure_channel(endpoint, options=options) as channel,
    ):
        writes = Writes(
            client,
            INDEX,
            further,
            oracle,
            base_count=plan.vectors.count,
            upserts_per_s=plan.upserts_per_s,
            deletes_per_s=plan.deletes_per_s,
        )
        queries = Queries(
            channel,
            INDEX,
            vectors.asked,
            top_k=plan.top_k,
            per_s=plan.queries_per_s,
            writes=writes.tally,
        )
        run = Run(plan, client, queries, writes)
        started_s = time.perf_counter()
        await run.first_version()
        print(f"first version: {time.perf_counter() - started_s:.1f} s", file=sys.stderr)
        await run.load()
        print("reading back what was written...", file=sys.stderr)
        return run, await check_kept(client, INDEX, writes)


def summarise(
    plan: Plan,
    facts: dict[str, Any],
    run: Run,
    oracle: Oracle,
    kept: Kept,
    standstills: Sequence[Standstill] | None = None,
) -> dict[str, Any]:
    """Judge all answers, and compare with the targets.

    standstills: of the machine; None if they are not known.
    """
    judged = judge_all(plan, run.queries.outcomes, oracle)
    figures = [
        figures_of(each, judged, window_s=plan.window_s, standstills=standstills)
        for each in run.phases
    ]
    resting = [
        outcome
        for phase in run.phases
        for outcome, _ in judged
        if phase.name == REST
        and phase.from_s <= outcome.due_s < phase.until_s
        and not outcome.failure
    ]
    seconds = run.phases[-1].until_s - run.phases[0].from_s
    tally = run.writes.tally
    verdict = judge(
        figures,
        resting_ms=[each.latency_ms for each in resting],
        undisturbed_ms=[each.latency_ms for each in undisturbed(resting, standstills or ())],
        writes=tally,
        wanted_writes=seconds * (plan.upserts_per_s + plan.deletes_per_s),
        kept=kept,
        targets=plan.targets,
    )
    return {
        "machine": facts,
        "plan": asdict(plan),
        "phases": [as_json(each) for each in figures],
        "writes": {
            "upserts": tally.upserts,
            "deletes": tally.deletes,
            "failed": tally.failed,
            "failure": tally.failure,
            "per_s": round((tally.upserts + tally.deletes) / (seconds + _WARM_UP_S), 1),
            "table_version": tally.table_version,
        }
        | asdict(kept),
        "ratios": rounded(verdict.ratios),
        "undisturbed_ratios": rounded(verdict.undisturbed_ratios or {}),
        "met": verdict.met,
    }


def judge_all(
    plan: Plan, outcomes: Sequence[Outcome], oracle: Oracle
) -> list[tuple[Outcome, Judged]]:
    """Judge the answers; one that failed has no recall to count."""
    answered = [each for each in outcomes if not each.failure]
    asked = [
        Asked(
            each.query,
            # One that named a version must have seen all that was acknowledged when it was sent.
            each.sent_s - (0.0 if each.fresh else plan.slack_s),
            each.done_s,
            each.documents,
            each.scores,
        )
        for each in answered
    ]
    failed = [(each, Judged(0.0, 0)) for each in outcomes if each.failure]
    return [*zip(answered, oracle.judge(asked), strict=True), *failed]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.living",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, plan = parser.add_argument, Plan()
    add("--cache", type=Path, required=True, help="folder for vectors and table, 4 kB a vector")
    add("--vectors", type=int, default=plan.vectors.count, help="vectors at the start")
    add("--queries-per-s", type=float, default=plan.queries_per_s, help="queries a second")
    add("--upserts-per-s", type=int, default=plan.upserts_per_s, help="a multiple of 10")
    add("--deletes-per-s", type=int, default=plan.deletes_per_s, help="a multiple of 10")
    add("--rest", type=float, default=plan.rest_s, help="seconds of each rest")
    add("--least", type=float, default=plan.least_s, help="least seconds of each other phase")
    add("--port", type=int, default=0, help="of the broker; default: a free one")
    add("--output", type=Path, help="file of the results; default: loadtest/results/living-TIME")
    return parser.parse_args(arguments)


def main() -> int:
    """Run, print the table, write the results."""
    chosen = parse()
    plan = Plan(
        vectors=VectorSet(count=chosen.vectors),
        queries_per_s=chosen.queries_per_s,
        upserts_per_s=chosen.upserts_per_s,
        deletes_per_s=chosen.deletes_per_s,
        rest_s=chosen.rest,
        least_s=chosen.least,
    )
    results = living(plan, chosen.cache, chosen.port)
    print_living(results)
    stamp = results["machine"]["time"].replace(":", "").replace("+0000", "Z")
    output = chosen.output or RESULTS / f"living-{stamp}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0 if all(results["met"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
