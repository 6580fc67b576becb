"""How does a service refuse a call?

By raising one of these: the interceptor turns it into a gRPC status with details. Assertions are
for our own bugs; these are for the world's.
"""

from __future__ import annotations

import grpc
from shoal.v1.errors_pb2 import Reason
from shoal.v1.status import Failure, from_rpc_error


class ServiceError(Exception):
    """A call that cannot be served, with the reason that the caller gets."""

    def __init__(
        self,
        reason: Reason.ValueType,
        message: str,
        *,
        fields: dict[str, str] | None = None,
        retry_delay_s: float | None = None,
    ) -> None:
        """Message: what is wrong and what to do about it, for a person."""
        super().__init__(message)
        self.failure = Failure(reason, message, fields or {}, retry_delay_s)

    @property
    def reason(self) -> Reason.ValueType:
        """The reason, as in errors.proto."""
        return self.failure.reason


class InvalidFieldError(ServiceError):
    """A field of the request is wrong, whatever the state."""

    def __init__(
        self, path: str, description: str, reason: Reason.ValueType = Reason.REASON_INVALID_FIELD
    ) -> None:
        """Path: of the field in the request, such as `document.text`."""
        super().__init__(reason, f"{path}: {description}", fields={path: description})


def service_error_of(error: grpc.aio.AioRpcError) -> ServiceError:
    """Read the reason that a peer failed with, to pass it on or to act on it."""
    trailers = error.trailing_metadata()
    pairs = [(key, value) for key, value in trailers] if trailers is not None else None
    failure = from_rpc_error(error.code(), error.details(), pairs)
    passed_on = ServiceError(failure.reason, failure.message)
    passed_on.failure = failure
    return passed_on
