"""Which rows match a filter? Whole columns at a time, by Arrow's kernels.

Columns of strings are dictionary-encoded, or plain: of the former each distinct string is looked
at once. The result of every term has no nulls: a term about an absent value is false.
"""

from __future__ import annotations

from typing import Any as Untyped
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from shoal.filters.expression import All, Any, Compare, Filter, Has, Holds, Not, OneOf
from shoal.filters.fields import Field, Kind, arrow_type

# Arrow is untyped.
_Array = Untyped

_KERNELS: Final = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def evaluate(filter_: Filter, rows: pa.RecordBatch) -> NDArray[np.bool_]:
    """Mark the rows that match.

    rows: a column for each field, by its name. Raises KeyError if it lacks one.
    """
    marks: NDArray[np.bool_] = _marks(filter_, rows).to_numpy(zero_copy_only=False)
    return marks


def _marks(filter_: Filter, rows: pa.RecordBatch) -> _Array:
    match filter_:
        case All(parts):
            return _folded(pc.and_, parts, rows)
        case Any(parts):
            return _folded(pc.or_, parts, rows)
        case Not(part):
            return pc.invert(_marks(part, rows))
        case Has(field):
            return rows.column(field.name).is_valid()
        case Compare(field, operator, value):
            kernel = _KERNELS[operator]
            return _of_values(
                rows.column(field.name), lambda each: kernel(each, _scalar(value, field))
            )
        case OneOf(field, values):
            return _of_values(rows.column(field.name), lambda each: _listed(each, values, field))
        case Holds(field, value):
            return _holding(rows.column(field.name), value)


def _folded(kernel: Untyped, parts: tuple[Filter, ...], rows: pa.RecordBatch) -> _Array:
    marks = _marks(parts[0], rows)
    for part in parts[1:]:
        marks = kernel(marks, _marks(part, rows))
    return marks


def _scalar(value: Untyped, field: Field) -> _Array:
    if isinstance(value, float):
        return pa.scalar(value, pa.float64())
    return pa.scalar(value, arrow_type(field.kind))


def _listed(column: _Array, values: tuple[Untyped, ...], field: Field) -> _Array:
    if field.kind is Kind.INTEGER:
        # No integer is a number with a fraction.
        values = tuple(each for each in values if isinstance(each, int))
    known = pa.array(values, arrow_type(field.kind))
    return pc.and_(pc.is_in(column, value_set=known), column.is_valid())


def _of_values(column: _Array, test: Untyped) -> _Array:
    if isinstance(column, pa.DictionaryArray):
        return test(column.dictionary).take(column.indices).fill_null(False)
    return test(column).fill_null(False)


def _holding(column: _Array, value: str) -> _Array:
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    hits = _of_values(column.flatten(), lambda each: pc.equal(each, value))
    # How many hits lie before each place: a list has one if there are more at its end.
    before = np.concatenate([[0], np.cumsum(hits.to_numpy(zero_copy_only=False))])
    ends = np.cumsum(lengths)
    return pa.array(before[ends] > before[ends - lengths])
