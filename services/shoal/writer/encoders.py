"""Which encoder encodes the next passages?

Of those that serve the model, the one with the fewest calls in flight. One that fails is left alone
for a moment and the call is made again to another, as long as the deadline allows: encoding is a
pure function. One whose model nobody knows yet may be asked, but what it makes is taken only if it
says that it is of the model that was asked for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import grpc
import numpy as np
from numpy.typing import NDArray
from shoal.internal.v1.encoder_pb2 import EncodeRequest, EncodeResponse, Purpose
from shoal.internal.v1.encoder_pb2_grpc import EncoderServiceStub
from shoal.internal.v1.topology_pb2 import Topology
from shoal.rpc.arrays import unpack_vectors
from shoal.rpc.channels import open_channel
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError, service_error_of
from shoal.v1.cluster_pb2 import Role
from shoal.v1.errors_pb2 import Reason
from shoal.writer.config import WriterSettings

if TYPE_CHECKING:
    # Only the type stubs have it.
    from shoal.internal.v1.encoder_pb2_grpc import EncoderServiceAsyncStub

_log = logging.getLogger(__name__)

# Seconds for which an encoder that failed is only called if no other is there; doubles each time.
FIRST_REST_S: Final = 0.1
LONGEST_REST_S: Final = 2.0
# Seconds after which encoders are looked at again while none can be called.
LOOK_AGAIN_S: Final = 0.1
# Another encoder, or the same one later, may do better.
_RETRIED: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
    }
)


@dataclass(frozen=True)
class Encoded:
    """Vectors, and the model that made them."""

    # Unit length, float32 [texts, dimension].
    vectors: NDArray[np.float32]
    # `name@fingerprint`.
    model: str


@dataclass
class _Encoder:
    address: str
    channel: grpc.aio.Channel
    # `name@fingerprint`; empty while it is not known.
    model: str = ""
    in_flight: int = 0
    failures: int = 0
    rests_until_s: float = 0.0
    stub: EncoderServiceAsyncStub = field(init=False)

    def __post_init__(self) -> None:
        self.stub = EncoderServiceStub(self.channel)

    def failed(self, delay_s: float | None) -> None:
        rest_s = min(FIRST_REST_S * 2**self.failures, LONGEST_REST_S)
        self.failures = min(self.failures + 1, 10)
        self.rests_until_s = time.monotonic() + max(rest_s, delay_s or 0.0)

    def succeeded(self) -> None:
        self.failures = 0
        self.rests_until_s = 0.0


class EncoderPool:
    """The encoders of the topology."""

    def __init__(self, settings: WriterSettings) -> None:
        """Empty until `follow` is called."""
        self._settings = settings
        self._encoders: dict[str, _Encoder] = {}
        # What new indexes are encoded with; empty while it is not known.
        self._default_model = ""
        # Models of all encoders in the topology, those too that have no address at the moment; ""
        # among them if one has not said yet what it serves.
        self._placed: frozenset[str] = frozenset()
        self._freed = asyncio.Event()
        # By model, when an encoder has answered last; "" for any of them.
        self._answered_at_s: dict[str, float] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def empty(self) -> bool:
        """True if the topology has no encoder."""
        return not self._encoders

    def follow(self, topology: Topology) -> None:
        """Use the encoders of a topology; calls under way to others are let finish."""
        self._default_model = topology.default_encoder_model
        placed = [each for each in topology.instances if each.role == Role.ROLE_ENCODER]
        self._placed = frozenset(each.model for each in placed)
        known = (*self._placed, "")
        self._answered_at_s = {
            model: at_s for model, at_s in self._answered_at_s.items() if model in known
        }
        wanted = {each.address: each.model for each in placed if each.address}
        for address in self._encoders.keys() - wanted.keys():
            self._close_later(self._encoders.pop(address))
        for address, model in wanted.items():
            if address not in self._encoders:
                self._encoders[address] = _Encoder(address, open_channel(address))
            self._encoders[address].model = model
        self._freed.set()

    def serves(self, model: str) -> bool:
        """True if an encoder is known to serve a model."""
        return any(each.model == model for each in self._encoders.values())

    async def close(self) -> None:
        """Close all channels."""
        for encoder in self._encoders.values():
            self._close_later(encoder)
        self._encoders.clear()
        await asyncio.gather(*self._closing)

    async def encode(self, texts: Sequence[str], deadline: Deadline, model: str = "") -> Encoded:
        """Encode passages, in calls of bounded size, several at once.

        model: that is to do it, `name@fingerprint`, and that the vectors are of; empty: that of new
        indexes, or while that is not known whichever is there, if there is only one.

        Takes as long as it takes while encoders of the model answer at all: a long document is a
        lot of work. Raises ServiceError: ENCODER_UNAVAILABLE once none of them has answered for
        `encoder_patience_s`, or the deadline has passed; MODEL_MISMATCH if all encoders that are
        placed serve other models, or two models answered where none was named.
        """
        assert texts
        size = self._settings.encode_batch
        batches = [texts[first : first + size] for first in range(0, len(texts), size)]
        tasks = [
            asyncio.create_task(self._encode_batch(batch, deadline, model)) for batch in batches
        ]
        try:
            parts = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        models = {part.model for part in parts}
        if len(models) > 1:
            raise ServiceError(
                Reason.REASON_MODEL_MISMATCH,
                f"encoders of different models answered: {', '.join(sorted(models))}. Give all "
                "encoders one bundle",
            )
        return Encoded(np.concatenate([part.vectors for part in parts]), models.pop())

    async def _encode_batch(self, texts: Sequence[str], deadline: Deadline, model: str) -> Encoded:
        last = self._why_none(model)
        begun_at_s = time.monotonic()
        while True:
            self._require_placed(model)
            encoder = await self._acquire(begun_at_s, deadline, model)
            if encoder is None:
                self._require_placed(model)  # They may have said so while it waited.
                raise ServiceError(
                    Reason.REASON_ENCODER_UNAVAILABLE,
                    f"no encoder answered in time ({last}). Send again what was not acknowledged",
                )
            try:
                response = await encoder.stub.Encode(
                    EncodeRequest(texts=texts, purpose=Purpose.PURPOSE_PASSAGE),
                    timeout=min(self._settings.encode_call_s, max(deadline.budget_s, 0.001)),
                )
            except grpc.aio.AioRpcError as error:
                if error.code() not in _RETRIED:
                    raise service_error_of(error) from error
                failure = service_error_of(error).failure
                encoder.failed(failure.retry_delay_s)
                last = f"{encoder.address} says: {failure.message}"
                _log.warning("encoder %s", last)
            else:
                encoder.succeeded()
                self._answered_at_s[response.model] = self._answered_at_s[""] = time.monotonic()
                if response.model == (model or self._default_model or response.model):
                    return _read(response, len(texts))
                # Nobody knew, or it has changed: it is not asked for this model again.
                encoder.model = response.model
                last = f"{encoder.address} serves {response.model}"
            finally:
                encoder.in_flight -= 1
                self._freed.set()

    def _suited(self, model: str) -> list[_Encoder]:
        """The encoders of a model; of those that nobody knows the model of, if there are none.

        Where nobody knows what new indexes are encoded with, those of the one model that there is.
        """
        encoders = list(self._encoders.values())
        wanted = model or self._default_model
        if not wanted and len(self._placed) == 1:
            return encoders
        suited = [each for each in encoders if each.model == wanted]
        return suited or [each for each in encoders if not each.model]

    def _why_none(self, model: str) -> str:
        if self.empty:
            return "there is none in the topology"
        wanted = model or self._default_model
        if self._suited(model):
            return "all are busy"
        return f"none that is there serves {wanted or 'what new indexes are encoded with'}"

    def _require_placed(self, model: str) -> None:
        """Raise MODEL_MISMATCH if every encoder is known to serve another model."""
        known = {each.model for each in self._encoders.values()}
        # Without an address, one is being started again, and may be of the model.
        if not model or not known or known & {model, ""} or model in self._placed:
            return
        raise ServiceError(
            Reason.REASON_MODEL_MISMATCH,
            f"no encoder serves {model}, but {' and '.join(sorted(known))}: give them the bundle "
            "that the index is encoded by, or write to a new index",
        )

    async def _acquire(self, begun_at_s: float, deadline: Deadline, model: str) -> _Encoder | None:
        """Wait for an encoder that has room. None if that took too long."""
        while not deadline.passed:
            now_s = time.monotonic()
            asked = model or self._default_model
            answered_at_s = max(begun_at_s, self._answered_at_s.get(asked, begun_at_s))
            if now_s - answered_at_s > self._settings.encoder_patience_s:
                return None
            free = [
                each
                for each in self._suited(model)
                if each.in_flight < self._settings.encode_calls and each.rests_until_s <= now_s
            ]
            if free:
                encoder = min(free, key=lambda each: each.in_flight)
                encoder.in_flight += 1
                return encoder
            self._freed.clear()
            try:
                async with asyncio.timeout(min(LOOK_AGAIN_S, deadline.budget_s)):
                    await self._freed.wait()
            except TimeoutError:
                continue
        return None

    def _close_later(self, encoder: _Encoder) -> None:
        task = asyncio.create_task(encoder.channel.close(self._settings.encode_call_s))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _read(response: EncodeResponse, count: int) -> Encoded:
    vectors = unpack_vectors(response.vectors, "vectors")
    if len(vectors) != count:
        raise ServiceError(
            Reason.REASON_INTERNAL, f"an encoder made {len(vectors)} vectors of {count} texts"
        )
    return Encoded(vectors, response.model)
