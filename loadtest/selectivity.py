"""Does recall depend on how selective a filter is, and what does a filtered search cost?

    python -m loadtest.selectivity --cache FOLDER [--vectors 200000] [--shards 4] [--queries 400]
        [--kind hnsw]

Searches of a shard server's kind (`shoal.shard.search`, all shards in one process, one thread) over
a table with three fields, so that filters of each selectivity are of three kinds:

- random: matches lie anywhere, whatever the query;
- near: matches are whole topics, and the query is of one of them;
- far: matches are whole topics, and the query is of none of them.

Recall@10 is against exact search among what matches. Cost is the median time of a batch of queries
over that of the same batch without a filter, rounds interleaved. Exits with 1 if a recall is below
the target that the codebook was trained for, less what sampling may take from it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray
from shoal.filters.fields import Field, Kind
from shoal.filters.parsing import parse
from shoal.shard.codebook import train_codebook
from shoal.shard.codes import Codebook, load_codebook
from shoal.shard.field_columns import Condition
from shoal.shard.kind_names import KIND_NAMES, KindName
from shoal.shard.load import build_shards
from shoal.shard.search import Target, search
from shoal.shard.shard import Shard
from shoal.table import PassageTable

from loadtest.bench_table import ensure_table
from loadtest.vectors import Vectors, VectorSet

TOP_K: Final = 10
SELECTIVITIES: Final = (0.5, 0.1, 0.01, 0.001)
# A recall measured with a few hundred queries is off by so much, at most.
SLACK: Final = 0.01
_TOPICS: Final = 200
_ROUNDS: Final = 5
_TABLE: Final = "filtered"
_FIELDS: Final = (Field("random", Kind.FLOAT), Field("topical", Kind.FLOAT))


@dataclass(frozen=True)
class Setting:
    """What is searched."""

    targets: Sequence[Target]
    codebook: Codebook
    rows: NDArray[np.float32]
    # Row of the set by row id.
    numbers: dict[int, int]

    def found(
        self, queries: NDArray[np.float32], condition: Condition | None
    ) -> NDArray[np.uint64]:
        """Row ids of the best of each query."""
        targets = self.targets
        if condition is not None:
            targets = [each.matching(condition) for each in targets]
        ranking, failures = search(targets, self.codebook, queries, TOP_K, shard_count=len(targets))
        assert not failures, failures
        return ranking.row_ids


def topics_of(rows: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.int64]:
    """The topic of each row: which of some rows of the set is nearest, in an order of nearness."""
    centres = np.ascontiguousarray(rows[:: len(rows) // _TOPICS][:_TOPICS])
    # Topics with neighbouring numbers are neighbours, so that a range of them is a region.
    centres = centres[np.argsort(centres @ centres[0])]
    _, nearest = faiss.knn(
        np.ascontiguousarray(wanted), centres, 1, metric=faiss.METRIC_INNER_PRODUCT
    )
    return nearest[:, 0]


def values_of(rows: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both fields of each row, 0 to 1: at random, and by topic. Ranks, so that a share is exact."""
    count = len(rows)
    random = np.random.default_rng(11)
    by_topic = np.empty(count)
    by_topic[np.lexsort((random.random(count), topics_of(rows, rows)))] = np.arange(count) / count
    return random.permutation(count) / count, by_topic


def prepare(
    chosen: VectorSet, cache: Path, shards: int, kind: KindName | None
) -> tuple[Setting, Vectors, Any]:
    """Write the table, train and build; the first two are kept in the cache.

    kind: None: the one that a build would choose.
    """
    vectors = Vectors(chosen, cache)
    rows = np.asarray(vectors.rows)
    fields = values_of(rows)
    uri = ensure_table(
        vectors, _TABLE, _FIELDS, lambda row: (float(fields[0][row]), float(fields[1][row]))
    )
    folder = vectors.folder / f"{_TABLE}-codebook-{kind or 'chosen'}"
    if not folder.exists():
        train_codebook(str(uri), folder, kind=kind, threads=2)
    table, codebook = PassageTable.open(str(uri)), load_codebook(folder)
    mains = build_shards(table, codebook, range(shards), shards)
    numbers = {}
    for main in mains.values():
        ids = main.directory.ids.to_pylist()
        numbers |= dict(
            zip(main.directory.records["row_id"].tolist(), (int(i[1:]) for i in ids), strict=True)
        )
    targets = [
        Target(number, Shard(main, chosen.dimension, 1 << 30).view)
        for number, main in mains.items()
    ]
    return Setting(targets, codebook, rows, numbers), vectors, fields


def recall(
    setting: Setting,
    queries: NDArray[np.float32],
    condition: Condition | None,
    matching: NDArray[np.int64],
) -> float:
    """Recall at 10 against exact search among the rows that match."""
    wanted = min(TOP_K, len(matching))
    among = np.ascontiguousarray(setting.rows[matching])
    _, nearest = faiss.knn(queries, among, wanted, metric=faiss.METRIC_INNER_PRODUCT)
    hits = 0
    for first in range(0, len(queries), 16):
        for at, row_ids in enumerate(setting.found(queries[first : first + 16], condition)):
            found = {setting.numbers.get(each) for each in row_ids.tolist()}
            hits += len(found & set(matching[nearest[first + at]].tolist()))
    return hits / (wanted * len(queries))


def cost(
    setting: Setting, queries: NDArray[np.float32], condition: Condition, batch: int
) -> tuple[float, float]:
    """Median ms of a query without and with a filter."""
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(_ROUNDS):
        for first in range(0, len(queries) - batch + 1, batch)[:8]:
            for filtered in (False, True):
                started_s = time.perf_counter()
                setting.found(queries[first : first + batch], condition if filtered else None)
                times[filtered].append(1e3 * (time.perf_counter() - started_s) / batch)
    return statistics.median(times[False]), statistics.median(times[True])


def cases(
    share: float, queries: NDArray[np.float32], rows: NDArray[np.float32], fields: Any
) -> dict[str, tuple[str, NDArray[np.int64], NDArray[np.float32]]]:
    """By kind: the filter, the rows that match, and the queries that are asked."""
    random, by_topic = fields
    last = topics_of(rows, rows[by_topic < share]).max()
    inside = topics_of(rows, queries) <= last
    topical = f"topical < {share}", np.flatnonzero(by_topic < share)
    return {
        "random": (f"random < {share}", np.flatnonzero(random < share), queries),
        "near": (*topical, np.ascontiguousarray(queries[inside])),
        "far": (*topical, np.ascontiguousarray(queries[~inside])),
    }


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--vectors", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--kind", choices=KIND_NAMES, default=None)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(2)
    chosen = VectorSet(count=arguments.vectors)
    setting, vectors, fields = prepare(chosen, arguments.cache, arguments.shards, arguments.kind)
    faiss.omp_set_num_threads(1)
    queries = np.ascontiguousarray(vectors.queries[: arguments.queries])
    target = setting.codebook.manifest.recall_target
    bare = recall(setting, queries, None, np.arange(chosen.count))
    kind = setting.codebook.manifest.kind
    print(f"{chosen.count:,} vectors, {kind}, {arguments.shards} shards, recall target {target}")
    print(f"recall@{TOP_K} without a filter {bare:.4f}\n")
    print("| selectivity | matches lie | queries | recall@10 | ms | relative cost |")
    print("| --- | --- | --- | --- | --- | --- |")
    worst = bare
    for share in SELECTIVITIES:
        for place, (text, matching, asked) in cases(share, queries, setting.rows, fields).items():
            if len(asked) < arguments.batch:
                print(f"| {share:.1%} | {place} | {len(asked)} | too few queries | | |")
                continue
            condition = Condition(text, parse(text, _FIELDS))
            reached = recall(setting, asked, condition, matching)
            bare_ms, filtered_ms = cost(setting, asked, condition, arguments.batch)
            worst = min(worst, reached)
            print(
                f"| {share:.1%} | {place} | {len(asked)} | {reached:.4f} | {filtered_ms:.3f} "
                f"| {filtered_ms / bare_ms:.2f} |",
                flush=True,
            )
    if worst < target - SLACK:
        sys.exit(f"recall {worst:.4f} is below the target {target} - {SLACK}")


if __name__ == "__main__":
    main()
