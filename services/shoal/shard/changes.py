"""What does a table tell a shard that has seen it up to some cursor?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from shoal.shard.directory import COLUMNS
from shoal.shard.pace import in_turns, pause, waiting
from shoal.shard.shard import Shard
from shoal.table import schema
from shoal.table.cursor import Cursor
from shoal.table.present import latest_mask
from shoal.table.scanning import SPARING, SWIFT, Reading
from shoal.table.slots import shard_of, slot_range
from shoal.table.table import PassageTable

_COLUMNS: Final = (*COLUMNS, schema.SEQUENCE, schema.SLOT, schema.TOMBSTONE, schema.VECTOR)

# Documents that a shard takes at once in the background: some milliseconds.
_DOCUMENTS_AT_ONCE: Final = 1024


def read_changes(
    table: PassageTable,
    cursor: Cursor,
    shards: Sequence[tuple[int, int]],
    reading: Reading = SWIFT,
) -> tuple[pa.Table | None, Cursor]:
    """Read what came since the cursor: of each document, the rows of its highest sequence.

    shards: numbers of the shards that it is read for, each with the number of shards that there
    are. None: there is nothing, and the new cursor holds all the same.
    """
    bounds = [slot_range(number, shard_count) for number, shard_count in shards]
    slots = (min(first for first, _ in bounds), max(end for _, end in bounds))
    terms = (schema.TERMS,) if table.analyzer else ()
    columns = (*_COLUMNS, *terms, *(schema.field_column(each) for each in table.fields))
    with waiting():
        batches, reached = table.changes(cursor, columns, slots=slots, reading=reading)
    held_batches = []
    while True:
        with waiting():
            batch = next(batches, None)
        if batch is None:
            break
        held_batches.append(batch)
        pause()
    if not held_batches:
        return None, reached
    rows = pa.Table.from_batches(held_batches)
    latest = latest_mask(rows.column(schema.DOCUMENT_ID), rows.column(schema.SEQUENCE).to_numpy())
    # By row id: one tail, whatever order the rows were read in.
    order = np.argsort(rows.column(schema.ROW_ID).to_numpy()[latest])
    return rows.filter(pa.array(latest)).take(pa.array(order)), reached


def apply_changes(
    shard: Shard, number: int, shard_count: int, rows: pa.Table | None, reached: Cursor
) -> None:
    """Have a shard take what is its own of the rows that were read."""
    if rows is not None:
        slots = rows.column(schema.SLOT).to_numpy()
        mine = shard_of(slots, shard_count) == number
        rows = rows if mine.all() else rows.filter(pa.array(mine))
    shard.apply(rows, reached)


def catch_up(table: PassageTable, shard: Shard, number: int, shard_count: int) -> None:
    """Bring a shard that nobody follows with yet to the table's present state.

    A shard that lacks deletions which the table has forgotten is left as it is: it has to be made
    anew, and whoever follows sees to that.
    """
    with waiting():
        table.refresh()
    cursor = shard.view.cursor
    if table.trimmed.passed(cursor.sequence, slot_range(number, shard_count)):
        return
    # Some hundred rows come in as many fragments as there were writes, and Lance would take every
    # core for them.
    reading = SPARING if in_turns() else SWIFT
    rows, reached = read_changes(table, cursor, [(number, shard_count)], reading)
    # Nobody looks at the shard yet: where it stands is said when all of them are in it.
    for piece in () if rows is None else _pieces(rows):
        apply_changes(shard, number, shard_count, piece, cursor)
        pause()
    apply_changes(shard, number, shard_count, None, reached)


def _pieces(rows: pa.Table) -> Iterator[pa.Table]:
    """Divide rows so that those of a document stay together."""
    ids = rows.column(schema.DOCUMENT_ID).combine_chunks().dictionary_encode().indices
    pieces = ids.to_numpy(zero_copy_only=True) // _DOCUMENTS_AT_ONCE
    for piece in range(int(pieces.max(initial=-1)) + 1):
        yield rows.filter(pa.array(pieces == piece))
