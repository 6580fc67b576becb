"""What do the kinds of an index cost, measured, for `shoal index plan` to reckon with?

    python -m loadtest.calibrate

builds each kind at a few sizes and dimensions, with one thread, and writes what it took into the
package: cluster/shoal/cluster/index_costs.json. Times are processor time, which can be believed on
a machine that others use too. The vectors are loadtest/vectors.py's,
whose neighbours are about as hard to tell apart as those of text.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from loadtest import machine
from loadtest.vectors import TUNING_COUNT, Vectors, VectorSet

SIZES: Final = (20_000, 60_000, 150_000)
DIMENSIONS: Final = (96, 384)
KINDS: Final = ("exact", "ivf-pq", "ivf-sq8", "hnsw", "ivf-rabitq")
OUT: Final = Path(__file__).parents[1] / "cluster/shoal/cluster/index_costs.json"
RECALL_TARGET: Final = 0.95
TOP_K: Final = 10
# Queries that are timed one at a time, and the size of a batch.
_LONE: Final = 200
_BATCH: Final = 32
_SHARD: Final = 16_384


def main() -> None:
    """Measure everything; what is there so far is written after each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("/var/tmp/shoal-bench"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="vectors, ascending")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    facts, points = machine.facts(), list[dict[str, Any]]()
    for size in arguments.sizes:
        for dimension in DIMENSIONS:
            for kind in KINDS:
                points.append(measure(kind, size, dimension, arguments.cache))
                print(points[-1], file=sys.stderr, flush=True)
        text = json.dumps({"machine": facts, "points": points}, indent=1)
        arguments.out.write_text(text + "\n")


def _vectors(size: int, dimension: int, cache: Path) -> Vectors:
    # As many topics for each passage at every size.
    chosen = VectorSet(
        count=size,
        dimension=dimension,
        cluster_count=max(200, size // 100),
        query_count=TUNING_COUNT + _LONE,
    )
    return Vectors(chosen, cache)


def measure(kind: str, size: int, dimension: int, cache: Path) -> dict[str, Any]:
    """Build and tune a segment of a kind with one thread, and search it."""
    import faiss
    import numpy as np
    from shoal.shard.codebook import fit
    from shoal.shard.codes import Codebook
    from shoal.shard.filling import SegmentBuilder
    from shoal.shard.held_out import HeldOut, Neighbours
    from shoal.shard.kinds import named
    from shoal.shard.segment_corpus import NEIGHBOURS, tuned, without

    faiss.omp_set_num_threads(1)
    vectors = _vectors(size, dimension, cache)
    rows = np.ascontiguousarray(vectors.rows)
    began_s = time.process_time()
    codebook, held_out = None, HeldOut(rows[:0], np.empty(0, np.uint64))
    if kind != "exact":
        order = np.random.default_rng(0).permutation(size)
        fitted = fit(
            named(kind),  # type: ignore[arg-type]
            rows[order],
            None,
            size,
            RECALL_TARGET,
            0,
            lambda stage, done: None,
            with_points=False,
        )
        codebook = Codebook(*fitted)
        chosen = order[: codebook.manifest.query_count]
        held_out = HeldOut(rows[chosen], chosen.astype(np.uint64))
    trained_s = time.process_time()
    builder = SegmentBuilder(codebook, dimension, size)
    neighbours = Neighbours(held_out, NEIGHBOURS)
    for first in range(0, size, _SHARD):
        block = rows[first : first + _SHARD]
        builder.add(block)
        if codebook is not None:
            neighbours.add(np.arange(first, first + len(block), dtype=np.uint64), block)
    main = _main_of(builder.finish())
    filled_s = time.process_time()
    if codebook is not None:
        neighbours.flush()
        left = [without(0, main, held_out)]
        codebook = tuned(codebook, left, held_out, neighbours, RECALL_TARGET)
    tuned_s = time.process_time()
    lone_us, batch_us, recall = _searched(main, codebook, vectors, dimension)
    return {
        "kind": kind,
        "vectors": size,
        "dimension": dimension,
        "train_s": round(trained_s - began_s + tuned_s - filled_s, 3),
        "encode_s": round(filled_s - trained_s, 3),
        "lone_us": round(lone_us, 1),
        "batch_us": round(batch_us, 1),
        "bytes": round(main.segment.memory_bytes / size, 2),
        "recall": round(recall, 4),
        "parameters": _parameters(codebook),
    }


def _parameters(codebook: Any) -> dict[str, Any]:
    if codebook is None:
        return {}
    point = codebook.manifest.point_for(TOP_K)
    chosen: dict[str, Any] = point.model_dump(exclude={"top_k", "recall"})
    return {"lists": codebook.manifest.list_count, "wide": codebook.manifest.wide, **chosen}


def _main_of(segment: Any) -> Any:
    """A shard's main segment, whose rows' ids are their positions."""
    import numpy as np
    import pyarrow as pa
    from shoal.shard.directory import RECORD, Directory
    from shoal.shard.shard import Main
    from shoal.table.cursor import EMPTY_CURSOR

    count = segment.count
    records = np.zeros(count, dtype=RECORD)
    records["row_id"] = np.arange(count)
    ids = pa.array(np.arange(count).astype(str), pa.large_string())
    directory = Directory(records, ids, np.arange(count, dtype=np.uint64))
    return Main(segment, directory, EMPTY_CURSOR)


def _searched(
    main: Any, codebook: Any, vectors: Vectors, dimension: int
) -> tuple[float, float, float]:
    """Median of lone queries and cost of one in a batch, microseconds; recall."""
    import numpy as np
    from shoal.shard.search import Target, search
    from shoal.shard.shard import Shard

    targets = [Target(0, Shard(main, dimension, 1_000).view)]

    def ask(queries: Any) -> Any:
        ranking, failures = search(targets, codebook, queries, TOP_K, shard_count=1)
        assert not failures
        return ranking.row_ids

    queries = np.ascontiguousarray(vectors.asked[:_LONE])
    ask(queries[:8])
    times, found = [], []
    for at in range(len(queries)):
        began_s = time.process_time()
        found.append(ask(queries[at : at + 1]))
        times.append(time.process_time() - began_s)
    began_s = time.process_time()
    rounds = 0
    while rounds < 2 or time.process_time() - began_s < 0.3:
        for first in range(0, len(queries) - _BATCH + 1, _BATCH):
            ask(queries[first : first + _BATCH])
        rounds += 1
    batched = rounds * (len(queries) // _BATCH) * _BATCH
    batch_s = (time.process_time() - began_s) / batched
    truth = vectors.nearest(len(queries), TOP_K).astype(np.uint64)
    same = (np.concatenate(found)[:, :, None] == truth[:, None, :]).any(axis=2)
    return float(np.median(times)) * 1e6, batch_s * 1e6, float(same.mean())


if __name__ == "__main__":
    main()
