"""How do the vectors that a model has left in files come into the table?

In turns, each of which fills the rows of one file of the table, or of a few small ones, and takes a
bounded share of the one thread for maintenance: what other indexes wait for is done in between. A
file of the table is written again once, unless its vectors are more than a turn may hold. A block
goes as soon as all of its rows are filled, or gone; what a kill leaves is taken once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.table import PassageTable
from shoal.table.vector_blocks import read_vectors, rows_by_block

# Vectors that a turn holds in memory; a file of the table that gets more is written again for each.
TURN_BYTES: Final = 256 << 20

_Ids = NDArray[np.uint64]


class Adoption:
    """Takes the blocks of one folder into a table. All methods block."""

    def __init__(self, table: PassageTable, model: str, folder: Path) -> None:
        """model: `name@fingerprint`, that has left the blocks in the folder."""
        self._table, self._model = table, model
        self._blocks: dict[Path, _Ids] = dict(rows_by_block(folder))
        self.adopted = 0
        """Rows that got their vectors."""

    def turn(self) -> bool:
        """Fill some rows. False once nothing is left to be filled."""
        dimension = {each.model: each.dimension for each in self._table.models}.get(self._model)
        if not self._blocks or dimension is None:
            return False
        held = np.unique(np.concatenate(list(self._blocks.values())))
        chosen = self._table.fillable(held, max(1, TURN_BYTES // (4 * dimension)))
        row_ids, vectors = read_vectors(_with_any(self._blocks, chosen), chosen, dimension)
        self.adopted += self._table.fill(self._model, row_ids, vectors)
        for path, rest in list(self._blocks.items()):
            # Where nothing was chosen, what is left is of rows that are gone.
            rest = np.setdiff1d(rest, chosen) if len(chosen) else rest[:0]
            self._blocks[path] = rest
            if len(rest) == 0:
                path.unlink(missing_ok=True)
                del self._blocks[path]
        return bool(self._blocks)

    def missing(self) -> int:
        """Passages that have no vector of the model yet."""
        self._table.refresh()
        return len(self._table.missing(self._model))


def _with_any(blocks: Mapping[Path, _Ids], row_ids: _Ids) -> list[Path]:
    return [path for path, rows in blocks.items() if np.isin(rows, row_ids).any()]
