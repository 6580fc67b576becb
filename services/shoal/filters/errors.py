"""How is a filter refused?"""

from __future__ import annotations

from shoal.rpc.errors import InvalidFieldError
from shoal.v1.errors_pb2 import Reason


class InvalidFilterError(InvalidFieldError):
    """A filter that is wrong, whatever the state of the index."""

    def __init__(self, description: str) -> None:
        """Description: what is wrong with it, where, and what to write instead."""
        super().__init__("filter", description, Reason.REASON_INVALID_FILTER)
