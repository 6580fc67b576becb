"""How do rows that are there get the vectors of another model?

Lance writes the column of a fragment anew, in a file of its own, and leaves the fragment's other
files and the rows' ids as they are. So a model's vectors are a part of their rows from then on: a
follower reads them with the rows, a purge removes them with the rows, and a snapshot copies them
with the table, none of which has to know of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from shoal.table import durability, schema

_Dataset = Any


def fill(
    root: Path | None,
    dataset: _Dataset,
    column: schema.ModelVectors,
    row_ids: NDArray[np.uint64],
    vectors: NDArray[np.float32],
    commit: Callable[[Any], None],
) -> int:
    """Write vectors into the rows of some ids, a commit for each fragment; returns how many rows.

    commit: commits an operation of Lance's on top of what has been appended. The files of a commit
    are synced before it.
    """
    order = np.argsort(row_ids)
    row_ids, vectors = row_ids[order], vectors[order]
    filled = 0
    for fragment, held, known in _fragments_of(dataset, row_ids):
        at = np.searchsorted(row_ids, held)
        before = {file.path for file in fragment.metadata.files}
        rows = pa.table(
            {
                schema.ROW_ID: pa.array(held[known], pa.uint64()),
                column.column: pa.FixedSizeListArray.from_arrays(
                    pa.array(vectors[at[known]].reshape(-1)), column.dimension
                ),
            }
        )
        updated, fields = fragment.update_columns(rows)
        if root is not None:
            written = [file.path for file in updated.files if file.path not in before]
            durability.sync_data(root, written)
        commit(
            lance.LanceOperation.Update(
                updated_fragments=[updated],
                fields_modified=fields,
                update_mode="rewrite_columns",
            )
        )
        filled += int(known.sum())
    return filled


def choose(dataset: _Dataset, row_ids: NDArray[np.uint64], most: int) -> NDArray[np.uint64]:
    """Of some rows' ids, ascending, those of as many fragments as have up to `most` together.

    Of a fragment that has more by itself, `most`. Empty if no fragment has any.
    """
    chosen: list[NDArray[np.uint64]] = []
    room = most
    for _, held, known in _fragments_of(dataset, row_ids):
        found = held[known]
        if len(found) <= room:
            chosen.append(found)
            room -= len(found)
        elif not chosen:
            return np.sort(found)[:most]
        if room == 0:
            break
    return np.sort(np.concatenate(chosen)) if chosen else row_ids[:0]


def _fragments_of(
    dataset: _Dataset, row_ids: NDArray[np.uint64]
) -> Iterator[tuple[Any, NDArray[np.uint64], NDArray[np.bool_]]]:
    """The fragments that have some rows: its ids of each, uint64 [n], and which are among them.

    row_ids: ascending.
    """
    for fragment in dataset.get_fragments():
        held = fragment.to_table(columns=[], with_row_id=True)[schema.ROW_ID].to_numpy()
        at = np.searchsorted(row_ids, held)
        known = at < len(row_ids)
        known[known] = row_ids[at[known]] == held[known]
        if known.any():
            yield fragment, held, known
