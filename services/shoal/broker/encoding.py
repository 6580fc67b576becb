"""How does the text of a query become its vector?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shoal.broker.coalesce import Coalescer
from shoal.broker.targets import Target, Targets
from shoal.internal.v1.encoder_pb2 import EncodeRequest, EncodeResponse, Purpose
from shoal.internal.v1.encoder_pb2_grpc import EncoderServiceStub
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.v1.errors_pb2 import Reason

# What the caller can do something about.
_PASSED_ON: Final = (Reason.REASON_INVALID_FIELD, Reason.REASON_OVERLOADED)


@dataclass(frozen=True)
class QueryVector:
    """A query's vector and the model that made it."""

    values: bytes
    """Little-endian float32, unit length."""
    model: str


class EncodeStage:
    """Sends queries to the encoders, many in a call."""

    def __init__(self, targets: Targets, max_count: int) -> None:
        """max_count: most queries in one call."""
        self._targets, self._max_count = targets, max_count

    async def encode(
        self, text: str, deadline: Deadline, encoders: Sequence[str] | None = None
    ) -> QueryVector:
        """Encode a query.

        encoders: ids of those that may; None: any.
        Raises ENCODER_UNAVAILABLE if no encoder does it in time, OVERLOADED if all have too much.
        """
        try:
            _, vector = await self._targets.first_to_do(
                lambda target: self._coalescer(target).submit(text, deadline),
                deadline,
                lambda: self._present(encoders),
            )
        except (TimeoutError, ServiceError) as error:
            if isinstance(error, ServiceError) and error.reason in _PASSED_ON:
                raise
            raise ServiceError(
                Reason.REASON_ENCODER_UNAVAILABLE,
                f"no encoder answered in time ({str(error) or 'there is none'}): try again, or "
                f"allow more time",
            ) from error
        return vector

    def is_away(self, encoders: Sequence[str] | None) -> bool:
        """True if there is none to ask, or none has answered for a while.

        encoders: ids of those that may; None: any.
        """
        ids, now_s = self._present(encoders), time.monotonic()
        known = self._targets.all() if ids is None else map(self._targets.get, ids)
        return all(target is None or target.health.shunned(now_s) for target in known)

    def _present(self, encoders: Sequence[str] | None) -> Sequence[str] | None:
        """Those that have not left; once all have, whoever has come for them is among all."""
        if not encoders:
            return encoders
        return [each for each in encoders if self._targets.get(each) is not None] or None

    def _coalescer(self, target: Target) -> Coalescer[str, QueryVector]:
        if "encode" not in target.coalescers:

            async def call(texts: Sequence[str], budget_s: float) -> list[QueryVector]:
                return await _encode(target, texts, budget_s)

            target.coalescers["encode"] = Coalescer(call, max_count=self._max_count)
        return target.coalescers["encode"]


async def _encode(target: Target, texts: Sequence[str], budget_s: float) -> list[QueryVector]:
    request = EncodeRequest(texts=texts, purpose=Purpose.PURPOSE_QUERY)
    stub = EncoderServiceStub(target.channel)
    response: EncodeResponse = await target.call(lambda: stub.Encode(request, timeout=budget_s))
    values, row_bytes = response.vectors.values, response.vectors.dimension * 4
    return [
        QueryVector(values[start : start + row_bytes], response.model)
        for start in range(0, len(texts) * row_bytes, row_bytes)
    ]
