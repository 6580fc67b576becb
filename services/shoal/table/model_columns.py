"""Which models beside its own does a table have vectors of, and how do they come and go?"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from shoal.table import durability, filling, schema
from shoal.table.errors import CommitConflictError, storage_errors
from shoal.table.present import present_rows
from shoal.table.scanning import fragment_ids, read_rows

# Attempts at a change that another one of the same files has come before: columns come and go a few
# times in the life of an index.
_ATTEMPTS: Final = 5

_Dataset = Any


class ModelColumns:
    """The part of a table that is about models."""

    uri: str
    _dataset: _Dataset
    _appending: threading.Lock

    def refresh(self) -> int:
        """As `PassageTable.refresh`."""
        raise NotImplementedError

    def _private(self) -> _Dataset:
        raise NotImplementedError

    def _settle(self, private: _Dataset) -> None:
        raise NotImplementedError

    def _commit(self, operation: Any) -> None:
        raise NotImplementedError

    @property
    def models(self) -> tuple[schema.ModelVectors, ...]:
        """Models that it has vectors of at this version, beside the one that it was made with."""
        return schema.models_of(self._dataset.schema)

    def add_model(self, added: schema.ModelVectors) -> None:
        """Make room for the vectors of a model, null in every row; durable on return."""
        if added not in self.models:
            self._reshape(lambda dataset: dataset.add_columns([added.field]))

    def drop_model(self, model: str) -> None:
        """Remove the vectors of a model. Their bytes go as files are written again."""
        dropped = [each.column for each in self.models if each.model == model]
        if dropped:
            self._reshape(lambda dataset: dataset.drop_columns(dropped))

    def _reshape(self, change: Callable[[_Dataset], None]) -> None:
        """Change the columns; again, if a compaction has ended in between."""

        def reshape() -> None:
            with self._appending:
                private = self._private()
                change(private)
                self._settle(private)

        self._repeat(reshape)

    def _repeat(self, work: Callable[[], None]) -> None:
        """Do something to the latest version; again, if it has changed under the work meanwhile.

        A purge or a compaction may meet a change of columns, and that one of them. Raises what the
        work does; CommitConflictError once it has met too many.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            self.refresh()
            try:
                with storage_errors(self.uri):
                    work()
                return
            except CommitConflictError:
                if attempt == _ATTEMPTS:
                    raise

    def fill(self, model: str, row_ids: NDArray[np.uint64], vectors: NDArray[np.float32]) -> int:
        """Give rows their vectors of a model; returns how many rows. Durable on return.

        vectors: float32 [rows, dimension of the model]. Rows that are gone are left out. Appends
        may go on meanwhile, compactions not.
        """
        filled = 0

        def fill() -> None:
            nonlocal filled
            (column,) = [each for each in self.models if each.model == model]
            root = durability.local_path(self.uri)
            filled = filling.fill(root, self._dataset, column, row_ids, vectors, self._commit)

        self._repeat(fill)
        return filled

    def fillable(self, row_ids: NDArray[np.uint64], most: int) -> NDArray[np.uint64]:
        """Choose which of some rows are to be filled together: uint64 [n], ascending.

        As many as are in one file or a few, up to `most`: a file is written again for each `fill`
        that has rows of it. Empty if the table has none of them.
        """
        with storage_errors(self.uri):
            self.refresh()
            return filling.choose(self._dataset, np.sort(row_ids), most)

    def missing(self, model: str) -> NDArray[np.uint64]:
        """Ids of present passages without a vector of a model, ascending: uint64 [n].

        Reads the ids of all documents, and that column.
        """
        columns = (schema.DOCUMENT_ID, schema.SEQUENCE, schema.TOMBSTONE)
        dataset = self._dataset
        (column,) = [each.column for each in self.models if each.model == model]
        conditions = [f"{column} IS NULL", f"NOT {schema.TOMBSTONE}"]
        fragments = fragment_ids(dataset)
        without = read_rows(self.uri, dataset, fragments, columns=(), conditions=conditions)
        found = [np.empty(0, np.uint64)]
        found += [batch.column(schema.ROW_ID).to_numpy() for batch in without]
        candidates = np.concatenate(found)
        if len(candidates) == 0:
            return candidates
        present = present_rows(read_rows(self.uri, dataset, fragments, columns=columns))
        known = candidates[:0] if present is None else present.column(schema.ROW_ID).to_numpy()
        return np.intersect1d(candidates, known)
