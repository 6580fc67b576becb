"""How are rows of a version of a table read, in bounded batches?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from shoal.table import schema
from shoal.table.errors import TableDamagedError, storage_errors

# Lance is untyped.
_Dataset = Any


class Reading(NamedTuple):
    """How much of a scan is in memory at once."""

    # Of a batch: 4,096 x 384 float32 are 6 MiB.
    batch_rows: int
    # Lance reads ahead by as many bytes, and by as many batches; its own default is 2 GiB.
    ahead_bytes: int
    ahead_batches: int


SWIFT: Final = Reading(4096, 64 << 20, 4)
# For what goes on beside searches: as swift where the system has the files in memory, and it holds
# 25 MB in place of 100 while a million vectors of 384 numbers are read.
SPARING: Final = Reading(1024, 8 << 20, 1)
# Strings that are made at once: about a millisecond.
_TEXTS_AT_ONCE: Final = 2048
# For columns of numbers.
NUMBERS: Final = SWIFT._replace(batch_rows=65_536)


def vectors_of(column: pa.Array | pa.ChunkedArray, dimension: int) -> NDArray[np.float32]:
    """Look at a column of vectors without nulls as float32 [n, dimension]."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    assert column.null_count == 0
    # `flatten` heeds the offset of a slice, which `values` does not.
    flat = column.flatten().to_numpy(zero_copy_only=True)
    return cast("NDArray[np.float32]", flat.reshape(-1, dimension))


def texts_of(column: pa.Array | pa.ChunkedArray) -> list[str]:
    """A column of strings as a list. Other threads run Python meanwhile.

    Arrow would hold the interpreter's lock until it had made all of them.
    """
    pieces = (
        column.slice(start, _TEXTS_AT_ONCE) for start in range(0, len(column), _TEXTS_AT_ONCE)
    )
    return [text for piece in pieces for text in piece.to_pylist()]


def present_columns(dataset: _Dataset, columns: Sequence[str]) -> list[str]:
    """Those of the columns that a table of an older release has."""
    names = set(dataset.schema.names)
    return [each for each in columns if each in names]


def stored_columns(uri: str, dataset: _Dataset, columns: Sequence[str], vectors: str) -> list[str]:
    """What to read for some columns: that of vectors is the column that is named so.

    Raises TableDamagedError if that one is gone.
    """
    stored = [vectors if each == schema.VECTOR else each for each in columns]
    if vectors in stored and vectors not in dataset.schema.names:
        raise TableDamagedError(uri, f"it has no vectors in {vectors} any more")
    return present_columns(dataset, stored)


def named(rows: Any, vectors: str) -> Any:
    """Rows whose column of vectors has its own name again."""
    if vectors == schema.VECTOR:
        return rows
    names = [schema.VECTOR if each == vectors else each for each in rows.schema.names]
    return rows.rename_columns(names)


def completed(rows: Any, columns: Sequence[str]) -> Any:
    """Rows with those columns that an older release does not write, as nulls."""
    fields = schema.table_schema(1)
    for at, name in enumerate(columns):
        if name not in rows.schema.names:
            field = fields.field(name)
            rows = rows.add_column(at, field, pa.nulls(rows.num_rows, field.type))
    return rows


def fragment_ids(dataset: _Dataset) -> list[int]:
    """Ids of the fragments of a version."""
    return list(dataset.fragment_ids())


def highest_sequence(uri: str, dataset: _Dataset, fragments: Sequence[int]) -> int:
    """Highest sequence in some fragments; -1 if they have no rows."""
    highest = -1
    for batch in read_rows(uri, dataset, fragments, columns=[schema.SEQUENCE], reading=NUMBERS):
        if batch.num_rows:
            highest = max(highest, pc.max(batch.column(schema.SEQUENCE)).as_py())
    return highest


def slot_conditions(slots: tuple[int, int] | None) -> list[str]:
    """Conditions for slots from the first to one before the last; none for all of them."""
    if slots is None:
        return []
    first, end = slots
    return [f"{schema.SLOT} >= {first}", f"{schema.SLOT} < {end}"]


def read_rows(
    uri: str,
    dataset: _Dataset,
    fragments: Sequence[int],
    *,
    columns: Sequence[str],
    conditions: Sequence[str] = (),
    reading: Reading = SWIFT,
    vectors: str = schema.VECTOR,
) -> Iterator[pa.RecordBatch]:
    """Read some columns; that of vectors from the column that is named so, under its own name."""
    if not fragments:
        return
    stored = stored_columns(uri, dataset, columns, vectors)
    with storage_errors(uri):
        scanner = dataset.scanner(
            columns=stored,
            filter=" AND ".join(conditions) or None,
            fragments=[dataset.get_fragment(each) for each in fragments],
            with_row_id=True,
            scan_in_order=False,
            batch_size=reading.batch_rows,
            batch_readahead=reading.ahead_batches,
            fragment_readahead=reading.ahead_batches,
            io_buffer_size=reading.ahead_bytes,
        )
        for batch in scanner.to_batches():
            yield completed(named(batch, vectors), columns)


def vector_column(uri: str, dataset: _Dataset, model: str) -> str:
    """The column of a model; empty: of the one that the table was made with."""
    if not model:
        return schema.VECTOR
    for each in schema.models_of(dataset.schema):
        if each.model == model:
            return each.column
    raise TableDamagedError(uri, f"it has no vectors of {model}")
