"""What is left of a log once superseded and deleted rows are dropped?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from shoal.table import schema


def latest_mask(
    document_ids: pa.Array | pa.ChunkedArray, sequences: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Mark the rows of each document's highest sequence, tombstones among them.

    Rows may come in any order. About 0.2 s for a million rows.
    """
    if len(document_ids) == 0:
        return np.zeros(0, dtype=bool)
    if isinstance(document_ids, pa.ChunkedArray):
        document_ids = document_ids.combine_chunks()
    codes = document_ids.dictionary_encode().indices.to_numpy(zero_copy_only=True)
    highest = np.full(int(codes.max()) + 1, -1, dtype=np.int64)
    np.maximum.at(highest, codes, sequences)
    return cast("NDArray[np.bool_]", sequences == highest[codes])


def present_mask(rows: pa.Table | pa.RecordBatch) -> NDArray[np.bool_]:
    """Mark the rows that make up the present state.

    rows: with the columns `document_id`, `sequence` and `tombstone`.
    """
    sequences = rows.column(schema.SEQUENCE).to_numpy()
    latest = latest_mask(rows.column(schema.DOCUMENT_ID), sequences)
    column = rows.column(schema.TOMBSTONE)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    deleted: NDArray[np.bool_] = column.to_numpy(zero_copy_only=False)
    return latest & ~deleted


def present_rows(batches: Iterable[pa.RecordBatch]) -> pa.Table | None:
    """Gather batches of a log and keep their present state. None if there was no batch."""
    gathered = list(batches)
    if not gathered:
        return None
    table = pa.Table.from_batches(gathered)
    return table.filter(pa.array(present_mask(table)))
