"""How is a shard made from the table?

In two readings of one version: the directory's columns, which say which rows are present; then the
vectors, which go into the segment as they come. So no more than one batch of vectors is in memory
beside the segments, and all shards of a layout are made in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from shoal.shard.codes import Codebook
from shoal.shard.directory import COLUMNS, Directory, Positions, find_rows, hash_ids, records_of
from shoal.shard.field_columns import encoded, field_rows
from shoal.shard.filling import SegmentBuilder
from shoal.shard.pace import pause, waiting
from shoal.shard.postings import PostingsBuilder, counted_of
from shoal.shard.shard import Main
from shoal.table import schema
from shoal.table.cursor import EMPTY_CURSOR, Cursor
from shoal.table.present import present_rows
from shoal.table.scanning import texts_of, vectors_of
from shoal.table.slots import slot_range
from shoal.table.table import PassageTable

# Takes row ids, uint64 [n], and their vectors, float32 [n, dimension].
Observe = Callable[[NDArray[np.uint64], NDArray[np.float32]], None]


@dataclass
class _Part:
    """A segment that is being made."""

    rows: pa.Table
    builder: SegmentBuilder
    # Sorted, to find a row's place in `rows` by.
    row_ids: NDArray[np.uint64]
    order: NDArray[np.uint32]
    # None if the table has no terms.
    postings: PostingsBuilder | None
    # Places in `rows`, in the order in which their vectors came.
    arrived: list[Positions] = field(default_factory=list)


def build_shards(
    table: PassageTable,
    codebook: Codebook | None,
    shards: Sequence[int],
    shard_count: int,
    *,
    observe: Observe = lambda row_ids, vectors: None,
) -> dict[int, Main]:
    """Make the main segments of some shards from the table's present version.

    observe: shown what goes into the segments, as it goes.
    Raises TableNotFoundError if that version was cleaned meanwhile: refresh and repeat.
    """
    runs = [slot_range(shard, shard_count) for shard in shards]
    return dict(zip(shards, build_runs(table, codebook, runs, observe=observe), strict=True))


def build_runs(
    table: PassageTable,
    codebook: Codebook | None,
    runs: Sequence[tuple[int, int]],
    *,
    observe: Observe = lambda row_ids, vectors: None,
) -> list[Main]:
    """Make a main segment of each run of slots, from the first to one before the last.

    Raises as `build_shards` does.
    """
    slots = (min(first for first, _ in runs), max(end for _, end in runs))
    fields = [schema.field_column(each) for each in table.fields]
    columns = (*COLUMNS, schema.SEQUENCE, schema.SLOT, schema.TOMBSTONE, *fields)
    batches, cursor = table.changes(EMPTY_CURSOR, columns, slots=slots)
    with waiting():
        present = present_rows(batches)
    parts = _divide(_no_rows(table) if present is None else present, codebook, table, runs)
    terms = (schema.TERMS,) if table.analyzer else ()
    pause()
    vectors = iter(table.scan(terms, slots=slots, with_vectors=True))
    while True:
        with waiting():
            batch = next(vectors, None)
        if batch is None:
            break
        for part in parts:
            _take_vectors(part, batch, table.dimension, observe)
            pause()
    mains = []
    for part in parts:
        pause()
        mains.append(_finish(part, cursor))
    return mains


def _divide(
    present: pa.Table,
    codebook: Codebook | None,
    table: PassageTable,
    runs: Sequence[tuple[int, int]],
) -> list[_Part]:
    parts = []
    for first, end in runs:
        slots = present.column(schema.SLOT).to_numpy()
        rows = present.filter(pa.array((slots >= first) & (slots < end)))
        row_ids = rows.column(schema.ROW_ID).to_numpy()
        builder = SegmentBuilder(codebook, table.dimension, rows.num_rows)
        order = np.argsort(row_ids).astype(np.uint32)
        postings = PostingsBuilder() if table.analyzer else None
        parts.append(_Part(rows, builder, row_ids, order, postings))
    return parts


def _no_rows(table: PassageTable) -> pa.Table:
    layout = schema.table_schema(table.dimension, table.fields)
    columns = (*COLUMNS, schema.SLOT, *(schema.field_column(each) for each in table.fields))
    fields = [layout.field(name) for name in columns]
    return pa.schema([*fields, pa.field(schema.ROW_ID, pa.uint64())]).empty_table()


def _take_vectors(part: _Part, batch: pa.RecordBatch, dimension: int, observe: Observe) -> None:
    row_ids = batch.column(schema.ROW_ID).to_numpy()
    places = find_rows(part.row_ids, row_ids, part.order)
    wanted = places >= 0
    if wanted.any():
        vectors = vectors_of(batch.column(schema.VECTOR).filter(pa.array(wanted)), dimension)
        part.builder.add(vectors)
        if part.postings is not None:
            part.postings.add(counted_of(batch.filter(pa.array(wanted))))
        part.arrived.append(places[wanted])
        observe(row_ids[wanted], vectors)


def _finish(part: _Part, cursor: Cursor) -> Main:
    arrived = np.concatenate([np.empty(0, dtype=np.int64), *part.arrived])
    rows = part.rows.take(pa.array(arrived))
    ids = rows.column(schema.DOCUMENT_ID).cast(pa.large_string()).combine_chunks()
    fields = encoded(field_rows(rows))
    directory = Directory(records_of(rows), ids, hash_ids(texts_of(ids)), fields=fields)
    postings = None if part.postings is None else part.postings.finish()
    return Main(part.builder.finish(), directory, cursor, postings)
