"""Is a text a filter on the fields of an index, and which?"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NoReturn, cast

from shoal.filters.errors import InvalidFilterError
from shoal.filters.expression import (
    All,
    Any,
    Compare,
    Filter,
    Has,
    Holds,
    Not,
    OneOf,
    Operator,
    Scalar,
    canonical,
    joined,
)
from shoal.filters.fields import Field, Kind, read_time
from shoal.filters.syntax import parse_expression
from shoal.internal.v1.expression_pb2 import Call, Expression

MAX_FILTER_BYTES: Final = 4096
MAX_TERMS: Final = 64
MAX_LISTED: Final = 1000
# Filters that are kept parsed, by text and fields.
_KEPT: Final = 1024
# Field names that a message lists.
_MAX_NAMES: Final = 12
# Characters of a filter that a message shows.
_MAX_SHOWN: Final = 200
# What the language's integers hold.
_INTEGERS: Final = range(-(2**63), 2**63)

# Fields may be written as members of the metadata too: `metadata.lang`.
_PREFIX: Final = "metadata"
_OPERATORS: Final[dict[str, Operator]] = {
    "_==_": "==",
    "_!=_": "!=",
    "_<_": "<",
    "_<=_": "<=",
    "_>_": ">",
    "_>=_": ">=",
}
# What an operator becomes if its sides change places.
_MIRRORED: Final[dict[Operator, Operator]] = {
    "==": "==",
    "!=": "!=",
    "<": ">",
    "<=": ">=",
    ">": "<",
    ">=": "<=",
}
_JOINS: Final[dict[str, type[All] | type[Any]]] = {"_&&_": All, "_||_": Any}
_SUPPORTED: Final = (
    "filters know &&, ||, !, ==, !=, <, <=, >, >=, in, has(), parentheses, strings, numbers, true, "
    'false and timestamp("...")'
)

_LiteralKind = Literal["string", "integer", "float", "boolean", "timestamp"]


@dataclass(frozen=True, slots=True)
class _Literal:
    kind: _LiteralKind
    value: Scalar


def check_filter(text: str, fields: tuple[Field, ...]) -> str:
    """Check a caller's filter, and give its canonical text. Raises InvalidFilterError."""
    size_bytes = len(text.encode())
    if size_bytes > MAX_FILTER_BYTES:
        raise InvalidFilterError(f"has {size_bytes:,} bytes; at most {MAX_FILTER_BYTES:,} are read")
    filter_ = parse(text, fields)
    said = canonical(filter_)
    # The shards read it again, together with the filters of others: it must not fail there.
    if not _reads_as(said, filter_, fields):
        raise InvalidFilterError(f"cannot be passed on to the shards as {said[:_MAX_SHOWN]!r}")
    return said


def _reads_as(text: str, filter_: Filter, fields: tuple[Field, ...]) -> bool:
    try:
        return parse(text, fields) == filter_
    except InvalidFilterError:
        return False


@functools.lru_cache(maxsize=_KEPT)
def parse(text: str, fields: tuple[Field, ...]) -> Filter:
    """Read a filter on some fields. Raises InvalidFilterError. 0.2 ms, or nothing if it was read.

    A canonical text may be a little longer than the caller's, so that its size is not looked at.
    """
    parsed = parse_expression(text)
    return _Reader(fields, parsed.source_info.positions).filter(parsed.expr)


class _Reader:
    """Reads one expression, counting its terms."""

    def __init__(self, fields: Sequence[Field], positions: object) -> None:
        self._fields = {field.name: field for field in fields}
        self._positions = cast("dict[int, int]", positions)
        self._terms = 0

    def filter(self, node: Expression) -> Filter:
        """Read what is true or false."""
        match node.WhichOneof("expr_kind"):
            case "call_expr":
                return self._call(node, node.call_expr)
            case "ident_expr" | "select_expr":
                return self._flag(node)
        return self._refuse(node, f"{_described(node)} is no condition: {_SUPPORTED}")

    def _call(self, node: Expression, call: Call) -> Filter:
        name, args = call.function, call.args
        if call.HasField("target"):
            self._refuse(node, f"the method {name}() is not supported: {_SUPPORTED}")
        if name in _JOINS:
            return joined(_JOINS[name], [self.filter(each) for each in args])
        if name == "!_":
            return Not(self.filter(args[0]))
        self._count(node)
        if name in _OPERATORS:
            return self._compare(node, _OPERATORS[name], args[0], args[1])
        if name == "@in":
            return self._membership(node, args[0], args[1])
        if name == "has" and len(args) == 1:
            return Has(self._field(args[0]))
        return self._refuse(node, f"{_described(node)} is not supported: {_SUPPORTED}")

    def _flag(self, node: Expression) -> Filter:
        self._count(node)
        field = self._field(node)
        if field.kind is not Kind.BOOLEAN:
            self._refuse(
                node,
                f"{field.name} is a field of type {field.kind}, and no condition by itself: "
                f"compare it, or write has({field.name})",
            )
        return Compare(field, "==", True)

    def _count(self, node: Expression) -> None:
        self._terms += 1
        if self._terms > MAX_TERMS:
            self._refuse(
                node,
                f"has more than {MAX_TERMS} terms: look many values up with `field in [...]`",
            )

    def _compare(
        self, node: Expression, operator: Operator, left: Expression, right: Expression
    ) -> Filter:
        if _is_name(right) and not _is_name(left):
            left, right, operator = right, left, _MIRRORED[operator]
        if not _is_name(left) or _is_name(right):
            self._refuse(node, f"`{operator}` compares a field with a literal, in either order")
        field = self._field(left)
        if field.kind is Kind.STRINGS:
            self._refuse(
                node, f'{field.name} holds many strings: ask for one with `"..." in {field.name}`'
            )
        if field.kind is Kind.BOOLEAN and operator not in ("==", "!="):
            self._refuse(node, f"{field.name} is a boolean, and those have no order")
        return Compare(field, operator, self._value(right, field))

    def _membership(self, node: Expression, left: Expression, right: Expression) -> Filter:
        if right.WhichOneof("expr_kind") == "list_expr" and _is_name(left):
            field = self._field(left)
            elements = right.list_expr.elements
            if field.kind is Kind.STRINGS:
                self._refuse(
                    node, f'{field.name} holds many strings: join `"..." in {field.name}` with ||'
                )
            if not 1 <= len(elements) <= MAX_LISTED:
                self._refuse(
                    right, f"the list holds {len(elements)} values; give 1 to {MAX_LISTED:,}"
                )
            values = (self._value(each, field) for each in elements)
            return OneOf(field, tuple(dict.fromkeys(values)))
        if _is_name(right) and not _is_name(left):
            return self._holds(right, left)
        return self._refuse(
            node,
            '`in` takes a field and a list of literals, or a string and a field: `"x" in tags`',
        )

    def _holds(self, right: Expression, left: Expression) -> Filter:
        field, literal = self._field(right), self._literal(left)
        if field.kind is not Kind.STRINGS:
            self._refuse(
                right,
                f"{field.name} is a field of type {field.kind}, and `in` looks into a field of "
                "type strings",
            )
        if literal.kind != "string":
            self._refuse(left, f"{field.name} holds strings; {_given(literal)}")
        return Holds(field, cast(str, literal.value))

    def _field(self, node: Expression) -> Field:
        name = node.ident_expr.name
        if node.WhichOneof("expr_kind") == "select_expr":
            member = node.select_expr
            if member.operand.ident_expr.name != _PREFIX:
                self._refuse(node, f"fields have no members such as .{member.field}")
            name = member.field
        elif not _is_name(node):
            self._refuse(node, f"{_described(node)} stands where a field is wanted")
        field = self._fields.get(name)
        if field is None:
            self._refuse(node, f"there is no field {name[:64]!r}: {_declared(self._fields, name)}")
        return field

    def _literal(self, node: Expression) -> _Literal:
        if node.WhichOneof("expr_kind") == "call_expr" and node.call_expr.function == "timestamp":
            return self._timestamp(node)
        literal = node.const_expr
        match literal.WhichOneof("constant_kind"):
            case "string_value":
                return _Literal("string", literal.string_value)
            case "int64_value":
                return _Literal("integer", literal.int64_value)
            case "double_value" if math.isfinite(literal.double_value):
                return _Literal("float", literal.double_value)
            case "bool_value":
                return _Literal("boolean", literal.bool_value)
        if node.WhichOneof("expr_kind") == "const_expr" and not literal.WhichOneof("constant_kind"):
            self._refuse(node, "null is no value: write has(field), or !has(field)")
        return self._refuse(
            node,
            f"{_described(node)} stands where a string, a finite number, true, false or "
            "timestamp() is wanted",
        )

    def _timestamp(self, node: Expression) -> _Literal:
        args = node.call_expr.args
        text = args[0].const_expr.string_value if len(args) == 1 else ""
        try:
            return _Literal("timestamp", read_time(text))
        except ValueError:
            return self._refuse(
                node,
                "timestamp() takes a string with a time as of RFC 3339, such as "
                '"2024-05-01T12:00:00Z"',
            )

    def _value(self, node: Expression, field: Field) -> Scalar:
        literal = self._literal(node)
        value = literal.value
        if field.kind in (Kind.INTEGER, Kind.FLOAT) and literal.kind in ("integer", "float"):
            number = cast("int | float", value)
            if field.kind is Kind.FLOAT:
                return float(number)
            # A larger one stays what it is: no integer is it, and all are on one side of it.
            whole = number == int(number) and int(number) in _INTEGERS
            return int(number) if whole else number
        if literal.kind != field.kind:
            hint = ""
            if field.kind is Kind.TIMESTAMP and literal.kind == "string":
                hint = ': write timestamp("...")'
            self._refuse(
                node,
                f"{field.name} is a field of type {field.kind}; {_given(literal)}{hint}",
            )
        return value

    def _refuse(self, node: Expression, problem: str) -> NoReturn:
        position = self._positions[node.id] + 1 if node.id in self._positions else 1
        raise InvalidFilterError(f"{problem} (at character {position})")


def _is_name(node: Expression) -> bool:
    return node.WhichOneof("expr_kind") in ("ident_expr", "select_expr")


def _given(literal: _Literal) -> str:
    article = "an" if literal.kind == "integer" else "a"
    return f"{article} {literal.kind} was given"


def _described(node: Expression) -> str:
    match node.WhichOneof("expr_kind"):
        case "call_expr":
            name = node.call_expr.function
            sign = name.replace("_", "").replace("@", "")
            return f"{name}()" if name.isidentifier() and name != "_" else f"the operator {sign}"
        case "const_expr":
            return "a literal"
        case "list_expr":
            return "a list"
        case "ident_expr" | "select_expr":
            return "a field"
    return "what stands there"


def _declared(fields: dict[str, Field], wanted: str) -> str:
    if not fields:
        return "the index declares none, and they are declared when an index is created"
    close = difflib.get_close_matches(wanted, fields, n=3)
    names = [*close, *(name for name in sorted(fields) if name not in close)]
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"the index declares {', '.join(str(fields[each]) for each in names[:_MAX_NAMES])}{more}"
