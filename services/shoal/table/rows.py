"""How do operations on documents become rows?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from shoal.filters.fields import Field, Value
from shoal.table import schema
from shoal.table.slots import slot_of


@dataclass(frozen=True, slots=True)
class PassageSpan:
    """A passage: its text, and where it stands in the document's, in code points."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class DocumentRows:
    """A document to write, which replaces the one that has its id."""

    document_id: str
    title: str
    # A JSON object, or empty.
    metadata: str
    content_hash: bytes
    # Microseconds since 1970, UTC.
    created_at_us: int
    # One or more, which cover the document's text.
    passages: Sequence[PassageSpan]
    # Unit vectors: float32 [passages, dimension]. None: the model that the table was made with is
    # not asked any more.
    vectors: NDArray[np.float32] | None
    # Microseconds since 1970, UTC; None means never.
    expires_at_us: int | None = None
    # One for each declared field, None where the document does not have it.
    values: Sequence[Value] = ()
    # The terms of each passage, as `pack_terms` packs them; empty if they are not known.
    terms: Sequence[bytes] = ()
    # Unit vectors of other models, by model: float32 [passages, dimension of the model].
    further: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A document to delete."""

    document_id: str


Operation = DocumentRows | Tombstone


def build_batch(
    operations: Sequence[Operation],
    *,
    first_sequence: int,
    updated_at_us: int,
    dimension: int,
    fields: Sequence[Field] = (),
    models: Sequence[schema.ModelVectors] = (),
) -> pa.RecordBatch:
    """Make the rows of operations, which get sequences from `first_sequence` upwards, one each.

    fields: those that the table declares; every document has as many values. models: that the table
    has vectors of beside its own; a document without vectors of one has nulls there.
    """
    layout = schema.table_schema(dimension, fields, models)
    apart = {schema.VECTOR, schema.UPDATED_AT, *(each.column for each in models)}
    absent = (None,) * len(fields)
    columns: dict[str, list[Any]] = {field.name: [] for field in layout if field.name not in apart}
    appenders = [column.append for column in columns.values()]
    vectors: list[NDArray[np.float32] | None] = []
    for sequence, operation in enumerate(operations, first_sequence):
        slot = slot_of(operation.document_id)
        if isinstance(operation, Tombstone):
            _append(
                appenders, (sequence, operation.document_id, 0, slot, True, *(None,) * 9, *absent)
            )
            vectors.append(None)
            continue
        if operation.vectors is not None:
            assert operation.vectors.shape == (len(operation.passages), dimension)
        vectors.append(operation.vectors)
        for ordinal, passage in enumerate(operation.passages):
            row = (
                sequence,
                operation.document_id,
                ordinal,
                slot,
                False,
                operation.title,
                passage.text,
                passage.start,
                passage.end,
                operation.metadata,
                operation.content_hash,
                operation.created_at_us,
                operation.terms[ordinal] if operation.terms else None,
                operation.expires_at_us,
                *operation.values,
            )
            _append(appenders, row)
    row_count = len(columns[schema.SEQUENCE])
    arrays = {name: pa.array(values, layout.field(name).type) for name, values in columns.items()}
    arrays[schema.UPDATED_AT] = pa.array(np.full(row_count, updated_at_us, dtype=np.int64)).cast(
        schema.TIMESTAMP
    )
    counts = [
        1 if isinstance(operation, Tombstone) else len(operation.passages)
        for operation in operations
    ]
    arrays[schema.VECTOR] = _vector_array(vectors, counts, dimension)
    for each in models:
        theirs = [
            operation.further.get(each.model) if isinstance(operation, DocumentRows) else None
            for operation in operations
        ]
        arrays[each.column] = _vector_array(theirs, counts, each.dimension)
    return pa.RecordBatch.from_arrays([arrays[name] for name in layout.names], schema=layout)


def _append(appenders: Sequence[Any], row: Sequence[Any]) -> None:
    for append, value in zip(appenders, row, strict=True):
        append(value)


def _vector_array(
    vectors: Sequence[NDArray[np.float32] | None], counts: Sequence[int], dimension: int
) -> pa.FixedSizeListArray:
    """Put vectors together; a None becomes null rows. counts: rows of each."""
    blocks = [
        np.zeros((count, dimension), dtype=np.float32) if block is None else block
        for block, count in zip(vectors, counts, strict=True)
    ]
    flat = np.concatenate(blocks) if blocks else np.empty((0, dimension), dtype=np.float32)
    nulls = np.concatenate(
        [np.full(len(block), vector is None) for vector, block in zip(vectors, blocks, strict=True)]
        or [np.empty(0, dtype=bool)]
    )
    return pa.FixedSizeListArray.from_arrays(
        pa.array(flat.reshape(-1)), dimension, mask=pa.array(nulls) if nulls.any() else None
    )
