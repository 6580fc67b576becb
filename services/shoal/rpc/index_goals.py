"""What may be asked of the versions of an index: which recall, and which kind?

Checked where a caller's request comes in, and again by the writer, which others may call.
"""

from __future__ import annotations

from typing import Final

from shoal.rpc.errors import InvalidFieldError
from shoal.v1.search_pb2 import SearchKind

# Of an index that names none: one neighbour in twenty may be missed.
DEFAULT_RECALL_TARGET: Final = 0.95
# Held-out vectors cannot tell more apart from all; exact search is for those who need it.
MAX_RECALL_TARGET: Final = 0.999


def check_recall_target(target: float, field: str = "recall_target") -> None:
    """Raise InvalidFieldError unless it is 0, for the default, or a recall that can be measured."""
    if not 0 <= target <= MAX_RECALL_TARGET:
        raise InvalidFieldError(
            field,
            f"is {target:g}: a recall target is above 0 and at most {MAX_RECALL_TARGET}, or 0 for "
            f"the default, {DEFAULT_RECALL_TARGET}; exact search (version 0) has recall 1",
        )


def check_kind(kind: int, field: str = "kind") -> None:
    """Raise InvalidFieldError unless it is unspecified, or a kind that versions are built as."""
    if kind == SearchKind.SEARCH_KIND_EXACT:
        raise InvalidFieldError(
            field,
            "is SEARCH_KIND_EXACT, which needs no build: version 0 is exact search, promote it",
        )
    if kind not in SearchKind.values():
        raise InvalidFieldError(field, f"is {kind}, which this release does not know")


def target_in_force(target: float) -> float:
    """The recall target that holds: the default for 0."""
    return target or DEFAULT_RECALL_TARGET
