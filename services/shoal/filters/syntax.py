"""How is a filter's text read? As an expression of CEL, by Google's own parser.

The Common Expression Language (https://cel.dev) is small, known from Kubernetes and cloud policies,
and made for conditions over typed fields. Its parser is `cel-expr-python` (Apache-2.0; the bindings
of cel-cpp): of the libraries for Python it alone is the reference parser, hands out its tree (as
the bytes of `cel.expr.ParsedExpr`, of which `expression.proto` names what is read here), says where
an error is, bounds recursion by itself, depends on nothing, and is imported in 5 ms; there are
wheels for Python 3.11 to 3.13. cel-python would bring lark, re2, pendulum and jmespath along, and
takes 20 times as long to import; cel-bind and common-expression-language evaluate expressions, but
show no tree.
"""

from __future__ import annotations

import functools
import re
from typing import Any, Final

from cel_expr_python import cel
from google.protobuf.any_pb2 import Any as AnyMessage
from shoal.filters.errors import InvalidFilterError
from shoal.internal.v1.expression_pb2 import ParsedExpression

_ERROR: Final = re.compile(r"<input>:(\d+):(\d+): (?:Syntax error: )?([^\n]*)")
_MAX_DETAIL: Final = 120


@functools.cache
def _environment() -> Any:
    # Without macros `has(x)` and `x.exists(...)` are calls like others: read here, or refused by
    # name.
    return cel.NewEnv(config=cel.NewEnvConfigFromYaml("stdlib:\n  disable_macros: true\n"))


def parse_expression(text: str) -> ParsedExpression:
    """Read a text as an expression, of whatever meaning. Raises InvalidFilterError."""
    try:
        serialized = _environment().compile(text, disable_check=True).serialize()
    except (RuntimeError, TypeError) as error:
        raise InvalidFilterError(_problem(str(error))) from None
    return ParsedExpression.FromString(AnyMessage.FromString(serialized).value)


def _problem(message: str) -> str:
    found = _ERROR.search(message)
    if found is not None:
        line, column = int(found[1]), int(found[2])
        where = f"character {column}" if line == 1 else f"line {line}, character {column}"
        # What might have stood there instead is a list of every token of the language.
        detail = re.sub(r" expecting \{.*", "", found[3])
        return f"cannot be read at {where}: {detail[:_MAX_DETAIL]}"
    if "recursion" in message:
        return "is nested too deeply: 32 levels are read"
    return f"cannot be read: {message[:_MAX_DETAIL]}"
