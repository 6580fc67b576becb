"""How does a message read as JSON?

The documented shape of everything that `--json` prints of a message:

- names are the protos' own, and every field is there; one that is unset is null;
- integers are numbers, also those of 64 bits, which protobuf's own JSON makes strings of;
- an enum is its name without the type's prefix: `IVF_PQ`;
- a duration is in milliseconds, and its name says so: `total` becomes `total_ms`;
- bytes are hexadecimal, as sha256sum prints them; times are RFC 3339.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp


def as_plain(message: Message) -> dict[str, Any]:
    """What a message holds, as JSON has it."""
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        kind = field.message_type.full_name if field.message_type is not None else ""
        name = f"{field.name}_ms" if kind == Duration.DESCRIPTOR.full_name else field.name
        value = getattr(message, field.name)
        if field.is_repeated:
            plain[name] = [_value(field, each) for each in value]
        elif field.has_presence and not message.HasField(field.name):
            plain[name] = None
        else:
            plain[name] = _value(field, value)
    return plain


def enum_name(enum: EnumDescriptor, number: int) -> str:
    """An enum's value without the type's prefix; the number, if a newer peer invented it."""
    known = enum.values_by_number.get(number)
    return str(number) if known is None else known.name.removeprefix(_prefix(enum))


def milliseconds(duration: Duration) -> float:
    """A duration in milliseconds, to the microsecond."""
    return round(duration.ToNanoseconds() / 1e6, 3)


def _prefix(enum: EnumDescriptor) -> str:
    # SearchKind -> SEARCH_KIND_: buf lint holds the protos to it.
    words = "".join(f"_{letter}" if letter.isupper() else letter for letter in enum.name)
    return words.lstrip("_").upper() + "_"


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        convert = _OF_KIND.get(field.message_type.full_name)
        return as_plain(value) if convert is None else convert(value)
    if field.enum_type is not None:
        return enum_name(field.enum_type, value)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return value.hex()
    if field.type == FieldDescriptor.TYPE_FLOAT:
        return float(f"{value:.7g}")  # All that 32 bits hold; the rest is noise of the conversion.
    return value


def _struct(struct: Struct) -> Any:
    return _whole_numbers(MessageToDict(struct))


def _whole_numbers(value: Any) -> Any:
    """Numbers as people wrote them: a Struct has floating point only, and makes 2016 a 2016.0."""
    if isinstance(value, dict):
        return {key: _whole_numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _time(time: Timestamp) -> str:
    return time.ToJsonString()


_OF_KIND: Final[dict[str, Callable[[Any], Any]]] = {
    Duration.DESCRIPTOR.full_name: milliseconds,
    Timestamp.DESCRIPTOR.full_name: _time,
    Struct.DESCRIPTOR.full_name: _struct,
}
