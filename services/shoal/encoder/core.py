"""How do texts of many callers become vectors?

They wait in two lanes, queries ahead of passages, for the one thread that runs the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.encoder.backend import Backend
from shoal.encoder.config import EncoderSettings
from shoal.internal.v1.encoder_pb2 import Purpose
from shoal.rpc.batching import BatchBounds, Urgency
from shoal.rpc.deadline import Deadline
from shoal.rpc.model_worker import ModelWorker, WorkerBounds

_LANES: Final = {Purpose.PURPOSE_QUERY: Urgency.URGENT, Purpose.PURPOSE_PASSAGE: Urgency.BULK}

# Counting the tokens of so many characters takes no longer than handing them to another thread
# does, about 60 microseconds. More of them are counted off the event loop.
_COUNTED_IN_PLACE_CHARS: Final = 512

_Item = tuple[str, Purpose.ValueType]


class EncoderCore:
    """Encodes texts with one model."""

    def __init__(self, backend: Backend, settings: EncoderSettings) -> None:
        """Takes over the backend; `start` starts the thread that runs it."""
        self.backend = backend
        self._worker: ModelWorker[_Item, NDArray[np.float32]] = ModelWorker(
            "encoder",
            self._run,
            WorkerBounds(
                urgent_batch=_bounds(settings.query_batch_tokens, settings),
                bulk_batch=_bounds(settings.passage_batch_tokens, settings),
                urgent_queue_cost=settings.query_queue_tokens,
                bulk_queue_cost=settings.passage_queue_tokens,
            ),
            probe=("", Purpose.PURPOSE_QUERY),
        )

    async def start(self) -> None:
        """Start the model's thread; return when the model has encoded something."""
        await self._worker.start_and_check()

    async def drain(self) -> None:
        """Take nothing new; return when what was taken is encoded."""
        await self._worker.drain()

    async def stop(self) -> None:
        """End the model's thread."""
        await self._worker.stop()

    @property
    def problem(self) -> str:
        """Why the model cannot encode; empty if it can. After a failure it is tried again."""
        return self._worker.health()

    async def encode(
        self, texts: Sequence[str], purpose: Purpose.ValueType, deadline: Deadline
    ) -> NDArray[np.float32]:
        """Unit vectors of the texts: float32 [count, dimension].

        Raises ServiceError (OVERLOADED, DRAINING, INTERNAL), or TimeoutError once the deadline has
        passed.
        """
        if sum(map(len, texts)) <= _COUNTED_IN_PLACE_CHARS:
            costs = self.backend.costs(texts)
        else:
            costs = await asyncio.to_thread(self.backend.costs, texts)
        items = [(text, purpose) for text in texts]
        rows = await self._worker.submit(items, costs, _LANES[purpose], deadline)
        return np.stack(rows)

    def _run(self, items: list[_Item]) -> list[NDArray[np.float32]]:
        # A lane has one purpose, so a batch has too.
        purpose = items[0][1]
        return list(self.backend.encode([text for text, _ in items], purpose))


def _bounds(batch_tokens: int, settings: EncoderSettings) -> BatchBounds:
    return BatchBounds(batch_tokens, settings.batch_texts, settings.run_tokens)
