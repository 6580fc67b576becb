"""How does the encoder answer calls? Check, encode, answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc
from shoal.encoder.backend import Backend
from shoal.encoder.bundled import load_backend
from shoal.encoder.config import EncoderSettings
from shoal.encoder.core import EncoderCore
from shoal.internal.v1.encoder_pb2 import DESCRIPTOR, EncodeRequest, EncodeResponse, Purpose
from shoal.internal.v1.encoder_pb2_grpc import (
    EncoderServiceServicer,
    add_EncoderServiceServicer_to_server,
)
from shoal.internal.v1.topology_pb2 import PublishTopologyResponse
from shoal.rpc.arrays import pack_vectors
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.rpc.topology import TopologyFollower
from shoal.v1.errors_pb2 import Reason

MAX_TEXT_COUNT: Final = 1_024
# A document's text may be as long, and a passage is no longer than its document and title.
MAX_TEXT_BYTES: Final = (1 << 20) + 8_192

_PURPOSES: Final = frozenset({Purpose.PURPOSE_QUERY, Purpose.PURPOSE_PASSAGE})


class EncoderService(EncoderServiceServicer):
    """Serves EncoderService with one bundle."""

    def __init__(
        self,
        settings: EncoderSettings,
        instance_id: str = "",
        load: Callable[[EncoderSettings], Backend] = load_backend,
    ) -> None:
        """load: makes the model from the settings; called at the start, in a thread."""
        self.follower = TopologyFollower(instance_id, describe=self._describe)
        self._settings = settings
        self._load = load
        self._core: EncoderCore | None = None

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the handlers to a server."""
        add_EncoderServiceServicer_to_server(self, server)
        return [DESCRIPTOR.services_by_name["EncoderService"].full_name]

    async def start(self) -> None:
        """Load the bundle and run it once. Raises what the bundle is refused with."""
        backend = await asyncio.to_thread(self._load, self._settings)
        core = EncoderCore(backend, self._settings)
        await core.start()
        self._core = core

    async def drain(self) -> None:
        """Take nothing new; return when what was taken is encoded."""
        if self._core is not None:
            await self._core.drain()

    async def stop(self) -> None:
        """End the model's thread and let go of the model."""
        if self._core is not None:
            await self._core.stop()
            self._core = None

    async def Encode(
        self, request: EncodeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> EncodeResponse:
        """Encode texts, in the order given."""
        core = self._core
        if core is None:
            raise ServiceError(Reason.REASON_NOT_READY, "the encoder has no model: ask another one")
        _check(request)
        vectors = await core.encode(request.texts, request.purpose, Deadline.of(context))
        return EncodeResponse(vectors=pack_vectors(vectors), model=core.backend.model)

    def _describe(self, response: PublishTopologyResponse) -> None:
        if self._core is not None:
            response.model = self._core.backend.model
            response.dimension = self._core.backend.dimension
            response.problem = self._core.problem


def _check(request: EncodeRequest) -> None:
    if request.purpose not in _PURPOSES:
        raise InvalidFieldError("purpose", "must be PURPOSE_QUERY or PURPOSE_PASSAGE")
    if not 1 <= len(request.texts) <= MAX_TEXT_COUNT:
        raise InvalidFieldError("texts", f"must be 1 to {MAX_TEXT_COUNT}, not {len(request.texts)}")
    for at, text in enumerate(request.texts):
        # Only a text that might be too long is encoded to be measured.
        if len(text) * 4 > MAX_TEXT_BYTES and len(text.encode()) > MAX_TEXT_BYTES:
            raise InvalidFieldError(f"texts[{at}]", f"is longer than {MAX_TEXT_BYTES} bytes")
