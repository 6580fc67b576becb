"""Which fields of the documents' metadata does an index declare, and what are their values?"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import pyarrow as pa
from google.protobuf.timestamp_pb2 import Timestamp
from shoal.rpc.errors import InvalidFieldError
from shoal.v1.indexes_pb2 import FieldType, MetadataField

MAX_FIELDS: Final = 64
MAX_STRING_BYTES: Final = 4096
MAX_STRINGS: Final = 1000
# The whole numbers that a double holds, each as itself.
MAX_INTEGER: Final = 2**53

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
# Of the Common Expression Language: they are no names in it, now or later.
_RESERVED: Final = frozenset(
    {"as", "break", "const", "continue", "else", "false", "for", "function", "if", "import", "in"}
    | {"let", "loop", "namespace", "null", "package", "return", "true", "var", "void", "while"}
)


class Kind(StrEnum):
    """What the values of a field are."""

    STRING = "string"
    INTEGER = "integer"
    FLOAT = "float"
    BOOLEAN = "boolean"
    TIMESTAMP = "timestamp"
    STRINGS = "strings"


_KINDS: Final = {
    FieldType.FIELD_TYPE_STRING: Kind.STRING,
    FieldType.FIELD_TYPE_INTEGER: Kind.INTEGER,
    FieldType.FIELD_TYPE_FLOAT: Kind.FLOAT,
    FieldType.FIELD_TYPE_BOOLEAN: Kind.BOOLEAN,
    FieldType.FIELD_TYPE_TIMESTAMP: Kind.TIMESTAMP,
    FieldType.FIELD_TYPE_STRINGS: Kind.STRINGS,
}
_TYPES: Final = {kind: type_ for type_, kind in _KINDS.items()}
_ARROW: Final[dict[Kind, Any]] = {
    Kind.STRING: pa.string(),
    Kind.INTEGER: pa.int64(),
    Kind.FLOAT: pa.float64(),
    Kind.BOOLEAN: pa.bool_(),
    Kind.TIMESTAMP: pa.timestamp("us", tz="UTC"),
    Kind.STRINGS: pa.list_(pa.string()),
}


@dataclass(frozen=True, slots=True)
class Field:
    """A field that searches can filter by."""

    name: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.name}:{self.kind}"


# A value as it is stored: a timestamp is microseconds since 1970, UTC. None: absent.
Value = str | int | float | bool | Sequence[str] | None


def arrow_type(kind: Kind) -> Any:
    """The type of a field's column in the table: each kind has its own."""
    return _ARROW[kind]


def kind_of(type_: Any) -> Kind:
    """The kind that a column of the table holds. Raises ValueError for one of no kind."""
    for kind, arrow in _ARROW.items():
        # The name of a list's item is Lance's own.
        listed = kind is Kind.STRINGS and pa.types.is_list(type_)
        if type_.equals(arrow) or (listed and type_.value_type.equals(pa.string())):
            return kind
    raise ValueError(f"no field is stored as {type_}")


def read_fields(messages: Iterable[MetadataField]) -> tuple[Field, ...]:
    """Read fields that were declared before, and checked then."""
    return tuple(Field(each.name, _KINDS[each.type]) for each in messages)


def field_messages(fields: Iterable[Field]) -> list[MetadataField]:
    """Fields as messages."""
    return [MetadataField(name=each.name, type=_TYPES[each.kind]) for each in fields]


def check_fields(messages: Sequence[MetadataField], path: str = "fields") -> tuple[Field, ...]:
    """Read fields that are to be declared. Raises InvalidFieldError."""
    if len(messages) > MAX_FIELDS:
        raise InvalidFieldError(path, f"declares {len(messages)}; at most {MAX_FIELDS} are taken")
    seen: set[str] = set()
    for at, message in enumerate(messages):
        here = f"{path}[{at}]"
        if not _NAME.fullmatch(message.name) or message.name in _RESERVED:
            raise InvalidFieldError(
                f"{here}.name",
                f"{message.name!r} is no name for a field: a letter or _, then up to 62 letters, "
                "digits and _, and no word of the filter language",
            )
        # Stores differ in whether they tell cases apart.
        if message.name.lower() in seen:
            raise InvalidFieldError(
                f"{here}.name", f"{message.name!r} is declared twice, apart from case"
            )
        seen.add(message.name.lower())
        if message.type not in _KINDS:
            raise InvalidFieldError(f"{here}.type", f"is not set: one of {', '.join(Kind)}")
    return read_fields(messages)


def read_values(
    metadata: Mapping[str, Any], fields: Sequence[Field], path: str = "document.metadata"
) -> tuple[Value, ...]:
    """Read a document's values, one a field; None where it has none.

    metadata: as JSON has it. Raises InvalidFieldError naming the value that is of another type.
    """
    return tuple(_read(metadata.get(field.name), field, f"{path}.{field.name}") for field in fields)


def read_time(text: str) -> int:
    """Microseconds since 1970 of a time as of RFC 3339. Raises ValueError."""
    time = Timestamp()
    time.FromJsonString(text)
    # An offset may lead out of the years 1 to 9999, which is found out by writing it.
    time.ToJsonString()
    return time.ToMicroseconds()


def write_time(time_us: int) -> str:
    """The same as text, in UTC."""
    time = Timestamp()
    time.FromMicroseconds(time_us)
    return time.ToJsonString()


def _read(value: Any, field: Field, path: str) -> Value:
    if value is None:
        return None
    match field.kind, value:
        case (Kind.BOOLEAN, bool()):
            return value
        case (Kind.STRING, str()):
            return _string(value, path)
        case (Kind.TIMESTAMP, str()):
            return _time(value, path)
        case (Kind.STRINGS, list()):
            return _strings(value, path)
        case (Kind.INTEGER | Kind.FLOAT, int() | float()) if not isinstance(value, bool):
            return _number(value, field.kind, path)
    raise InvalidFieldError(path, f"is {_shown(value)}, and the field takes {_WANTED[field.kind]}")


_WANTED: Final = {
    Kind.STRING: "a string",
    Kind.INTEGER: "a whole number within +-2^53",
    Kind.FLOAT: "a finite number",
    Kind.BOOLEAN: "true or false",
    Kind.TIMESTAMP: "a string with a time as of RFC 3339, such as 2024-05-01T12:00:00Z",
    Kind.STRINGS: "a list of strings",
}


def _number(value: int | float, kind: Kind, path: str) -> int | float:
    if kind is Kind.FLOAT and math.isfinite(value):
        return float(value)
    if kind is Kind.INTEGER and abs(value) <= MAX_INTEGER and value == int(value):
        return int(value)
    raise InvalidFieldError(path, f"is {_shown(value)}, and the field takes {_WANTED[kind]}")


def _string(value: str, path: str) -> str:
    size_bytes = len(value.encode())
    if size_bytes > MAX_STRING_BYTES:
        raise InvalidFieldError(
            path, f"is {size_bytes:,} bytes; at most {MAX_STRING_BYTES:,} can be filtered by"
        )
    return value


def _strings(value: list[Any], path: str) -> list[str]:
    if len(value) > MAX_STRINGS:
        raise InvalidFieldError(
            path, f"holds {len(value):,}; at most {MAX_STRINGS:,} strings can be filtered by"
        )
    for at, each in enumerate(value):
        if not isinstance(each, str):
            raise InvalidFieldError(
                f"{path}[{at}]", f"is {_shown(each)}, and the field takes a list of strings"
            )
        _string(each, f"{path}[{at}]")
    return value


def _time(value: str, path: str) -> int:
    try:
        return read_time(value)
    except ValueError:
        raise InvalidFieldError(
            path, f"is {_shown(value)}, and the field takes {_WANTED[Kind.TIMESTAMP]}"
        ) from None


def _shown(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return f"the string {value[:40]!r}"
        case list():
            return "a list"
        case dict():
            return "an object"
    return f"the number {value:g}" if isinstance(value, float) else f"the number {value}"
