"""Where is the table that Shoal serves in the benchmark?

In the cache folder, written once through `shoal.table` as the writer writes it: a document a
vector, with a short text, in commits of 10,000 rows, whose fragments are merged as the writer would
merge them after its next commit: else whoever writes to it would pay for that.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from shoal.filters.fields import Field, Value
from shoal.table import PassageTable
from shoal.table.rows import DocumentRows, PassageSpan, build_batch

from loadtest.vectors import Vectors, document_id

_COMMIT_ROWS: Final = 10_000


def ensure_table(
    vectors: Vectors,
    name: str = "table",
    fields: Sequence[Field] = (),
    values_of: Callable[[int], Sequence[Value]] = lambda row: (),
) -> Path:
    """The table of a set of vectors; written on first use, which takes about half a minute.

    name: of the table, where there are several. fields, values_of: what it declares, and what each
    row has of it.
    """
    folder = vectors.folder / f"{name}.lance"
    written, merged = vectors.folder / f"{name}.done", vectors.folder / f"{name}.merged"
    if merged.exists():
        return folder
    if not written.exists():
        if folder.exists():
            raise SystemExit(
                f"{folder} was left half-written by an interrupted run: remove {vectors.folder} "
                "and start again"
            )
        table = PassageTable.create(str(folder), vectors.chosen.dimension, fields)
        append_rows(table, vectors.rows, first=0, fields=fields, values_of=values_of)
        written.touch()
    table = PassageTable.open(str(folder))
    while table.compact():
        pass
    table.clean(0.0)
    merged.touch()
    return folder


def append_rows(
    table: PassageTable,
    rows: np.ndarray,
    first: int,
    *,
    fields: Sequence[Field] = (),
    values_of: Callable[[int], Sequence[Value]] = lambda row: (),
) -> int:
    """Append a document a vector, numbered from `first` on. Returns the row id of the first.

    Sequence numbers follow the documents' numbers, so that what is appended later is later.
    """
    dimension, first_row = rows.shape[1], table.row_count
    now_us = time.time_ns() // 1000
    for start in range(0, len(rows), _COMMIT_ROWS):
        block = np.ascontiguousarray(rows[start : start + _COMMIT_ROWS])
        documents = [
            _document(first + start + offset, block[offset : offset + 1], now_us, values_of)
            for offset in range(len(block))
        ]
        table.append(
            build_batch(
                documents,
                first_sequence=first + start + 1,
                updated_at_us=now_us,
                dimension=dimension,
                fields=fields,
            )
        )
    return first_row


def _document(
    row: int, vector: np.ndarray, now_us: int, values_of: Callable[[int], Sequence[Value]]
) -> DocumentRows:
    text = f"Passage number {row} of the benchmark."
    return DocumentRows(
        document_id=document_id(row),
        title="",
        metadata="",
        content_hash=hashlib.sha256(b"\0" + text.encode()).digest(),
        created_at_us=now_us,
        passages=[PassageSpan(0, len(text), text)],
        vectors=vector,
        values=values_of(row),
    )
