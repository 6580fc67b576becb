"""Where do the vectors of another model wait until the table takes them?

In small files of a folder beside the table, each with some rows' ids and vectors. A file is
written as a whole or not at all, so whatever was encoded before a kill is found again, and a build
that goes on encodes what no file has. A file that holds the vector of a row which a purge or a
cleaning took away is written again without: whoever writes one looks at the table after that, and
they look at the files after they have changed the table, so that one of the two sees the other.
"""

from __future__ import annotations

import contextlib
import io
import time
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.table import durability, schema
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
    path = _write(folder, row_ids, vectors)
    table.refresh()
    if table.take(row_ids, ()).num_rows < len(row_ids):
        path.unlink(missing_ok=True)


def _write(folder: Path, row_ids: NDArray[np.uint64], vectors: NDArray[np.float32]) -> Path:
    path = folder / f"{int(row_ids[0]):020}-{len(row_ids)}{_SUFFIX}"
    contents = io.BytesIO()
    np.savez(contents, row_ids=row_ids, vectors=vectors)
    with storage_errors(str(path)):
        folder.mkdir(parents=True, exist_ok=True)
        durability.write_atomically(path, contents.getvalue())
    return path


def blocks_in(folder: Path) -> Iterator[Block]:
    """What was left, by row id. One that is gone, or cannot be read, is passed over."""
    for path in sorted(folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else ():
        if (block := _read(path)) is not None:
            yield block


def _read(path: Path) -> Block | None:
    try:
        with path.open("rb") as file, np.load(file) as stored:
            return Block(path, stored["row_ids"], stored["vectors"])
    except _UNREADABLE:
        path.unlink(missing_ok=True)  # It is encoded again.
        return None


def rows_by_block(folder: Path) -> Iterator[tuple[Path, NDArray[np.uint64]]]:
    """Each file that was left, by its first row's id, with the ids of its rows: uint64 [n].

    One that is gone, or cannot be read, is passed over.
    """
    for path in sorted(folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else ():
        try:
            with path.open("rb") as file, np.load(file) as stored:
                row_ids = stored["row_ids"]
        except OSError:
            continue
        except _UNREADABLE:
            path.unlink(missing_ok=True)  # It is encoded again, and may hold what is purged.
            continue
        yield path, row_ids


def held_rows(folder: Path) -> NDArray[np.uint64]:
    """Ids of the rows that vectors were left of, ascending: uint64 [n]."""
    found = [np.empty(0, np.uint64), *(row_ids for _, row_ids in rows_by_block(folder))]
    return np.unique(np.concatenate(found))


def read_vectors(
    paths: Iterable[Path], row_ids: NDArray[np.uint64], dimension: int
) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """The vectors of some rows from the files that hold them, each row once.

    Returns uint64 [n], ascending, and float32 [n, dimension]. What is in a file that is gone, or
    cannot be read, is left out.
    """
    ids: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    vectors: list[NDArray[np.float32]] = [np.empty((0, dimension), np.float32)]
    for path in paths:
        if (block := _read(path)) is not None:
            wanted = np.isin(block.row_ids, row_ids)
            ids.append(block.row_ids[wanted])
            vectors.append(block.vectors[wanted])
    found, firsts = np.unique(np.concatenate(ids), return_index=True)
    return found, np.concatenate(vectors)[firsts]


def drop_outdated_blocks(folder: Path, table: PassageTable) -> None:
    """Remove the vectors of rows which the table has not any more from all files.

    folder: of the models' folders. Reads the ids of all rows, if there are files. Raises
    StorageFullError.
    """
    for model in folder.iterdir() if folder.is_dir() else ():
        held = held_rows(model)
        if len(held):
            table.refresh()
            ids = [batch.column(schema.ROW_ID).to_numpy() for batch in table.scan(())]
            gone = np.setdiff1d(held, np.concatenate([held[:0], *ids]))
            for path, row_ids in rows_by_block(model):
                if np.isin(row_ids, gone).any():
                    _write_without(path, gone)
        for scratch in model.glob(f".*{_SUFFIX}.new"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - scratch.stat().st_mtime > _ABANDONED_S:
                    scratch.unlink()


def _write_without(path: Path, gone: NDArray[np.uint64]) -> None:
    """Keep what a file has of other rows: each row of it has cost a run of the model."""
    if (block := _read(path)) is None:
        return
    kept = ~np.isin(block.row_ids, gone)
    path.unlink(missing_ok=True)
    if kept.any():
        _write(path.parent, block.row_ids[kept], block.vectors[kept])
