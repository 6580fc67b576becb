"""Which codebook, and which search parameters, suit the vectors of an index?

The operator states a recall target. Training samples the table, fits the codebook, and measures
it against exact search on vectors that were held out; the cheapest parameters that meet the target
with a margin are recorded with the recall that they reached.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from shoal.shard.codes import (
    MIN_LIST_COUNT,
    POINTS_PER_LIST,
    CodebookDamagedError,
    Manifest,
    OperatingPoint,
    factory_for,
    list_count_for,
    load_manifest,
    save_codebook,
    should_train,
)
from shoal.shard.held_out import HeldOut
from shoal.shard.kernel import faiss
from shoal.shard.wide_code import WideCode, WideKind
from shoal.table import schema
from shoal.table.present import present_mask
from shoal.table.table import PassageTable, vectors_of

_log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]

# Vectors that are held in memory; recall is measured among them. 1 GiB is 700,000 x 384.
SAMPLE_BYTES: Final = 1 << 30
# Least that anything can be learnt from; far below the threshold from which training pays.
MIN_PASSAGES: Final = MIN_LIST_COUNT * POINTS_PER_LIST
# Enough to tell recalls apart by about 0.01.
HELD_OUT_COUNT: Final = 400
# Sample points for each list: more take longer and gain little.
TRAINING_POINTS_PER_LIST: Final = 64
TRAINING_ROUNDS: Final = 10
# Result counts that parameters are measured for: a page, the reranker's candidates, and an
# evaluation's. The first is the one that the target names.
TOP_KS: Final = (10, 32, 100)
NPROBES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
REFINE_FACTORS: Final = (2, 3, 4, 6, 8, 12, 16, 24, 32)
MAX_CANDIDATES: Final = 800
# What parts of a search cost on one core, in nanoseconds, measured on AVX-512; only their
# proportions matter.
_LIST_NS: Final = 300.0
_CODE_NS: Final = 2.5
_REFINED_NS: Final = 150.0
# Part of the misses allowed that is kept as a margin, as held-out passages are easier than
# questions: with all-MiniLM-L6-v2 on 30,000 Debian package descriptions, parameters that reached
# 0.964 on passages reached 0.937 on questions, and those that reached 0.978 reached 0.957.
_MARGIN: Final = 0.5
# Standard errors that a recall measured on questions may err by: less than the floor is met once in
# twenty times.
_SURE: Final = 1.645
# Scores closer than this are the same: which of two equal neighbours is found does not matter.
_SAME_SCORE: Final = 1e-6
_BLOCK_QUERIES: Final = 32
# Exact neighbours beyond those wanted: copies of a passage tie with the last one.
_TIES: Final = 28


class TooFewPassagesError(ValueError):
    """A table that is too small to train on."""

    def __init__(self, passage_count: int) -> None:
        """passage_count: what it holds."""
        super().__init__(
            f"the table holds {passage_count} passages, and training needs {MIN_PASSAGES}: leave "
            "the index to exact search until it has grown"
        )


def train_codebook(
    table_uri: str,
    out_dir: str | Path,
    *,
    recall_target: float = 0.95,
    queries: NDArray[np.float32] | None = None,
    threads: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Manifest:
    """Train a codebook for a table, and write it to a folder. About 30 s for 500,000 vectors.

    A folder that already holds one is left as it is, so that a repetition costs nothing. Raises
    TooFewPassagesError, and the table's errors.
    queries: unit vectors of questions as they are asked, [count, dimension], to measure recall on.
    Without them it is measured on passages, held out, with a margin that makes searches dearer.
    progress: called with what is being done, and how much of all is done, 0 to 1.
    """
    folder = Path(str(out_dir).removeprefix("file://"))
    report = progress or (lambda stage, done: None)
    try:
        return load_manifest(folder)
    except CodebookDamagedError:
        pass  # The usual case: nothing is there.
    with _threads(threads):
        report("reading vectors", 0.0)
        table = PassageTable.open(table_uri)
        passage_count, sample, row_ids = _read_sample(table, seed)
        manifest, template, wide = _train(
            sample, queries, passage_count, recall_target, seed, report
        )
        report("writing the codebook", 1.0)
        manifest = save_codebook(folder, manifest, template, wide)
        _held_out(queries, sample, row_ids, manifest.query_count).save(folder)
        return manifest


def _held_out(
    queries: NDArray[np.float32] | None,
    sample: NDArray[np.float32],
    row_ids: NDArray[np.uint64],
    count: int,
) -> HeldOut:
    """What recall was measured with, to verify segments by."""
    if queries is not None:  # No passages: none need be left out.
        return HeldOut(np.ascontiguousarray(queries, dtype=np.float32), row_ids[:0])
    return HeldOut(sample[:count], row_ids[:count])


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _read_sample(
    table: PassageTable, seed: int
) -> tuple[int, NDArray[np.float32], NDArray[np.uint64]]:
    """Read how many passages there are, and vectors of some with their row ids, in random order."""
    columns = (schema.DOCUMENT_ID, schema.SEQUENCE, schema.TOMBSTONE)
    log = pa.Table.from_batches(list(table.scan(columns)))
    row_ids = np.sort(log.column(schema.ROW_ID).to_numpy()[present_mask(log)])
    del log
    generator = np.random.default_rng(seed)
    count = min(len(row_ids), SAMPLE_BYTES // (4 * table.dimension))
    chosen = np.sort(generator.choice(row_ids, count, replace=False))
    places = generator.permutation(count)
    sample = np.empty((count, table.dimension), dtype=np.float32)
    sampled_rows = np.empty(count, dtype=np.uint64)
    sampled_rows[places] = chosen
    for batch in table.scan((), with_vectors=True):
        held = batch.column(schema.ROW_ID).to_numpy()
        at = np.minimum(np.searchsorted(chosen, held), max(0, count - 1))
        wanted = chosen[at] == held
        vectors = batch.column(schema.VECTOR).filter(pa.array(wanted))
        sample[places[at[wanted]]] = vectors_of(vectors, table.dimension)
    return len(row_ids), sample, sampled_rows


def _train(
    sample: NDArray[np.float32],
    queries: NDArray[np.float32] | None,
    passage_count: int,
    recall_target: float,
    seed: int,
    report: Progress,
) -> tuple[Manifest, Any, WideCode]:
    if len(sample) < MIN_PASSAGES:
        raise TooFewPassagesError(len(sample))
    held_out_count = min(HELD_OUT_COUNT, len(sample) // 4) if queries is None else 0
    held_out, base = sample[:held_out_count], sample[held_out_count:]
    if queries is not None:
        held_out = np.ascontiguousarray(queries, dtype=np.float32)
    list_count = list_count_for(passage_count, len(base))
    report(f"training {list_count} lists", 0.1)
    factory = factory_for(sample.shape[1], list_count)
    lists = faiss.index_factory(sample.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    lists.cp.niter = TRAINING_ROUNDS
    lists.cp.seed = lists.pq.cp.seed = 1 + seed
    training = base[: TRAINING_POINTS_PER_LIST * list_count]
    lists.train(training)
    template = faiss.clone_index(lists)
    report("encoding", 0.5)
    lists.add(base)
    report("measuring recall", 0.7)
    measured = _Measured(template, lists, base, held_out, asked=queries is not None)
    wide, points = _choose(measured, training, recall_target)
    manifest = Manifest(
        dimension=sample.shape[1],
        list_count=list_count,
        factory=factory,
        wide=wide.kind,
        operating_points=tuple(points),
        recall_target=recall_target,
        passage_count=passage_count,
        sample_count=len(base),
        query_count=len(held_out),
        seed=seed,
        sha256="",
    )
    if points[0].recall < recall_target:
        _log.warning("recall is %.3f, below the target %.3f", points[0].recall, recall_target)
    return manifest, template, wide


@dataclass(frozen=True)
class _Measured:
    """What recall is measured with."""

    template: Any
    lists: Any
    base: NDArray[np.float32]
    held_out: NDArray[np.float32]
    asked: bool
    """True if what is held out is what is asked, and not passages in the place of questions."""

    def floor(self, recalls: NDArray[np.float64]) -> float:
        """The recall to count on, from that of each held-out query."""
        mean = float(recalls.mean())
        if self.asked:
            return mean - _SURE * float(recalls.std()) / math.sqrt(len(recalls))
        return 1 - (1 - mean) / (1 - _MARGIN)


@dataclass(frozen=True)
class _Tried:
    """Parameters that were measured."""

    cost_ns: float
    floor: float
    point: OperatingPoint


def _choose(
    measured: _Measured, training: NDArray[np.float32], target: float
) -> tuple[WideCode, list[OperatingPoint]]:
    """Choose the narrower wide code unless it keeps the target out of reach."""
    found: tuple[WideCode, list[_Tried]] | None = None
    kinds: tuple[WideKind, ...] = ("sq8", "fp16")
    for kind in kinds:
        wide = WideCode.train(kind, training)
        points = _measure(measured, wide, target)
        best = points[0]
        if found is None or best.floor > found[1][0].floor:
            found = wide, points
        if best.floor >= target:
            break
    assert found is not None
    wide, points = found
    return wide, [each.point for each in points]


def _measure(measured: _Measured, wide: WideCode, target: float) -> list[_Tried]:
    """Find the cheapest parameters for each of `TOP_KS`; the best ones where none suffice."""
    list_count = measured.lists.nlist
    top_ks = [top_k for top_k in TOP_KS if top_k <= len(measured.base)]
    depth = min(max(top_ks) + _TIES, len(measured.base))
    truth = faiss.knn(measured.held_out, measured.base, depth, metric=faiss.METRIC_INNER_PRODUCT)
    # Once for all: over all that is tried, each candidate would be encoded a dozen times.
    codes = wide.encode(measured.base)
    codes_per_list = len(measured.base) / list_count
    tried: dict[int, list[_Tried]] = {top_k: [] for top_k in top_ks}
    for nprobe in [*(each for each in NPROBES if each < list_count), list_count]:
        scan_ns = nprobe * (_LIST_NS + codes_per_list * _CODE_NS)
        if all(_cheapest(tried[top_k], target) < scan_ns for top_k in top_ks):
            break
        for floor, point in _recalls(measured, wide, codes, truth, nprobe, top_ks):
            refine_ns = point.top_k * point.refine_factor * _REFINED_NS
            tried[point.top_k].append(_Tried(scan_ns + refine_ns, floor, point))
    return [_pick(tried[top_k], target) for top_k in top_ks]


def _cheapest(tried: list[_Tried], target: float) -> float:
    return min((each.cost_ns for each in tried if each.floor >= target), default=np.inf)


def _pick(tried: list[_Tried], target: float) -> _Tried:
    enough = [each for each in tried if each.floor >= target]
    if enough:
        return min(enough, key=lambda each: each.cost_ns)
    return max(tried, key=lambda each: (each.floor, -each.cost_ns))


def _recalls(
    measured: _Measured,
    wide: WideCode,
    codes: NDArray[Any],
    truth: tuple[NDArray[np.float32], NDArray[np.int64]],
    nprobe: int,
    top_ks: list[int],
) -> Iterator[tuple[float, OperatingPoint]]:
    """Measure every refine factor at one nprobe: the lists are searched once for all of them."""
    exact, exact_rows = truth
    limit = min(MAX_CANDIDATES, len(measured.base))
    pairs = [
        (top_k, factor)
        for top_k in top_ks
        for factor in REFINE_FACTORS
        if top_k * factor <= limit or factor == REFINE_FACTORS[0]
    ]
    count = len(measured.held_out)
    recalls = {pair: np.empty(count) for pair in pairs}
    parameters = faiss.SearchParametersIVF(nprobe=nprobe)
    for first in range(0, count, _BLOCK_QUERIES):
        block = slice(first, first + _BLOCK_QUERIES)
        queries = measured.held_out[block]
        _, found = measured.lists.search(queries, limit, params=parameters)
        true = _true_scores(found, exact_rows[block], exact[block])
        refined = wide.scores(queries, codes[found])
        refined[found < 0] = -np.inf
        for top_k, factor in pairs:
            chosen = np.argsort(-refined[:, : top_k * factor], axis=1)[:, :top_k]
            reached = np.take_along_axis(true, chosen, axis=1)
            worst = exact[block, top_k - 1, None]
            recalls[top_k, factor][block] = (reached >= worst - _SAME_SCORE).mean(axis=1)
    for (top_k, factor), each in recalls.items():
        recall = float(each.mean())
        point = OperatingPoint(
            top_k=top_k, nprobe=nprobe, refine_factor=factor, recall=round(recall, 6)
        )
        yield measured.floor(each), point


def _true_scores(
    found: NDArray[np.int64], exact_rows: NDArray[np.int64], exact: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Scores of what was found, [n, k], that is among the exact neighbours; -inf for the rest."""
    same = found[:, :, None] == exact_rows[:, None, :]
    scores = np.take_along_axis(exact, same.argmax(axis=2), axis=1)
    return np.where(same.any(axis=2), scores, np.float32(-np.inf))


__all__ = ["Manifest", "should_train", "train_codebook"]
