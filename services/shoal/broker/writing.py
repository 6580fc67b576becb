"""How does the broker reach the writer?"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc
from shoal.broker.targets import Target, Targets
from shoal.internal.v1.writer_pb2_grpc import WriterServiceStub
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError, service_error_of
from shoal.v1.errors_pb2 import Reason

Response = TypeVar("Response")

WRITER_SHARE: Final = 0.9


async def reach_writer(
    writers: Targets, work: Callable[[Any, float], Awaitable[Response]], deadline: Deadline
) -> Response:
    """Call the writer, again and again while it is away, until the deadline.

    work: takes the stub and the seconds left; may be repeated. Raises WRITER_UNAVAILABLE, or what
    the writer refuses the call with.
    """

    async def once(target: Target) -> Response:
        stub = WriterServiceStub(target.channel)
        return await target.call(lambda: work(stub, deadline.budget_s))

    # What is left is for the answer to travel.
    deadline = deadline.share(WRITER_SHARE)
    try:
        _, response = await writers.first_to_do(once, deadline)
    except TimeoutError as error:
        raise writer_error(None) from error
    except ServiceError as error:
        raise named(error) from error
    return response


def writer_error(error: grpc.aio.AioRpcError | None) -> ServiceError:
    """What the caller is told when the writer fails, or is not there at all."""
    if error is None:
        return ServiceError(
            Reason.REASON_WRITER_UNAVAILABLE,
            "the writer does not answer; it is restarted by itself: send again what was not "
            "acknowledged",
        )
    return named(service_error_of(error))


def named(error: ServiceError) -> ServiceError:
    """Give a failure of the connection the reason that callers know."""
    if error.reason == Reason.REASON_UNSPECIFIED and error.failure.code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
    ):
        return writer_error(None)
    return error
