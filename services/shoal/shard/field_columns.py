"""What does a shard keep of its passages' declared metadata, and which of them match a filter?

Arrow columns, by position: numbers with a bitmap of which are there, strings as codes of the least
width with a dictionary, lists of strings as offsets and codes. Those of a main segment may lie in
its files, mapped. What matches is found by whole columns, once for each filter, and kept as bits:
125 kB for a million passages, for the filters that were asked last.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from shoal.filters.evaluation import evaluate
from shoal.filters.expression import Filter
from shoal.table import schema

# Filters whose matches are kept for a main segment, and for each piece of a live tail.
_KEPT: Final = 32
# Matches of a filter that are kept as numbers too, of eight bytes each.
MAX_KEPT_POSITIONS: Final = 65_536
_INDEX_TYPES: Final = (pa.int8(), pa.int16())


@dataclass(frozen=True)
class Condition:
    """A filter, and the text that it is known by."""

    text: str
    filter: Filter


class Matches:
    """The positions that match a filter, dead ones among them."""

    def __init__(self, marks: NDArray[np.bool_]) -> None:
        """marks: by position."""
        # One a position, lowest first; those past the last are zero.
        self.bits: NDArray[np.uint8] = np.packbits(marks, bitorder="little")
        self.count = int(marks.sum())
        # Matches in each inverted list; set by the first search that wants to know.
        self.list_counts: NDArray[np.int64] | None = None
        self._positions: NDArray[np.int64] | None = None

    def marks(self, count: int) -> NDArray[np.bool_]:
        """By position."""
        return np.unpackbits(self.bits, count=count, bitorder="little").astype(bool)

    def positions(self) -> NDArray[np.int64]:
        """The same as numbers, ascending. Kept if they are few; else made anew for each search."""
        if self._positions is not None:
            return self._positions
        positions = np.flatnonzero(self.marks(8 * len(self.bits)))
        if len(positions) <= MAX_KEPT_POSITIONS:
            self._positions = positions
        return positions


class FieldColumns:
    """Declared metadata of passages, by position. Never changes."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        """rows: a column for each field."""
        self.rows = rows
        # The inverted list of each position, and how many each list has; set by the first search
        # that wants to know.
        self.list_numbers: NDArray[Any] | None = None
        self.list_sizes: NDArray[np.int64] | None = None
        self._kept: OrderedDict[str, Matches] = OrderedDict()
        self._guard = threading.Lock()

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the columns take."""
        return int(self.rows.nbytes)

    def matches(self, condition: Condition) -> Matches:
        """What matches a filter. A millisecond or so for a million passages, or nothing if kept."""
        with self._guard:
            found = self._kept.get(condition.text)
            if found is not None:
                self._kept.move_to_end(condition.text)
                return found
        found = Matches(evaluate(condition.filter, self.rows))
        with self._guard:
            self._kept[condition.text] = found
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found


class TailColumns:
    """Declared metadata of a live tail. Grows; what is there stays as it is.

    In pieces, each of them at least as large as all that follow it, so that they are few, and what
    was found in the large ones is seldom found again. One thread appends; others read the first
    positions.
    """

    def __init__(self) -> None:
        """Start empty."""
        # Replaced as a whole.
        self._pieces: tuple[FieldColumns, ...] = ()

    @property
    def memory_bytes(self) -> int:
        """Bytes that the columns take."""
        return sum(each.memory_bytes for each in self._pieces)

    def append(self, rows: pa.Table) -> None:
        """Add passages at the end. rows: a column for each field."""
        pieces, last = list(self._pieces), rows
        while pieces and len(pieces[-1]) <= last.num_rows:
            last = pa.concat_tables([pa.Table.from_batches([pieces.pop().rows]), last])
        pieces.append(FieldColumns(_one_batch(last)))
        self._pieces = tuple(pieces)

    def take(self, positions: NDArray[np.int64]) -> pa.Table | None:
        """Rows at positions; None if no field is declared."""
        if not self._pieces:
            return None
        rows = pa.Table.from_batches([each.rows for each in self._pieces])
        return rows.take(pa.array(positions))

    def matches(self, condition: Condition, count: int) -> Matches:
        """What matches a filter among the first `count`."""
        marks = [each.matches(condition).marks(len(each)) for each in self._pieces]
        joined = np.concatenate([np.empty(0, dtype=bool), *marks])[:count]
        assert len(joined) == count
        return Matches(joined)


def field_rows(rows: pa.Table) -> pa.Table | None:
    """The declared fields among the table's columns, by their names; None if there are none."""
    columns = [name for name in rows.column_names if name.startswith(schema.FIELD_PREFIX)]
    if not columns:
        return None
    names = [name.removeprefix(schema.FIELD_PREFIX) for name in columns]
    return rows.select(columns).rename_columns(names)


def encoded(rows: pa.Table | None) -> FieldColumns | None:
    """Keep rows in the form that a main segment has them in."""
    if rows is None:
        return None
    columns = [_encoded(column) for column in _one_batch(rows).columns]
    return FieldColumns(pa.RecordBatch.from_arrays(columns, names=rows.column_names))


def gathered_fields(
    parts: Sequence[tuple[FieldColumns | None, NDArray[np.bool_]]], added: pa.Table | None
) -> FieldColumns | None:
    """Put the marked positions of others, one after another, and further rows together."""
    tables = [
        _plain(columns.rows.filter(pa.array(mask)))
        for columns, mask in parts
        if columns is not None
    ]
    # An empty tail has no columns.
    tables += [] if added is None or not added.num_columns else [added]
    return encoded(pa.concat_tables(tables)) if tables else None


def _plain(rows: pa.RecordBatch) -> pa.Table:
    """The same without dictionaries, which differ from part to part."""
    columns = [_decoded(column) for column in rows.columns]
    return pa.Table.from_arrays(columns, names=rows.schema.names)


def _one_batch(rows: pa.Table) -> pa.RecordBatch:
    columns = [
        column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        for column in rows.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=rows.column_names)


def _encoded(column: Any) -> Any:
    if pa.types.is_string(column.type):
        codes = column.dictionary_encode()
        # The last code of a type is never reached: it is the one behind the dictionary.
        fitting = (
            each for each in _INDEX_TYPES if len(codes.dictionary) < 2 ** (each.bit_width - 1)
        )
        type_ = next(fitting, pa.int32())
        return pa.DictionaryArray.from_arrays(codes.indices.cast(type_), codes.dictionary)
    if pa.types.is_list(column.type):
        return _list(column, _encoded(column.flatten()))
    return column


def _decoded(column: Any) -> Any:
    if isinstance(column, pa.DictionaryArray):
        return column.dictionary_decode()
    if pa.types.is_list(column.type):
        return _list(column, _decoded(column.flatten()))
    return column


def _list(column: Any, values: Any) -> Any:
    """Lists as long as those of a column, of other values."""
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(column) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    mask = column.is_null() if column.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=mask)
