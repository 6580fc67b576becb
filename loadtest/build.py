"""What does it cost to build a version of an index, over the same build by bare FAISS?

    python -m loadtest.build --cache FOLDER [--vectors 500000] [--shards 2] [--rounds 3]

Shoal's build is that of a cluster: the steps of `shoal.shard.build`, each in a process of its own,
the table read from Lance, segments written, synced, read back and verified. Bare FAISS has all
vectors in memory, in one process, and builds the same index: the same lists, trained for as many
rounds on as many points, the same codes and the same wider code; it writes nothing and verifies
nothing. Rounds are interleaved. Exits with 1 if the median ratio is above the target.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from shoal.shard.build_job import BuildJob
from shoal.shard.codes import load_manifest

from loadtest import machine
from loadtest.bench_table import ensure_table
from loadtest.vectors import Vectors, VectorSet

RESULTS: Final = Path(__file__).parent / "results"
# What a build may cost.
MAX_RATIO: Final = 1.25
# Of k-means: FAISS's own number for lists.
FAISS_ROUNDS: Final = 10
_UID: Final = "bench"


@dataclass(frozen=True)
class Cost:
    """What something took."""

    wall_s: float
    processor_s: float


def in_process(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Do some work; return its result, and the processor time that it took."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    result = work(*arguments)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return result, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def step(name: str, *arguments: Any) -> Any:
    """A step of Shoal's build."""
    from shoal.shard import build

    return getattr(build, name)(*arguments)


def shoal_build(job: BuildJob, encode_tasks: int) -> tuple[dict[str, Cost], Any]:
    """Build a version as the controller does. Returns the cost of each step, and what it found."""
    shutil.rmtree(job.folder, ignore_errors=True)
    costs: dict[str, Cost] = {}

    def timed(name: str, calls: list[tuple[Any, ...]], tasks: int = 1) -> list[Any]:
        started_s = time.monotonic()
        with _processes(tasks) as pool:
            running = [pool.submit(in_process, step, name, *call) for call in calls]
            done = [each.result() for each in running]
        costs[name] = Cost(time.monotonic() - started_s, sum(each for _, each in done))
        return [result for result, _ in done]

    timed("train", [(job,)])
    alone = replace(job, threads=1)
    timed("encode", [(alone, shard) for shard in range(job.shard_count)], encode_tasks)
    (verified,) = timed("verify", [(job,)])
    return costs, verified


def bare_build(rows: str, factory: str, wide: str, points: int, threads: int) -> None:
    """The same index by FAISS alone: train, add."""
    import faiss

    faiss.omp_set_num_threads(threads)
    vectors = np.load(rows)
    code = {"sq8": "SQ8", "fp16": "SQfp16"}[wide]
    index = faiss.index_factory(
        vectors.shape[1], f"{factory},Refine({code})", faiss.METRIC_INNER_PRODUCT
    )
    faiss.downcast_index(index.base_index).cp.niter = FAISS_ROUNDS
    chosen = np.random.default_rng(0).choice(len(vectors), points, replace=False)
    index.train(vectors[np.sort(chosen)])
    index.add(vectors)
    assert index.ntotal == len(vectors)


def _processes(count: int) -> ProcessPoolExecutor:
    # Started anew, as nothing of this process may be in them.
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


def _bare(vectors: Vectors, job: BuildJob) -> Cost:
    from shoal.shard.codebook import TRAINING_POINTS_PER_LIST

    manifest = load_manifest(Path(job.folder) / "codebook")
    points = min(len(vectors.rows), TRAINING_POINTS_PER_LIST * manifest.list_count)
    rows = str(vectors.folder / "rows.npy")
    with _processes(1) as pool:
        started_s = time.monotonic()
        work = (bare_build, rows, manifest.factory, manifest.wide, points, job.threads)
        _, processor_s = pool.submit(in_process, *work).result()
        return Cost(time.monotonic() - started_s, processor_s)


def measure(vectors: Vectors, job: BuildJob, rounds: int) -> dict[str, Any]:
    """Build again and again, by turns."""
    found: list[dict[str, Any]] = []
    for number in range(rounds):
        started_s = time.monotonic()
        costs, verified = shoal_build(job, job.threads)
        wall_s = time.monotonic() - started_s
        mine = Cost(wall_s, sum(each.processor_s for each in costs.values()))
        bare = _bare(vectors, job)
        found.append(
            {
                "shoal": asdict(mine),
                "steps": {name: asdict(each) for name, each in costs.items()},
                "bare": asdict(bare),
                "ratio": mine.wall_s / bare.wall_s,
                "processor_ratio": mine.processor_s / bare.processor_s,
                "recall": verified.recall,
                "size_bytes": verified.size_bytes,
            }
        )
        steps = ", ".join(f"{name} {each.wall_s:.1f}" for name, each in costs.items())
        print(
            f"round {number + 1}: shoal {wall_s:.1f} s ({steps}), bare {bare.wall_s:.1f} s, "
            f"ratio {mine.wall_s / bare.wall_s:.2f}, by processor time "
            f"{mine.processor_s / bare.processor_s:.2f}; recall@10 {verified.recall:.3f}"
        )
    return {
        "rounds": found,
        "ratio": statistics.median(each["ratio"] for each in found),
        "processor_ratio": statistics.median(each["processor_ratio"] for each in found),
    }


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder for vectors and table")
    parser.add_argument("--vectors", type=int, default=500_000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="processor threads for either")
    parser.add_argument("--results", type=Path, default=None, help="file for the results, as JSON")
    chosen = parser.parse_args()
    vectors = Vectors(VectorSet(count=chosen.vectors), chosen.cache)
    table = ensure_table(vectors)
    job = BuildJob(
        table_uri=str(table),
        folder=str(vectors.folder / "versions" / "1"),
        index_uid=_UID,
        index_version=1,
        shard_count=chosen.shards,
        dimension=vectors.chosen.dimension,
        encoder_model="",
        recall_target=0.95,
        threads=chosen.threads,
    )
    Path(job.folder).parent.mkdir(exist_ok=True)
    facts = machine.facts()
    results = measure(vectors, job, chosen.rounds)
    plan = {"vectors": asdict(vectors.chosen), "shards": chosen.shards, "threads": chosen.threads}
    met = results["ratio"] <= MAX_RATIO
    print(f"median ratio {results['ratio']:.2f} (target {MAX_RATIO}: {'met' if met else 'missed'})")
    if chosen.results is not None:
        whole = {"machine": facts, "plan": plan, "target": MAX_RATIO, "met": met, **results}
        chosen.results.write_text(json.dumps(whole, indent=1) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
