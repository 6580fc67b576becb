"""How is feedback taken, and handed out?"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Final, cast

import grpc
from shoal.broker.answer_tokens import AnswerTokens, BadTokenError
from shoal.broker.routes import IndexRoute, Routes
from shoal.broker.signing_keys import SigningKeys
from shoal.broker.targets import Targets
from shoal.broker.writing import reach_writer, writer_error
from shoal.internal.v1.feedback_pb2 import (
    AnswerFeedback,
    ReadFeedbackRequest,
    ShownAnswer,
    StoreFeedbackRequest,
)
from shoal.internal.v1.writer_pb2_grpc import WriterServiceStub
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.v1.errors_pb2 import Reason
from shoal.v1.feedback_pb2 import (
    ExportFeedbackRequest,
    ExportFeedbackResponse,
    Feedback,
    RecordFeedbackRequest,
    RecordFeedbackResponse,
)
from shoal.v1.feedback_pb2_grpc import FeedbackServiceServicer

_Context = grpc.aio.ServicerContext[Any, Any]

MAX_FEEDBACK: Final = 256
MAX_PRINCIPAL_BYTES: Final = 256
# Longer, and a window was left open.
MAX_DWELL_S: Final = 86_400.0
# The type stubs know no None, and gRPC says so for a call without a deadline.
_NO_DEADLINE_S: Final = 86_400.0


class FeedbackServer(FeedbackServiceServicer):
    """FeedbackService."""

    def __init__(
        self,
        routes: Callable[[], Routes],
        writers: Targets,
        tokens: AnswerTokens,
        keys: SigningKeys,
    ) -> None:
        """routes: gives the routes that are followed now. keys: what the tokens are read with."""
        self._routes, self._writers = routes, writers
        self._tokens, self._keys = tokens, keys

    async def RecordFeedback(
        self, request: RecordFeedbackRequest, context: _Context
    ) -> RecordFeedbackResponse:
        """Read the tokens, and have the writer store what they say."""
        route = self._routes().index(request.index)
        if not 1 <= len(request.feedback) <= MAX_FEEDBACK:
            raise InvalidFieldError(
                "feedback", f"holds {len(request.feedback)}; give 1 to {MAX_FEEDBACK}"
            )
        if not self._tokens.ready:
            raise ServiceError(
                Reason.REASON_WRITER_UNAVAILABLE,
                "this broker has no key for tokens yet, as the writer has not answered: try again "
                "in a moment",
            )
        if not all(self._tokens.knows_key(each.answer_token) for each in request.feedback):
            # Keys are rotated: a broker that has the new one signs before the others have it.
            await self._keys.refresh()
        store = StoreFeedbackRequest(
            index=request.index,
            feedback=[
                self._read(each, route, f"feedback[{at}]")
                for at, each in enumerate(request.feedback)
            ],
        )
        response = await reach_writer(
            self._writers,
            lambda stub, budget_s: stub.StoreFeedback(store, timeout=budget_s),
            Deadline.of(context),
        )
        return cast(RecordFeedbackResponse, response.recorded)

    async def ExportFeedback(
        self, request: ExportFeedbackRequest, context: _Context
    ) -> AsyncIterator[ExportFeedbackResponse]:
        """Hand on what the writer reads."""
        self._routes().index(request.index)
        writer = self._writers.choose()
        if writer is None:
            raise writer_error(None)
        remaining_s = cast("float | None", context.time_remaining())
        timeout_s = (
            remaining_s if remaining_s is not None and remaining_s < _NO_DEADLINE_S else None
        )
        call = WriterServiceStub(writer.channel).ReadFeedback(
            ReadFeedbackRequest(export=request), timeout=timeout_s
        )
        try:
            async for response in call:
                yield response.exported
        except grpc.aio.AioRpcError as error:
            raise writer_error(error) from error
        finally:
            call.cancel()

    def _read(self, feedback: Feedback, route: IndexRoute, path: str) -> AnswerFeedback:
        try:
            answer = self._tokens.read(feedback.answer_token)
        except BadTokenError as error:
            raise InvalidFieldError(f"{path}.answer_token", str(error)) from error
        if answer.index_uid != route.uid:
            raise InvalidFieldError(
                f"{path}.answer_token",
                f"is of an answer from another index than {route.name!r}, or from one of that name "
                "that was dropped: name the index that was searched",
            )
        if len(feedback.principal.encode()) > MAX_PRINCIPAL_BYTES:
            raise InvalidFieldError(
                f"{path}.principal", f"has more than {MAX_PRINCIPAL_BYTES} bytes: send a digest"
            )
        _check_choices(feedback, answer, path)
        return AnswerFeedback(
            answer=answer,
            choices=feedback.choices,
            seen_count=feedback.seen_count or len(answer.hits),
            principal=feedback.principal,
        )


def _check_choices(feedback: Feedback, answer: ShownAnswer, path: str) -> None:
    shown = len(answer.hits)
    if feedback.seen_count > shown:
        raise InvalidFieldError(
            f"{path}.seen_count", f"is {feedback.seen_count}, but the token speaks of {shown} hits"
        )
    seen = feedback.seen_count or shown
    chosen: set[int] = set()
    for at, choice in enumerate(feedback.choices):
        where = f"{path}.choices[{at}]"
        if not 1 <= choice.rank <= seen:
            raise InvalidFieldError(
                f"{where}.rank", f"is {choice.rank}, but {seen} hits were seen: ranks count from 1"
            )
        if choice.rank in chosen:
            raise InvalidFieldError(f"{where}.rank", f"{choice.rank} stands there twice")
        chosen.add(choice.rank)
        dwell_s = choice.dwell.ToNanoseconds() / 1e9
        if not 0 <= dwell_s <= MAX_DWELL_S:
            raise InvalidFieldError(
                f"{where}.dwell", f"is {dwell_s:g} s; must be 0 to {MAX_DWELL_S:g}"
            )
