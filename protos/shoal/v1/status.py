"""Which gRPC status does each reason travel under, and how is it read back?

The one catalogue of reasons, shared by servers and clients. On the wire an error is a
google.rpc.Status in the trailing metadata (https://google.aip.dev/193).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from shoal.v1.errors_pb2 import Reason

DOMAIN: Final = "shoal"
STATUS_TRAILER: Final = "grpc-status-details-bin"

# Reasons that only ever stand in a `StageCut` carry the code that a whole failure would have.
CODES: Final[dict[Reason.ValueType, grpc.StatusCode]] = {
    Reason.REASON_UNSPECIFIED: grpc.StatusCode.UNKNOWN,
    Reason.REASON_INVALID_FIELD: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.REASON_DIMENSION_MISMATCH: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.REASON_INVALID_VECTOR: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.REASON_INDEX_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.REASON_INDEX_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.REASON_OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.REASON_DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.REASON_DEADLINE_SHARE_SPENT: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.REASON_SHARD_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.REASON_ENCODER_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.REASON_RERANKER_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.REASON_WRITER_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.REASON_CONTROLLER_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.REASON_NOT_READY: grpc.StatusCode.UNAVAILABLE,
    Reason.REASON_COVERAGE_INCOMPLETE: grpc.StatusCode.ABORTED,
    Reason.REASON_TABLE_VERSION_AHEAD: grpc.StatusCode.OUT_OF_RANGE,
    Reason.REASON_STORAGE_FULL: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REASON_MODEL_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REASON_CHECKSUM_MISMATCH: grpc.StatusCode.DATA_LOSS,
    Reason.REASON_DRAINING: grpc.StatusCode.UNAVAILABLE,
    Reason.REASON_INTERNAL: grpc.StatusCode.INTERNAL,
}

# Peers that never reached Shoal's code (a refused connection, a proxy) send a bare status.
_REASON_OF_BARE_CODE: Final = {
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.REASON_DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.REASON_OVERLOADED,
}


def reason_name(reason: Reason.ValueType) -> str:
    """Name a reason as it travels: `INDEX_NOT_FOUND`."""
    return Reason.Name(reason).removeprefix("REASON_")


def parse_reason(name: str) -> Reason.ValueType:
    """Read a reason's name; REASON_UNSPECIFIED for one that a newer peer invented."""
    try:
        return Reason.Value(f"REASON_{name}")
    except ValueError:
        return Reason.REASON_UNSPECIFIED


@dataclass(frozen=True)
class Failure:
    """Why a call failed: what both sides know of an error."""

    reason: Reason.ValueType
    message: str
    # Paths of wrong fields, such as `document.vector`, and what is wrong with each.
    fields: dict[str, str] = field(default_factory=dict)
    # When to come back, in seconds. None if waiting does not help.
    retry_delay_s: float | None = None

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code that the reason travels under."""
        return CODES[self.reason]


def to_rpc_status(failure: Failure) -> status_pb2.Status:
    """Put a failure into the form that travels in the trailing metadata."""
    details: list[any_pb2.Any] = []

    def add(message: object) -> None:
        packed = any_pb2.Any()
        packed.Pack(message)  # type: ignore[arg-type]  # any of the three detail messages
        details.append(packed)

    add(error_details_pb2.ErrorInfo(reason=reason_name(failure.reason), domain=DOMAIN))
    if failure.fields:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=path, description=description)
            for path, description in failure.fields.items()
        ]
        add(error_details_pb2.BadRequest(field_violations=violations))
    if failure.retry_delay_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(failure.retry_delay_s * 1e9))
        add(error_details_pb2.RetryInfo(retry_delay=delay))
    code: int = failure.code.value[0]
    return status_pb2.Status(code=code, message=failure.message, details=details)


def from_rpc_error(
    code: grpc.StatusCode, message: str | None, trailers: Iterable[tuple[str, str | bytes]] | None
) -> Failure:
    """Read a failure from a call's status code, message and trailing metadata.

    A call that never reached Shoal's code has no details; its reason is REASON_UNSPECIFIED, save
    for a passed deadline and an overload, which gRPC itself can say.
    """
    bare = Failure(_REASON_OF_BARE_CODE.get(code, Reason.REASON_UNSPECIFIED), message or code.name)
    for key, value in trailers or ():
        if key == STATUS_TRAILER and isinstance(value, bytes):
            status = status_pb2.Status.FromString(value)
            return _from_details(status.details, status.message, bare)
    return bare


def _from_details(details: Sequence[any_pb2.Any], message: str, bare: Failure) -> Failure:
    reason = bare.reason
    fields: dict[str, str] = {}
    retry_delay_s: float | None = None
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in details:
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason = parse_reason(info.reason)
        elif detail.Unpack(bad_request):
            fields = {each.field: each.description for each in bad_request.field_violations}
        elif detail.Unpack(retry):
            retry_delay_s = retry.retry_delay.ToNanoseconds() / 1e9
    return Failure(reason, message, fields, retry_delay_s)
