"""Which codebook suits the vectors of an index?

The operator states a recall target. Training samples the table, fits the codebook, holds vectors
out to measure recall with, and chooses the narrowest wide code that does not keep the target out of
reach. The search parameters of a version are chosen on its segments, once they are there; those of
a codebook that is used without a version, on the sample.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
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
    list_count_for,
    load_manifest,
    save_codebook,
    should_train,
)
from shoal.shard.held_out import TIES, HeldOut
from shoal.shard.kernel import faiss
from shoal.shard.kind import Kind, Trial
from shoal.shard.kind_names import KindName
from shoal.shard.kinds import named
from shoal.shard.operating_points import (
    TOP_KS,
    Measured,
    RecallUnreachableError,
    Tried,
    Truth,
    measure,
    ranked_recalls,
)
from shoal.shard.segment import Vectors
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
# By which a wide code's ceiling may err.
_CEILING_ERROR: Final = 0.01


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
    with_points: bool = True,
    threads: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Manifest:
    """Train a codebook for a table, and write it to a folder. About 20 s for 500,000 vectors.

    A folder that already holds one is left as it is, so that a repetition costs nothing. Raises
    TooFewPassagesError, RecallUnreachableError, and the table's errors.
    model: whose vectors; empty: those of the model that the table was made with.
    kind: None: chosen from passages, dimension, and the memory that a copy of the index may take.
    queries: unit vectors of questions as they are asked, [count, dimension], to measure recall on.
    Without them it is measured on passages, held out, with a margin that makes searches dearer.
    with_points: False leaves the search parameters to be measured on the segments that are made.
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
            named(kind),
            sample,
            queries,
            passage_count,
            recall_target,
            seed,
            report,
            seen,
            with_points=with_points,
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
    *,
    with_points: bool = True,
) -> tuple[Manifest, Any, WideCode]:
    """Train a kind's codebook on vectors in random order, and choose its search parameters.

    queries, with_points: as for `train_codebook`. passage_count: of the index that the sample is
    of. seen: the bounds of all its vectors; None: of the sample.
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
    report("measuring recall", 0.6)
    base = base[: kind.measured_at_most]
    measured = Measured(kind, held_out, _truth(held_out, base), asked=queries is not None)
    if with_points:
        wide, points = _choose_points(measured, _Filled(template, base), seen, recall_target)
    else:
        wide, points = _choose_wide(measured, base, seen, recall_target), []
    manifest = Manifest(
        dimension=sample.shape[1],
        kind=kind.name,
        list_count=list_count,
        factory=kind.factory(sample.shape[1], list_count),
        wide=wide.kind,
        operating_points=tuple(each.point for each in points),
        recall_target=recall_target,
        passage_count=passage_count,
        sample_count=len(base),
        query_count=len(held_out),
        seed=seed,
        sha256="",
    )
    return manifest, template, wide


class _Filled:
    """A sample, and a FAISS index of it that is made when it is first searched."""

    def __init__(self, template: Any, base: Vectors) -> None:
        """template: trained, without vectors."""
        self._template, self.base = template, base

    @cached_property
    def index(self) -> Any:
        """The index."""
        index = faiss.clone_index(self._template)
        index.add(self.base)
        return index


class _SampleCorpus:
    """A sample as it is searched with a wide code; numbers are its rows."""

    def __init__(self, kind: Kind, filled: _Filled, wide: WideCode) -> None:
        self._kind, self._index = kind, filled.index
        self.count = len(filled.base)
        self.list_count = int(getattr(self._index, "nlist", 0))
        # Once for all: over all that is tried, each candidate would be encoded a dozen times.
        self._codes = wide.encode(filled.base) if kind.refines else np.empty((1, 0))

    def found(self, queries: Vectors, k: int, trial: Trial) -> NDArray[np.int64]:
        """Search the index."""
        return self._kind.tried(self._index, queries, k, trial)[1]

    def codes(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Look the codes up."""
        codes: NDArray[Any] = self._codes[numbers]
        return codes


def _choose_wide(measured: Measured, base: Vectors, seen: Bounds, target: float) -> WideCode:
    """Choose the narrowest wide code that does not keep the target out of reach.

    Raises RecallUnreachableError.
    """
    near = base[measured.truth.numbers]
    *narrower, widest = (WideCode.train(each, seen) for each in measured.kind.wides)
    for wide in narrower:
        if measured.floor(ranked_recalls(measured, near, wide)) >= target:
            return wide
    reached = float(ranked_recalls(measured, near, widest).mean())
    if reached < target - _CEILING_ERROR:
        raise _unreachable(measured, reached, target)
    return widest


def _choose_points(
    measured: Measured, filled: _Filled, seen: Bounds, target: float
) -> tuple[WideCode, list[Tried]]:
    """Choose search parameters too, by a sample; the narrower wide code if they reach the target.

    Raises RecallUnreachableError.
    """
    near, kind, best = filled.base[measured.truth.numbers], measured.kind, None
    for wide_kind in kind.wides:
        wide = WideCode.train(wide_kind, seen)
        is_last = wide_kind == kind.wides[-1]
        ceiling = 1.0 if is_last else measured.floor(ranked_recalls(measured, near, wide))
        if ceiling < target - _CEILING_ERROR:
            continue
        points = measure(measured, _SampleCorpus(kind, filled, wide), wide, target)
        if best is None or points[0].floor > best[1][0].floor:
            best = wide, points
        if points[0].floor >= target:
            break
    assert best is not None
    wide, points = best
    if points[0].point.recall < target:
        raise _unreachable(measured, points[0].point.recall, target)
    return wide, points


def _unreachable(measured: Measured, reached: float, target: float) -> RecallUnreachableError:
    return RecallUnreachableError(measured.kind.name, reached, target, len(measured.held_out))


def _truth(held_out: Vectors, base: Vectors) -> Truth:
    depth = min(max(TOP_KS) + TIES, len(base))
    return Truth(*faiss.knn(held_out, base, depth, metric=faiss.METRIC_INNER_PRODUCT))


__all__ = ["Manifest", "fit", "should_train", "train_codebook"]
