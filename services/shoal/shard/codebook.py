"""Which codebook, and which search parameters, suit the vectors of an index?

The operator states a recall target. Training samples the table, fits the codebook, and measures
it against exact search on vectors that were held out; the cheapest parameters that meet the target
with a margin are recorded with the recall that they reached.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from shoal.shard.choose import choose_kind
from shoal.shard.codes import (
    MAX_LIST_COUNT,
    MIN_LIST_COUNT,
    POINTS_PER_LIST,
    CodebookDamagedError,
    Manifest,
    OperatingPoint,
    list_count_for,
    load_manifest,
    save_codebook,
    should_train,
)
from shoal.shard.held_out import SAME_SCORE, TIES, HeldOut
from shoal.shard.kernel import faiss
from shoal.shard.kind import REFINED_NS, Kind, Trial
from shoal.shard.kind_names import KIND_NAMES, KindName
from shoal.shard.kinds import named
from shoal.shard.wide_code import Bounds, WideCode
from shoal.table import schema
from shoal.table.present import present_mask
from shoal.table.reading import read_whole
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
# Result counts that parameters are measured for: a page, the reranker's candidates, and an
# evaluation's. The first is the one that the target names.
TOP_KS: Final = (10, 32, 100)
MAX_CANDIDATES: Final = 800
# Part of the misses allowed that is kept as a margin, as held-out passages are easier than
# questions: with all-MiniLM-L6-v2 on 30,000 Debian package descriptions, parameters that reached
# 0.964 on passages reached 0.937 on questions, and those that reached 0.978 reached 0.957.
_MARGIN: Final = 0.5
# Standard errors that a recall measured on questions may err by: less than the floor is met once in
# twenty times.
_SURE: Final = 1.645
_BLOCK_QUERIES: Final = 32
# Held-out queries after which parameters are given up whose recall is so far below the target: five
# standard errors.
_GLANCE_QUERIES: Final = 64
_HOPELESS: Final = 0.15
# By which a wide code's ceiling may err.
_CEILING_ERROR: Final = 0.01


class RecallUnreachableError(ValueError):
    """A recall target that no search parameters of the kind reach."""

    def __init__(self, kind: KindName, reached: float, target: float, query_count: int) -> None:
        """reached: recall at 10 of the best parameters. query_count: of the held-out vectors."""
        others = ", ".join(name for name in KIND_NAMES if name != kind)
        super().__init__(
            f"{kind} reaches recall@{TOP_KS[0]} {reached:.3f} at best on {query_count} held-out "
            f"vectors, below the target {target:.3f}: lower the target (`shoal index update "
            f"--recall`), build another kind (`--kind`: {others}), or raise build.memory_bytes if "
            "it kept a better kind from being chosen; exact search (version 0) has recall 1"
        )


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
    kind: KindName | None = None,
    model: str = "",
    memory_bytes: int | None = None,
    recall_target: float = 0.95,
    queries: NDArray[np.float32] | None = None,
    threads: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Manifest:
    """Train a codebook for a table, and write it to a folder. About 30 s for 500,000 vectors.

    A folder that already holds one is left as it is, so that a repetition costs nothing. Raises
    TooFewPassagesError, RecallUnreachableError, and the table's errors.
    model: whose vectors; empty: those of the model that the table was made with.
    kind: None: chosen from passages, dimension, and the memory that a copy of the index may take.
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
        table = PassageTable.open(table_uri, model=model)
        passage_count, sample, row_ids, seen = read_whole(table, lambda: _read_sample(table, seed))
        if kind is None:
            choice = choose_kind(passage_count, table.dimension, memory_bytes)
            _log.info("the index becomes %s: %s", choice.kind, choice.reason)
            kind = choice.kind
        manifest, template, wide = fit(
            named(kind), sample, queries, passage_count, recall_target, seed, report, seen
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
) -> tuple[int, NDArray[np.float32], NDArray[np.uint64], Bounds]:
    """Read how many passages there are, and vectors of some with their row ids, in random order.

    And the bounds of all vectors, superseded ones among them.
    """
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
    seen = Bounds.none(table.dimension)
    for batch in table.scan((), with_vectors=True):
        held = batch.column(schema.ROW_ID).to_numpy()
        at = np.minimum(np.searchsorted(chosen, held), max(0, count - 1))
        wanted = chosen[at] == held
        vectors = batch.column(schema.VECTOR).filter(pa.array(wanted))
        sample[places[at[wanted]]] = vectors_of(vectors, table.dimension)
        every = batch.column(schema.VECTOR).drop_null()
        seen = seen.with_vectors(vectors_of(every, table.dimension))
    return len(row_ids), sample, sampled_rows, seen


def fit(
    kind: Kind,
    sample: NDArray[np.float32],
    queries: NDArray[np.float32] | None,
    passage_count: int,
    recall_target: float,
    seed: int,
    report: Progress,
    seen: Bounds | None = None,
) -> tuple[Manifest, Any, WideCode]:
    """Train a kind's codebook on vectors in random order, and choose its search parameters.

    queries: as for `train_codebook`. passage_count: of the index that the sample is of. seen: the
    bounds of all its vectors; None: of the sample.
    Raises TooFewPassagesError, RecallUnreachableError.
    """
    if len(sample) < MIN_PASSAGES:
        raise TooFewPassagesError(len(sample))
    held_out_count = min(HELD_OUT_COUNT, len(sample) // 4) if queries is None else 0
    held_out, base = sample[:held_out_count], sample[held_out_count:]
    if queries is not None:
        # In random order, as a part of them is looked at first.
        order = np.random.default_rng(seed).permutation(len(queries))
        held_out = np.ascontiguousarray(queries[order], dtype=np.float32)
    list_count = list_count_for(passage_count, len(base)) if kind.has_lists else 0
    report(f"training {kind.name}" + (f", {list_count} lists" if list_count else ""), 0.1)
    training = base[: TRAINING_POINTS_PER_LIST * (list_count or MAX_LIST_COUNT)]
    if seen is None:
        seen = Bounds.none(sample.shape[1]).with_vectors(sample)
    template = kind.train(training, list_count, WideCode.train(kind.wides[0], seen), seed)
    report("encoding", 0.5)
    base = base[: kind.measured_at_most]
    index = faiss.clone_index(template)
    index.add(base)
    report("measuring recall", 0.7)
    measured = _Measured(kind, index, base, held_out, asked=queries is not None)
    wide, points = _choose(measured, seen, recall_target)
    manifest = Manifest(
        dimension=sample.shape[1],
        kind=kind.name,
        list_count=list_count,
        factory=kind.factory(sample.shape[1], list_count),
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
        raise RecallUnreachableError(kind.name, points[0].recall, recall_target, len(held_out))
    return manifest, template, wide


# Scores and rows of the exact neighbours, [n, k].
_Truth = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True)
class _Measured:
    """What recall is measured with."""

    kind: Kind
    # A FAISS index of `base`.
    index: Any
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
    measured: _Measured, seen: Bounds, target: float
) -> tuple[WideCode, list[OperatingPoint]]:
    """Choose the narrower wide code unless it keeps the target out of reach."""
    found: tuple[WideCode, list[_Tried]] | None = None
    truth = _truth(measured)
    for wide_kind in measured.kind.wides:
        wide = WideCode.train(wide_kind, seen)
        is_last = wide_kind == measured.kind.wides[-1]
        if not is_last and _ceiling(measured, wide, truth) < target - _CEILING_ERROR:
            continue
        points = _measure(measured, wide, truth, target)
        best = points[0]
        if found is None or best.floor > found[1][0].floor:
            found = wide, points
        if best.floor >= target:
            break
    assert found is not None
    wide, points = found
    return wide, [each.point for each in points]


def _top_ks(measured: _Measured) -> list[int]:
    return [top_k for top_k in TOP_KS if top_k <= len(measured.base)]


def _truth(measured: _Measured) -> _Truth:
    depth = min(max(_top_ks(measured)) + TIES, len(measured.base))
    scores, rows = faiss.knn(
        measured.held_out, measured.base, depth, metric=faiss.METRIC_INNER_PRODUCT
    )
    return scores, rows


def _ceiling(measured: _Measured, wide: WideCode, truth: _Truth) -> float:
    """The recall to count on if all true neighbours were candidates, and ranked by a wide code.

    Hardly any parameters lead beyond it: further candidates only displace some of them, and only
    by luck does a search miss just those that would.
    """
    if not measured.kind.refines:
        return 1.0
    exact, rows = truth
    top_k, recalls = TOP_KS[0], np.empty(len(rows))
    for first in range(0, len(rows), _BLOCK_QUERIES):
        block = slice(first, first + _BLOCK_QUERIES)
        near = measured.base[rows[block].reshape(-1)]
        codes = wide.encode(near).reshape(*rows[block].shape, -1)
        chosen = np.argsort(-wide.scores(measured.held_out[block], codes), axis=1)[:, :top_k]
        reached = np.take_along_axis(exact[block], chosen, axis=1)
        recalls[block] = (reached >= exact[block, top_k - 1, None] - SAME_SCORE).mean(axis=1)
    return measured.floor(recalls)


def _measure(measured: _Measured, wide: WideCode, truth: _Truth, target: float) -> list[_Tried]:
    """Find the cheapest parameters for each of `TOP_KS`; the best ones where none suffice."""
    kind, list_count = measured.kind, getattr(measured.index, "nlist", 0)
    top_ks = _top_ks(measured)
    # Once for all: over all that is tried, each candidate would be encoded a dozen times.
    codes = wide.encode(measured.base) if kind.refines else np.empty(0)
    tried: dict[int, list[_Tried]] = {top_k: [] for top_k in top_ks}
    for trial in kind.trials(list_count, len(measured.base)):
        if all(_cheapest(tried[top_k], target) < trial.cost_ns for top_k in top_ks):
            break
        recalls = _recalls if kind.refines else _final_recalls
        for floor, point in recalls(measured, wide, codes, truth, trial, top_ks, target):
            again = point.top_k * point.refine_factor if kind.refines else 0
            cost_ns = kind.wanting(trial, point.top_k).cost_ns + again * REFINED_NS
            tried[point.top_k].append(_Tried(cost_ns, floor, point))
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
    truth: _Truth,
    trial: Trial,
    top_ks: list[int],
    target: float,
) -> Iterator[tuple[float, OperatingPoint]]:
    """Measure every refine factor of a trial: the codes are searched once for all of them.

    On a part of the queries only, if that shows that none of them comes near the target.
    """
    exact, exact_rows = truth
    limit = min(MAX_CANDIDATES, len(measured.base))
    pairs = [
        (top_k, factor)
        for top_k in top_ks
        for factor in measured.kind.refine_factors
        if top_k * factor <= limit or factor == measured.kind.refine_factors[0]
    ]
    count = len(measured.held_out)
    recalls = {pair: np.empty(count) for pair in pairs}

    def fill(first: int) -> None:
        block = slice(first, first + _BLOCK_QUERIES)
        queries = measured.held_out[block]
        _, found = measured.kind.tried(measured.index, queries, limit, trial)
        true = _true_scores(found, exact_rows[block], exact[block])
        refined = wide.scores(queries, codes[found])
        refined[found < 0] = -np.inf
        for top_k, factor in pairs:
            chosen = np.argsort(-refined[:, : top_k * factor], axis=1)[:, :top_k]
            reached = np.take_along_axis(true, chosen, axis=1)
            worst = exact[block, top_k - 1, None]
            recalls[top_k, factor][block] = (reached >= worst - SAME_SCORE).mean(axis=1)

    # NumPy and FAISS leave the interpreter alone for nearly all of it.
    with ThreadPoolExecutor(
        faiss.omp_get_max_threads(), initializer=lambda: faiss.omp_set_num_threads(1)
    ) as pool:
        list(pool.map(fill, range(0, min(count, _GLANCE_QUERIES), _BLOCK_QUERIES)))
        glance = {pair: each[:_GLANCE_QUERIES] for pair, each in recalls.items()}
        if all(each.mean() < target - _HOPELESS for each in glance.values()):
            recalls = glance
        else:
            list(pool.map(fill, range(_GLANCE_QUERIES, count, _BLOCK_QUERIES)))
    for (top_k, factor), each in recalls.items():
        yield measured.floor(each), _point(top_k, factor, trial, each)


def _final_recalls(
    measured: _Measured,
    wide: WideCode,
    codes: NDArray[Any],
    truth: _Truth,
    trial: Trial,
    top_ks: list[int],
    target: float,
) -> Iterator[tuple[float, OperatingPoint]]:
    """Measure a trial whose scores are final."""
    del wide, codes, target
    exact, exact_rows = truth
    for top_k in top_ks:
        wanting = measured.kind.wanting(trial, top_k)
        recalls = np.empty(len(measured.held_out))
        for first in range(0, len(recalls), _BLOCK_QUERIES):
            block = slice(first, first + _BLOCK_QUERIES)
            queries = measured.held_out[block]
            _, found = measured.kind.tried(measured.index, queries, top_k, wanting)
            reached = _true_scores(found, exact_rows[block], exact[block])
            worst = exact[block, top_k - 1, None]
            recalls[block] = (reached >= worst - SAME_SCORE).mean(axis=1)
        yield measured.floor(recalls), _point(top_k, 1, wanting, recalls)


def _point(top_k: int, factor: int, trial: Trial, recalls: NDArray[np.float64]) -> OperatingPoint:
    return OperatingPoint(
        top_k=top_k,
        nprobe=trial.nprobe,
        refine_factor=factor,
        ef_search=trial.ef_search,
        recall=round(float(recalls.mean()), 6),
    )


def _true_scores(
    found: NDArray[np.int64], exact_rows: NDArray[np.int64], exact: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Scores of what was found, [n, k], that is among the exact neighbours; -inf for the rest."""
    same = found[:, :, None] == exact_rows[:, None, :]
    scores = np.take_along_axis(exact, same.argmax(axis=2), axis=1)
    return np.where(same.any(axis=2), scores, np.float32(-np.inf))


__all__ = ["Manifest", "fit", "should_train", "train_codebook"]
