"""How is the writer given feedback, and asked for it?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from shoal.internal.v1.feedback_pb2 import (
    ReadFeedbackRequest,
    ReadFeedbackResponse,
    ReadSigningKeysRequest,
    ReadSigningKeysResponse,
    StoreFeedbackRequest,
    StoreFeedbackResponse,
)
from shoal.rpc.errors import ServiceError
from shoal.v1.errors_pb2 import Reason
from shoal.v1.feedback_pb2 import ExportFeedbackResponse, RecordFeedbackResponse
from shoal.writer.feedback_keys import FeedbackKeys
from shoal.writer.indexes import Indexes
from shoal.writer.validation import check_index_name

_Context = grpc.aio.ServicerContext[Any, Any]


class FeedbackHandlers:
    """The part of WriterService that is about feedback."""

    _indexes: Indexes
    _keys: FeedbackKeys

    def _refuse_while_draining(self) -> None:
        raise NotImplementedError

    async def StoreFeedback(
        self, request: StoreFeedbackRequest, context: _Context
    ) -> StoreFeedbackResponse:
        """Store feedback; the broker has checked it."""
        del context
        self._refuse_while_draining()
        check_index_name(request.index, "index")
        index = self._indexes.get(request.index)
        if index.entry.feedback_disabled:
            raise feedback_disabled(request.index)
        hash_of = await asyncio.to_thread(self._keys.hasher, index.entry.uid)
        recorded = await index.feedback.store(request.feedback, hash_of)
        return StoreFeedbackResponse(
            recorded=RecordFeedbackResponse(
                recorded_count=recorded, outdated_count=len(request.feedback) - recorded
            )
        )

    async def ReadFeedback(
        self, request: ReadFeedbackRequest, context: _Context
    ) -> AsyncIterator[ReadFeedbackResponse]:
        """Read the feedback on an index."""
        del context
        self._refuse_while_draining()
        check_index_name(request.export.index, "index")
        index = self._indexes.get(request.export.index)
        since_us = request.export.since.ToMicroseconds()
        async for records in index.feedback.read(since_us):
            yield ReadFeedbackResponse(exported=ExportFeedbackResponse(records=records))

    async def ReadSigningKeys(
        self, request: ReadSigningKeysRequest, context: _Context
    ) -> ReadSigningKeysResponse:
        """The keys of tokens."""
        del request, context
        return await asyncio.to_thread(self._keys.signing_keys)


def feedback_disabled(name: str) -> ServiceError:
    """What an index answers that takes no feedback."""
    return ServiceError(
        Reason.REASON_FEEDBACK_DISABLED,
        f"index {name!r} takes no feedback: do not send any, or have an operator allow it with "
        "UpdateIndex (`shoal index update INDEX --feedback`)",
    )
