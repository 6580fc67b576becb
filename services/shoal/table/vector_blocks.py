"""Where do the vectors of another model wait until the table takes them?

In small files of a folder beside the table, each with some rows' ids and vectors. A file is
written as a whole or not at all, so whatever was encoded before a kill is found again, and a build
that goes on encodes what no file has. A file that holds the vector of a row which a purge took away
is removed: whoever writes one looks at the table after that, and a purge looks at the files after
it has changed the table, so that one of the two sees the other.
"""

from __future__ import annotations

import contextlib
import io
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.table import durability
from shoal.table.errors import storage_errors
from shoal.table.table import PassageTable

_SUFFIX: Final = ".npz"
# A step that runs has a file in place within moments; one that was killed never has.
_ABANDONED_S: Final = 60.0
# What reading a file ends with that is gone, or is not what was written.
_UNREADABLE: Final = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Block:
    """Vectors of some rows."""

    path: Path
    # uint64 [n]
    row_ids: NDArray[np.uint64]
    # float32 [n, dimension]
    vectors: NDArray[np.float32]


def write_block(
    folder: Path, row_ids: NDArray[np.uint64], vectors: NDArray[np.float32], table: PassageTable
) -> None:
    """Leave the vectors of some rows, one or more; durable on return. Raises StorageFullError.

    table: that the rows were read from. If one of them has left it meanwhile, nothing is left.
    """
    path = folder / f"{int(row_ids[0]):020}-{len(row_ids)}{_SUFFIX}"
    contents = io.BytesIO()
    np.savez(contents, row_ids=row_ids, vectors=vectors)
    with storage_errors(str(path)):
        folder.mkdir(parents=True, exist_ok=True)
        durability.write_atomically(path, contents.getvalue())
    _remove_if_outdated(path, row_ids, table)


def blocks_in(folder: Path) -> Iterator[Block]:
    """What was left, by row id. One that is gone, or cannot be read, is passed over."""
    for path in sorted(folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else ():
        try:
            with path.open("rb") as file, np.load(file) as stored:
                block = Block(path, stored["row_ids"], stored["vectors"])
        except _UNREADABLE:
            path.unlink(missing_ok=True)  # It is encoded again.
        else:
            yield block


def held_rows(folder: Path) -> NDArray[np.uint64]:
    """Ids of the rows that vectors were left of, ascending: uint64 [n]."""
    found = [np.empty(0, np.uint64)]
    for path in folder.glob(f"*{_SUFFIX}") if folder.is_dir() else ():
        try:
            with path.open("rb") as file, np.load(file) as stored:
                found.append(stored["row_ids"])
        except _UNREADABLE:
            continue
    return np.unique(np.concatenate(found))


def drop_outdated_blocks(folder: Path, table: PassageTable) -> None:
    """Remove the files that hold a vector of a row which the table has not any more."""
    for model in folder.iterdir() if folder.is_dir() else ():
        for block in blocks_in(model):
            _remove_if_outdated(block.path, block.row_ids, table)
        for scratch in model.glob(f".*{_SUFFIX}.new"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - scratch.stat().st_mtime > _ABANDONED_S:
                    scratch.unlink()


def _remove_if_outdated(path: Path, row_ids: NDArray[np.uint64], table: PassageTable) -> None:
    table.refresh()
    if table.take(row_ids, ()).num_rows < len(row_ids):
        path.unlink(missing_ok=True)
