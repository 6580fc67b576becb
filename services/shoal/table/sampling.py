"""Which passages stand for all of a table?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from shoal.table import schema
from shoal.table.scanning import NUMBERS
from shoal.table.table import PassageTable, vectors_of


class PassageSample(NamedTuple):
    """Passages that were drawn."""

    vectors: NDArray[np.float32]
    """float32 [n, dimension]"""
    document_ids: list[str]
    texts: list[str]


def sample_passages(table: PassageTable, count: int, seed: int) -> PassageSample:
    """Draw up to `count` rows evenly, superseded ones among them. Blocks.

    Reads one small column of the whole table, a batch at a time.
    """
    random = np.random.default_rng(seed)
    row_ids, keys = np.empty(0, np.uint64), np.empty(0)
    for batch in table.scan((schema.TOMBSTONE,), reading=NUMBERS):
        # A row is kept by a random key of its own, if it is among the least.
        row_ids = np.concatenate([row_ids, batch.column(schema.ROW_ID).to_numpy()])
        keys = np.concatenate([keys, random.random(batch.num_rows)])
        least = np.argpartition(keys, count)[:count] if len(keys) > count else slice(None)
        row_ids, keys = row_ids[least], keys[least]
    rows = table.take(np.sort(row_ids), (schema.DOCUMENT_ID, schema.TEXT, schema.VECTOR))
    rows = rows.filter(rows[schema.VECTOR].is_valid())
    if rows.num_rows == 0:
        return PassageSample(np.empty((0, table.dimension), np.float32), [], [])
    return PassageSample(
        vectors_of(rows[schema.VECTOR], table.dimension),
        rows[schema.DOCUMENT_ID].to_pylist(),
        [text or "" for text in rows[schema.TEXT].to_pylist()],
    )
