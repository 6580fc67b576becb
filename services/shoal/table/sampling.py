"""Which passages stand for all of a table?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from shoal.table import schema
from shoal.table.table import PassageTable, vectors_of


class PassageSample(NamedTuple):
    """Passages that were drawn."""

    vectors: NDArray[np.float32]
    """float32 [n, dimension]"""
    document_ids: list[str]
    texts: list[str]


def sample_passages(table: PassageTable, count: int, seed: int) -> PassageSample:
    """Draw up to `count` rows evenly, superseded ones among them. Blocks.

    Reads the row ids of the whole table, 8 bytes a row.
    """
    parts = [batch.column(schema.ROW_ID).to_numpy() for batch in table.scan((schema.TOMBSTONE,))]
    row_ids = np.concatenate(parts) if parts else np.empty(0, np.uint64)
    random = np.random.default_rng(seed)
    drawn = random.permutation(len(row_ids))[:count]
    rows = table.take(np.sort(row_ids[drawn]), (schema.DOCUMENT_ID, schema.TEXT, schema.VECTOR))
    rows = rows.filter(rows[schema.VECTOR].is_valid())
    vectors = vectors_of(rows[schema.VECTOR], table.dimension) if rows.num_rows else None
    return PassageSample(
        np.empty((0, table.dimension), np.float32) if vectors is None else vectors,
        rows[schema.DOCUMENT_ID].to_pylist(),
        [text or "" for text in rows[schema.TEXT].to_pylist()],
    )
