"""How does an exception in a handler become a gRPC status?

ServiceError carries its own reason. A passed deadline and a cancelled call are the caller's doing.
Everything else is a bug of ours: INTERNAL, with the traceback in the log and not on the wire.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, cast

import grpc
from shoal.rpc.errors import ServiceError
from shoal.v1.errors_pb2 import Reason
from shoal.v1.status import STATUS_TRAILER, Failure, clip, to_rpc_status

_log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Maps what a handler raises to a status with details."""

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a call."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.stream_unary or _writes_by_itself(handler):
            return handler  # Health and reflection only; they map their own errors.
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(_guard_unary(handler.unary_unary), **codecs)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                _guard_stream(cast(Any, handler.unary_stream)), **codecs
            )
        return grpc.stream_stream_rpc_method_handler(
            _guard_stream(cast(Any, handler.stream_stream)), **codecs
        )


def _writes_by_itself(handler: grpc.RpcMethodHandler[Any, Any]) -> bool:
    """True for a handler that writes its responses to the context: none of ours does."""
    return bool(handler.unary_stream) and not inspect.isasyncgenfunction(handler.unary_stream)


def _guard_unary(behaviour: Any) -> Any:
    async def guarded(request: Any, context: _Context) -> Any:
        try:
            return await behaviour(request, context)
        except asyncio.CancelledError:
            _require_caller_left()
            await _abort(context, _lost_connection())
        except Exception as error:  # noqa: BLE001  # the one place that catches everything
            await _abort(context, error)

    return guarded


def _guard_stream(behaviour: Any) -> Any:
    async def guarded(requests: Any, context: _Context) -> AsyncIterator[Any]:
        try:
            async for response in behaviour(requests, context):
                yield response
        except asyncio.CancelledError:
            _require_caller_left()
            await _abort(context, _lost_connection())
        except Exception as error:  # noqa: BLE001  # the one place that catches everything
            await _abort(context, error)

    return guarded


def _require_caller_left() -> None:
    """Go on being cancelled if it is this call that was; return if it is one made for it.

    A channel that is closed under a call cancels it, and its caller would wait for an answer.
    """
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise asyncio.CancelledError


def _lost_connection() -> ServiceError:
    return ServiceError(
        Reason.REASON_DRAINING, "the instance that served this call has left: try again"
    )


async def _abort(context: _Context, error: Exception) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error  # The handler aborted by itself; gRPC knows already.
    failure = _failure_of(error)
    trailer = (STATUS_TRAILER, to_rpc_status(failure).SerializeToString())
    await context.abort(failure.code, clip(failure.message), (trailer,))
    raise AssertionError("abort raises")


def _failure_of(error: Exception) -> Failure:
    if isinstance(error, ServiceError):
        return error.failure
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return Failure(
            Reason.REASON_DEADLINE_EXCEEDED, "the deadline passed: allow more time for the call"
        )
    _log.error("a handler failed", exc_info=error)
    return Failure(
        Reason.REASON_INTERNAL,
        f"{type(error).__name__}: {error} (a bug: see the server's log)",
    )
