"""What does a filter say? A small tree, checked against the fields of its index.

Two filters that say the same in other spelling have one canonical text, which reads back as the
same tree: it is what travels to the shards, and what they know a filter by.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shoal.filters.fields import Field, Kind, write_time

Operator = Literal["==", "!=", "<", "<=", ">", ">="]
# Of a field's kind; a timestamp is microseconds since 1970, UTC. An integer field may be compared
# with a float.
Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class All:
    """Every one of them; none of which is an `All`."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Any:
    """At least one of them; none of which is an `Any`."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """Whatever the part says no to."""

    part: Filter


@dataclass(frozen=True, slots=True)
class Compare:
    """The field is there, and stands in this relation to a value."""

    field: Field
    operator: Operator
    value: Scalar


@dataclass(frozen=True, slots=True)
class OneOf:
    """The field is there, and is one of some values."""

    field: Field
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Holds:
    """The field, a list of strings, is there and holds one."""

    field: Field
    value: str


@dataclass(frozen=True, slots=True)
class Has:
    """The field is there; an empty list is."""

    field: Field


Filter = All | Any | Not | Compare | OneOf | Holds | Has


def joined(kind: type[All] | type[Any], parts: Sequence[Filter]) -> Filter:
    """Join parts, those within parts of the same kind too."""
    flat: list[Filter] = []
    for part in parts:
        if isinstance(part, kind):
            flat += part.parts
        else:
            flat.append(part)
    return kind(tuple(flat))


def canonical(filter_: Filter) -> str:
    """Write a filter; `parse` makes the same filter of it."""
    match filter_:
        case All(parts):
            return " && ".join(_within(part, Any) for part in parts)
        case Any(parts):
            return " || ".join(canonical(part) for part in parts)
        case Not(part):
            inner = canonical(part)
            # No deeper than the caller's own: nesting is bounded where it is read.
            return f"!{inner}" if inner.isidentifier() or isinstance(part, Has) else f"!({inner})"
        case Compare(Field(name, Kind.BOOLEAN), "==", True):
            return name
        case Compare(field, operator, value):
            return f"{field.name} {operator} {_literal(value, field)}"
        case OneOf(field, values):
            return f"{field.name} in [{', '.join(_literal(each, field) for each in values)}]"
        case Holds(field, value):
            return f"{_literal(value, field)} in {field.name}"
        case Has(field):
            return f"has({field.name})"


def _within(part: Filter, kind: type[Any]) -> str:
    text = canonical(part)
    return f"({text})" if isinstance(part, kind) else text


def _literal(value: Scalar, field: Field) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are among the language's own.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if field.kind is Kind.TIMESTAMP:
        assert isinstance(value, int)
        return f'timestamp("{write_time(value)}")'
    return repr(value)
