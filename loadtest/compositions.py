"""How much does it cost to search four shards through Shoal, and what would it cost otherwise?

Three compositions of the same work, measured in one run, in interleaved rounds, by one load
generator: vector queries for the best 10 of 500,000 x 384 vectors in 4 shards on one machine, from
64 callers.

  shoal        the broker's process and a shard server's, as they run in a cluster
  ray-serve    a deployment a shard and a router before them, as Ray Serve's documentation shows
  echo         a bare grpc.aio server that answers with stored bytes: the ceiling of its kind

    python -m loadtest.compositions --cache FOLDER

Everything that takes long to make is kept in the cache folder. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from loadtest import machine
from loadtest.bench_table import ensure_table
from loadtest.contestants import Contestant, Echo, RayServe, ShoalProcesses
from loadtest.measures import Round, Summary, ratios, summarise, verdicts
from loadtest.processes import ServerProcess
from loadtest.report import print_table
from loadtest.vectors import Vectors, VectorSet

RESULTS: Final = Path(__file__).parent / "results"
# What issue 2 asks for.
TARGETS: Final = {("shoal", "ray-serve"): 15.0, ("shoal", "echo"): 0.4}
MIN_RECALL: Final = 0.95
# On top of the round itself: the callers' last answers.
_ANSWER_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True)
class Plan:
    """What to measure; everything that the result depends on."""

    vectors: VectorSet
    shard_count: int
    callers: int
    rounds: int
    seconds: float
    warm_up_s: float
    top_k: int
    threads: int


def run(plan: Plan, contestants: Sequence[Contestant], caller: ServerProcess) -> list[Round]:
    """Measure all contestants, round after round, in changing order."""
    rounds: list[Round] = []
    for number in range(plan.rounds):
        turn = number % len(contestants)
        for contestant in (*contestants[turn:], *contestants[:turn]):
            rounds.append(_measure(plan, contestant, caller))
            each = rounds[-1]
            recall = "" if each.recall is None else f", recall {each.recall:.3f}"
            print(
                f"round {number + 1} of {plan.rounds}: {each.composition} "
                f"{each.per_second:,.0f}/s, p50 {each.p50_ms:.1f} ms{recall}"
                + (f", {each.failed} failed: {each.failure}" if each.failed else ""),
                file=sys.stderr,
            )
    return rounds


def _measure(plan: Plan, contestant: Contestant, caller: ServerProcess) -> Round:
    order = {
        "address": contestant.address,
        "callers": plan.callers,
        "seconds": plan.seconds,
        "warm_up_s": plan.warm_up_s,
        "index": contestant.index,
        "top_k": plan.top_k,
        "application": contestant.application,
        "pids": contestant.pids,
    }
    limit_s = plan.warm_up_s + plan.seconds + _ANSWER_TIMEOUT_S
    measured = json.loads(caller.ask(json.dumps(order), limit_s))
    if not contestant.searches:
        measured |= {"recall": None, "incomplete": 0}
    return Round(composition=contestant.name, **measured)


def compare(rounds: Sequence[Round]) -> tuple[dict[str, Summary], dict[str, float]]:
    """The medians of each composition, and the median ratio of each pair that has a target."""
    names = dict.fromkeys(each.composition for each in rounds)
    summaries = {
        name: summarise([each for each in rounds if each.composition == name]) for name in names
    }
    medians = {}
    for of in ("shoal",):
        for to in names:
            if of in names and to != of:
                medians[f"{of} / {to}"] = statistics.median(ratios(rounds, of, to))
    return summaries, medians


def measure_all(plan: Plan, cache: Path, *, tuned: bool) -> dict[str, Any]:
    """Make what is missing, start everything, measure, stop everything, and judge."""
    vectors = Vectors(plan.vectors, cache)
    print("exact answers...", file=sys.stderr)
    nearest = vectors.nearest(len(vectors.asked), plan.top_k)
    np.save(vectors.folder / "nearest.npy", nearest)
    print("table...", file=sys.stderr)
    table = ensure_table(vectors)
    facts = machine.facts()
    started: list[Contestant | RayServe | ServerProcess] = []
    try:
        shoal = ShoalProcesses(vectors, table, plan.shard_count, plan.threads)
        started.append(shoal)
        echo = Echo(shoal, vectors, plan.top_k)
        started.append(echo)
        serve = RayServe(shoal.codebook, vectors, plan.shard_count, tuned=tuned)
        started.append(serve)
        log = vectors.folder / "caller.log"
        caller = ServerProcess(["-m", "loadtest.caller", str(vectors.folder)], log, threads=1)
        started.append(caller)
        contestants = [shoal, *serve.applications(), echo]
        rounds = run(plan, contestants, caller)
    finally:
        for each in reversed(started):
            each.stop()
    summaries, medians = compare(rounds)
    targets = {f"{of} / {to}": target for (of, to), target in TARGETS.items()}
    return {
        "machine": facts,
        "plan": asdict(plan),
        "search": shoal.description,
        "summaries": {name: asdict(summary) for name, summary in summaries.items()},
        "ratios": medians,
        "targets": targets,
        "met": verdicts(summaries, medians, targets, min_recall=MIN_RECALL),
        "rounds": [each.as_json() for each in rounds],
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.compositions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--cache", type=Path, required=True, help="folder for vectors, table and indexes, 4 GB")
    add("--vectors", type=int, default=500_000, help="vectors in the table")
    add("--shards", type=int, default=4, help="shards of the index")
    add("--callers", type=int, default=64, help="concurrent callers")
    add("--rounds", type=int, default=3, help="rounds of each composition")
    add("--seconds", type=float, default=8.0, help="length of a round")
    add("--warm-up", type=float, default=3.0, help="seconds of load before each round")
    add("--threads", type=int, default=1, help="threads of FAISS for all shards together")
    add("--tuned", action="store_true", help="also measure Ray Serve with batching shards")
    add("--output", type=Path, help="file of the results; default: loadtest/results/TIME.json")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, print the table, write the results."""
    chosen = parse()
    plan = Plan(
        vectors=VectorSet(count=chosen.vectors),
        shard_count=chosen.shards,
        callers=chosen.callers,
        rounds=chosen.rounds,
        seconds=chosen.seconds,
        warm_up_s=chosen.warm_up,
        top_k=10,
        threads=chosen.threads,
    )
    results = measure_all(plan, chosen.cache, tuned=chosen.tuned)
    print_table(results)
    stamp = results["machine"]["time"].replace(":", "").replace("+0000", "Z")
    output = chosen.output or RESULTS / f"compositions-{stamp}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"written to {output}", file=sys.stderr)
    if not all(results["met"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
