"""What can a call fail with, and what is to be done about it?

    ShoalError                      whatever failed a call; `reason` says why, `code` is gRPC's
    ├── InvalidArgumentError        the request is wrong whatever the state: mend it; see `fields`
    │   ├── DimensionMismatchError  a vector of another model than the index's
    │   └── InvalidVectorError      a vector with a NaN, an infinity, or nothing but zeros
    ├── NotFoundError
    │   └── IndexNotFoundError      create the index, or mind its name
    ├── AlreadyExistsError
    │   └── IndexExistsError        choose another name, or drop it
    ├── OverloadedError             wait `retry_delay_s` seconds, then come back
    ├── DeadlineExceededError       allow more time
    ├── UnavailableError            try again: it heals by itself (`reason` says what is away)
    ├── AbortedError
    │   └── CoverageIncompleteError `require_complete` was asked for, and part did not answer
    ├── TableVersionAheadError      `min_table_version` is one that the table has not reached
    ├── FailedPreconditionError     an operator must act
    │   ├── StorageFullError
    │   └── ModelMismatchError      the index was made with another model than the cluster serves
    ├── DataLossError               a stored file is damaged: an operator must restore it
    └── InternalError               a bug of Shoal's: report it

Arguments that no server needs to see to be refused (an unknown key, a number out of its type's
range) raise ValueError or TypeError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, cast

import grpc
from shoal.v1.errors_pb2 import Reason
from shoal.v1.status import Failure, from_rpc_error, reason_name


class ShoalError(Exception):
    """A call that failed."""

    def __init__(
        self,
        reason: str,
        code: grpc.StatusCode,
        message: str,
        fields: Mapping[str, str] | None = None,
        retry_delay_s: float | None = None,
    ) -> None:
        """Made from what the server sent.

        reason: a name of `shoal.v1.Reason` without its prefix, such as `INDEX_NOT_FOUND`;
        `UNSPECIFIED` if the call never reached Shoal. fields: path of each wrong field, and what is
        wrong with it. retry_delay_s: when to come back; None if waiting does not help.
        """
        super().__init__(message)
        self.reason = reason
        self.code = code
        self.message = message
        self.fields = dict(fields or {})
        self.retry_delay_s = retry_delay_s

    def __str__(self) -> str:
        return f"{self.message} [{self.code.name}, {self.reason}]"

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are pickled by their `args`, which hold the message alone.
        arguments = (self.reason, self.code, self.message, self.fields, self.retry_delay_s)
        return type(self), arguments


class InvalidArgumentError(ShoalError):
    """The request is wrong, whatever the state of the cluster: mend it."""


class DimensionMismatchError(InvalidArgumentError):
    """A vector has another dimension than the index: use the index's model."""


class InvalidVectorError(InvalidArgumentError):
    """A vector holds a NaN, an infinity, or nothing but zeros."""


class NotFoundError(ShoalError):
    """What the request names is not there."""


class IndexNotFoundError(NotFoundError):
    """There is no index of that name."""


class AlreadyExistsError(ShoalError):
    """What the request would make is there already."""


class IndexExistsError(AlreadyExistsError):
    """There is an index of that name."""


class OverloadedError(ShoalError):
    """The cluster has as much work as it can finish in time: wait `retry_delay_s`."""


class DeadlineExceededError(ShoalError):
    """The deadline passed before there was anything to answer with: allow more time."""


class UnavailableError(ShoalError):
    """Nothing answered that could: try again."""


class AbortedError(ShoalError):
    """The call gave up because the state did not allow what it was asked to guarantee."""


class CoverageIncompleteError(AbortedError):
    """Part of the index did not answer, and `require_complete` was set."""


class TableVersionAheadError(ShoalError):
    """`min_table_version` is one that the table has not reached."""


class FailedPreconditionError(ShoalError):
    """An operator must act before this can succeed."""


class StorageFullError(FailedPreconditionError):
    """The storage is full or cannot be written."""


class ModelMismatchError(FailedPreconditionError):
    """The index was made with another model than the cluster's encoder serves."""


class DataLossError(ShoalError):
    """A stored file does not have the checksum that it was written with."""


class InternalError(ShoalError):
    """A bug of Shoal's: report it with the message and the server's log."""


_OF_REASON: Final[dict[Reason.ValueType, type[ShoalError]]] = {
    Reason.REASON_DIMENSION_MISMATCH: DimensionMismatchError,
    Reason.REASON_INVALID_VECTOR: InvalidVectorError,
    Reason.REASON_INDEX_NOT_FOUND: IndexNotFoundError,
    Reason.REASON_INDEX_EXISTS: IndexExistsError,
    Reason.REASON_COVERAGE_INCOMPLETE: CoverageIncompleteError,
    Reason.REASON_STORAGE_FULL: StorageFullError,
    Reason.REASON_MODEL_MISMATCH: ModelMismatchError,
}

_OF_CODE: Final[dict[grpc.StatusCode, type[ShoalError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.ABORTED: AbortedError,
    grpc.StatusCode.OUT_OF_RANGE: TableVersionAheadError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.DATA_LOSS: DataLossError,
    grpc.StatusCode.INTERNAL: InternalError,
}


def error_of(error: grpc.RpcError) -> ShoalError:
    """Rebuild the typed error from what gRPC raised."""
    # Both the synchronous call and AioRpcError carry these; RpcError itself declares nothing.
    code: grpc.StatusCode = error.code()
    trailers = cast("Iterable[tuple[str, str | bytes]] | None", error.trailing_metadata())
    return _error_of_failure(from_rpc_error(code, error.details(), trailers))


def _error_of_failure(failure: Failure) -> ShoalError:
    """The most telling type: by the reason if it has one of its own, otherwise by the code."""
    kind = _OF_REASON.get(failure.reason) or _OF_CODE.get(failure.code, ShoalError)
    return kind(
        reason_name(failure.reason),
        failure.code,
        failure.message,
        failure.fields,
        failure.retry_delay_s,
    )
