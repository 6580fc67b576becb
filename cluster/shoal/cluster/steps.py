"""Which function is a step of a build?

Named where it is called, and imported where it runs, and only there: steps read tables and models,
and the controller does not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol, cast

Step = Literal[
    "inspect_bundle",
    "plan_encoding",
    "encode_rows",
    "needs_codebook",
    "count",
    "train",
    "encode",
    "verify",
    "discard",
]

_BUILD: Final = "shoal.shard.build"
_ENCODING: Final = "shoal.writer.reencoding"
_MODULES: Final[dict[Step, str]] = {
    "inspect_bundle": _ENCODING,
    "plan_encoding": _ENCODING,
    "encode_rows": _ENCODING,
}


class StepFailedError(Exception):
    """A step that failed for good; the message says why, for an operator."""


class StepRunner(Protocol):
    """What runs steps, each in a process of its own."""

    async def run_step(self, step: Step, *arguments: Any) -> Any:
        """Run a step on some machine. Raises StepFailedError."""
        ...


def function_of(step: Step) -> Callable[..., Any]:
    """The function of a step."""
    module = importlib.import_module(_MODULES.get(step, _BUILD))
    return cast("Callable[..., Any]", getattr(module, step))


def explain(error: Exception) -> str:
    """Say to an operator why a step failed."""
    from shoal.shard import build

    return build.explain(error)
