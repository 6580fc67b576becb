"""Does an error arrive as it was raised: handler -> interceptor -> wire -> typed exception?"""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.client import _errors
from shoal.rpc.errors import InvalidFieldError, ServiceError, service_error_of
from shoal.rpc.interceptors import ErrorInterceptor
from shoal.v1 import status
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import SearchRequest, SearchResponse

METHOD = "/test.Service/Unary"
STREAM = "/test.Service/Stream"
PROGRESS = "/test.Service/Progress"


class Handlers(grpc.GenericRpcHandler):
    """Raises whatever the test puts into it."""

    def __init__(self):
        self.error = None
        self.cancelled = asyncio.Event()

    def service(self, details):
        codecs = {
            "request_deserializer": SearchRequest.FromString,
            "response_serializer": SearchResponse.SerializeToString,
        }
        if details.method == METHOD:
            return grpc.unary_unary_rpc_method_handler(self.unary, **codecs)
        if details.method == STREAM:
            return grpc.stream_stream_rpc_method_handler(self.stream, **codecs)
        if details.method == PROGRESS:
            return grpc.unary_stream_rpc_method_handler(self.progress, **codecs)
        return None

    async def unary(self, request, context):
        if self.error is None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        raise self.error

    async def stream(self, requests, context):
        async for _ in requests:
            yield SearchResponse()
            raise self.error

    async def progress(self, request, context):
        yield SearchResponse()
        raise self.error


@pytest.fixture
async def handlers():
    return Handlers()


@pytest.fixture
async def channel(handlers):
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]
    ) as channel:
        yield channel
    await server.stop(0)


async def call(channel, timeout=20):
    method = channel.unary_unary(METHOD, SearchRequest.SerializeToString, SearchResponse.FromString)
    return await method(SearchRequest(), timeout=timeout)


async def failure_of(channel, handlers, error):
    handlers.error = error
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel)
    return caught.value


REASONS = [reason for reason in Reason.values() if reason != Reason.REASON_UNSPECIFIED]


async def test_every_reason_arrives_with_its_code_and_a_type(channel, handlers):
    for reason in REASONS:
        error = await failure_of(channel, handlers, ServiceError(reason, "what to do: 这样"))
        assert error.code() is status.CODES[reason]
        assert error.details() == "what to do: 这样"
        passed_on = service_error_of(error)
        assert (passed_on.reason, str(passed_on)) == (reason, "what to do: 这样")
        typed = _errors.error_of(error)
        assert type(typed) is not _errors.ShoalError
        assert typed.reason == status.reason_name(reason)
        assert typed.code is error.code()


async def test_fields_and_delay_arrive(channel, handlers):
    error = await failure_of(
        channel,
        handlers,
        ServiceError(
            Reason.REASON_OVERLOADED, "later", fields={"a.b": "is wrong"}, retry_delay_s=1.25
        ),
    )
    failure = service_error_of(error).failure
    assert failure.fields == {"a.b": "is wrong"}
    assert failure.retry_delay_s == pytest.approx(1.25)
    details = status_pb2.Status.FromString(
        dict(error.trailing_metadata())[status.STATUS_TRAILER]
    ).details
    assert [each.TypeName() for each in details] == [
        "google.rpc.ErrorInfo",
        "google.rpc.BadRequest",
        "google.rpc.RetryInfo",
    ]


@pytest.mark.parametrize("letter", ["x", "语", "\U0001f41f", "\n", "%"])
async def test_an_endless_message_is_cut_and_still_arrives(channel, handlers, letter):
    fields = {f"f{at}{letter * 1_000}": letter * 10_000 for at in range(50)}
    error = ServiceError(Reason.REASON_INVALID_FIELD, letter * 100_000, fields=fields)
    typed = _errors.error_of(await failure_of(channel, handlers, error))
    assert type(typed) is _errors.InvalidArgumentError
    assert typed.message.startswith(letter * 10)
    assert typed.message.endswith("…")
    assert 1 <= len(typed.fields) < 50


async def test_a_lone_surrogate_does_not_break_the_error(channel, handlers):
    error = await failure_of(channel, handlers, InvalidFieldError("text", "holds \ud800"))
    assert service_error_of(error).reason == Reason.REASON_INVALID_FIELD


async def test_a_bug_is_internal_and_in_the_log(channel, handlers, caplog):
    error = await failure_of(channel, handlers, ZeroDivisionError("oh"))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "ZeroDivisionError: oh" in error.details()
    assert "Traceback" in caplog.text


async def test_a_timeout_inside_is_a_passed_deadline(channel, handlers):
    error = await failure_of(channel, handlers, TimeoutError())
    assert service_error_of(error).reason == Reason.REASON_DEADLINE_EXCEEDED


async def test_the_callers_own_deadline_cancels_the_handler(channel, handlers):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, timeout=0.05)
    assert service_error_of(caught.value).reason == Reason.REASON_DEADLINE_EXCEEDED
    async with asyncio.timeout(20):
        await handlers.cancelled.wait()


async def test_streams_carry_errors_too(channel, handlers):
    handlers.error = ServiceError(Reason.REASON_STORAGE_FULL, "full")
    method = channel.stream_stream(
        STREAM, SearchRequest.SerializeToString, SearchResponse.FromString
    )
    stream = method(timeout=20)
    await stream.write(SearchRequest())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stream:
            pass
    assert service_error_of(caught.value).reason == Reason.REASON_STORAGE_FULL


async def test_an_unknown_method_is_left_to_grpc(channel):
    method = channel.unary_unary("/test.Service/None", SearchRequest.SerializeToString)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(SearchRequest(), timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_every_reason_has_a_code():
    assert set(status.CODES) == set(Reason.values())


def test_a_reason_that_a_newer_peer_invented_keeps_its_code():
    sent = status_pb2.Status(code=5, message="m")
    detail = error_details_pb2.ErrorInfo(reason="FROM_THE_FUTURE", domain=status.DOMAIN)
    sent.details.add().Pack(detail)
    failure = status.from_rpc_error(
        grpc.StatusCode.NOT_FOUND, "m", [(status.STATUS_TRAILER, sent.SerializeToString())]
    )
    assert failure.reason == Reason.REASON_UNSPECIFIED
    assert failure.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, Reason.REASON_UNSPECIFIED),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.REASON_DEADLINE_EXCEEDED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.REASON_OVERLOADED),
        (grpc.StatusCode.CANCELLED, Reason.REASON_UNSPECIFIED),
    ],
)
@pytest.mark.parametrize("trailers", [None, [], [(status.STATUS_TRAILER, b"\xff\xffgarbage")]])
def test_a_bare_status_keeps_its_code(code, reason, trailers):
    failure = status.from_rpc_error(code, "refused", trailers)
    assert (failure.reason, failure.code, failure.message) == (reason, code, "refused")


def test_a_status_that_grpc_lost_may_be_tried_again():
    failure = status.from_rpc_error(grpc.StatusCode.INTERNAL, "Internal error from Core", None)
    assert failure.code is grpc.StatusCode.UNAVAILABLE


@settings(deadline=None)
@given(st.text(), st.integers(3, 50))
def test_clipping_keeps_the_bound_and_the_beginning(text, limit_bytes):
    clipped = status.clip(text, limit_bytes)
    assert len(clipped.encode()) <= limit_bytes
    assert text.startswith(clipped) or clipped.endswith("…") or "\ud800" <= max(text) <= "\udfff"


@settings(deadline=None)
@given(
    st.sampled_from(REASONS),
    st.text(st.characters(codec="utf-8"), max_size=50),
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=9), st.just("is wrong"), max_size=6
    ),
    st.none() | st.floats(0, 1e6),
)
def test_failures_survive_the_round_trip(reason, message, fields, delay_s):
    sent = status.Failure(reason, message, fields, delay_s)
    wire = status.to_rpc_status(sent).SerializeToString()
    read = status.from_rpc_error(sent.code, message, [(status.STATUS_TRAILER, wire)])
    assert (read.reason, read.fields, read.code) == (reason, fields, sent.code)
    assert read.message == (message or sent.code.name)
    assert read.retry_delay_s == (None if delay_s is None else pytest.approx(delay_s, abs=1e-8))


async def test_what_fails_a_stream_of_responses_arrives_after_them(channel, handlers):
    method = channel.unary_stream(
        PROGRESS, SearchRequest.SerializeToString, SearchResponse.FromString
    )
    handlers.error = ServiceError(Reason.REASON_SNAPSHOT_EXISTS, "name another place")
    call = method(SearchRequest(), timeout=20)
    assert await call.read() == SearchResponse()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert service_error_of(caught.value).reason == Reason.REASON_SNAPSHOT_EXISTS
