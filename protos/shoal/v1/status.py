"""Which gRPC status does each reason travel under, and how is it read back?

The one catalogue of reasons, shared by servers and clients. On the wire an error is a
google.rpc.Status in the trailing metadata (https://google.aip.dev/193).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from shoal.v1.errors_pb2 import Reason

DOMAIN: Final = "shoal"
STATUS_TRAILER: Final = "grpc-status-details-bin"

# Peers refuse trailing metadata above 8 KiB, and the caller would then see that instead of the
# error. The message travels twice: once with every byte that is not ASCII written as three, once
# with the fields in base64. With these limits all of it stays below 7 KiB.
MAX_MESSAGE_BYTES: Final = 768
_MAX_FIELD_BYTES: Final = 192
_MAX_FIELD_COUNT: Final = 6

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
    Reason.REASON_DEPTH_REACHED: grpc.StatusCode.OUT_OF_RANGE,
    Reason.REASON_COVERAGE_INCOMPLETE: grpc.StatusCode.ABORTED,
    Reason.REASON_TABLE_VERSION_AHEAD: grpc.StatusCode.OUT_OF_RANGE,
    Reason.REASON_STORAGE_FULL: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REASON_MODEL_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REASON_CHECKSUM_MISMATCH: grpc.StatusCode.DATA_LOSS,
    Reason.REASON_DRAINING: grpc.StatusCode.UNAVAILABLE,
    Reason.REASON_INTERNAL: grpc.StatusCode.INTERNAL,
    Reason.REASON_VERSION_CONFLICT: grpc.StatusCode.ABORTED,
    Reason.REASON_LEXICAL_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.REASON_INVALID_FILTER: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.REASON_SNAPSHOT_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.REASON_SNAPSHOT_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.REASON_STORE_UNAVAILABLE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REASON_SNAPSHOT_FORMAT: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REASON_VERSION_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.REASON_BUILD_IN_PROGRESS: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REASON_VERSION_NOT_READY: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REASON_VERSION_SERVES: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REASON_NO_PREVIOUS_VERSION: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REASON_FEEDBACK_DISABLED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REASON_TOO_FEW_QUERIES: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REASON_SPACE_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.REASON_SPACE_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.REASON_TOO_MANY_SPACES: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.REASON_VERSION_OF_SPACE: grpc.StatusCode.FAILED_PRECONDITION,
}

# Peers that never reached Shoal's code (a refused connection, a proxy) send a bare status.
_REASON_OF_BARE_CODE: Final = {
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.REASON_DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.REASON_OVERLOADED,
}

# What grpc.aio puts in place of the peer's status if the peer ends a stream while it is being
# written to (https://github.com/grpc/grpc/issues/36066). The status is lost, so nothing is known
# but that another stream may do; one that is not written to when it is refused will say why.
_WRITE_FAILED: Final = "Internal error from Core"


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
    # What the call failed with, if it was read from the wire: decides when there is no reason.
    wire_code: grpc.StatusCode | None = None

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code that the reason travels under."""
        if self.reason == Reason.REASON_UNSPECIFIED and self.wire_code is not None:
            return self.wire_code
        return CODES[self.reason]


def clip(text: str, limit_bytes: int = MAX_MESSAGE_BYTES) -> str:
    """Cut a text to so many bytes of UTF-8, and show that it was cut."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit_bytes:
        return raw.decode()
    mark = "…"
    return raw[: limit_bytes - len(mark.encode())].decode("utf-8", "ignore") + mark


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
            error_details_pb2.BadRequest.FieldViolation(
                field=clip(path, _MAX_FIELD_BYTES), description=clip(description, _MAX_FIELD_BYTES)
            )
            for path, description in islice(failure.fields.items(), _MAX_FIELD_COUNT)
        ]
        add(error_details_pb2.BadRequest(field_violations=violations))
    if failure.retry_delay_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(failure.retry_delay_s * 1e9))
        add(error_details_pb2.RetryInfo(retry_delay=delay))
    code: int = failure.code.value[0]
    return status_pb2.Status(code=code, message=clip(failure.message), details=details)


def from_rpc_error(
    code: grpc.StatusCode, message: str | None, trailers: Iterable[tuple[str, str | bytes]] | None
) -> Failure:
    """Read a failure from a call's status code, message and trailing metadata.

    A call that never reached Shoal's code has no details; its reason is REASON_UNSPECIFIED, save
    for a passed deadline and an overload, which gRPC itself can say.
    """
    if code is grpc.StatusCode.INTERNAL and message == _WRITE_FAILED:
        code, message = grpc.StatusCode.UNAVAILABLE, "the peer ended the stream during a write"
    reason = _REASON_OF_BARE_CODE.get(code, Reason.REASON_UNSPECIFIED)
    bare = Failure(reason, message or code.name, wire_code=code)
    for key, value in trailers or ():
        if key == STATUS_TRAILER and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                return bare  # Not from Shoal.
            return _from_details(status.details, bare)
    return bare


def _from_details(details: Sequence[any_pb2.Any], bare: Failure) -> Failure:
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
    return replace(bare, reason=reason, fields=fields, retry_delay_s=retry_delay_s)
