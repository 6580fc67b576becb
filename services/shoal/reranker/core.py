"""How do the pairs of many questions become scores?

They wait in one queue for the one thread that runs the model, and share its batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.reranker.backend import Backend, Pair
from shoal.reranker.config import RerankerSettings
from shoal.rpc.batching import BatchBounds, Urgency
from shoal.rpc.deadline import Deadline
from shoal.rpc.model_worker import ModelWorker, WorkerBounds

# Counting the tokens of so many characters takes no longer than handing them to another thread
# does, about 60 microseconds. More of them are counted off the event loop.
_COUNTED_IN_PLACE_CHARS: Final = 512


@dataclass(frozen=True)
class Question:
    """A question and its candidates."""

    query: str
    passages: Sequence[str]
    # float32, one a passage.
    dense_scores: NDArray[np.float32]
    # Of the passages with one another, float32 [count, count]; None if they are not known.
    similarities: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Scores:
    """Of one question's passages: float32, one a passage, higher is better."""

    # NaN for a passage that was not read.
    rerank: NDArray[np.float32]
    # Blended with the other scores: what to order by.
    blended: NDArray[np.float32]


class RerankerCore:
    """Scores pairs with one model."""

    def __init__(self, backend: Backend, settings: RerankerSettings) -> None:
        """Takes over the backend; `start` starts the thread that runs it."""
        self.backend = backend
        batch = BatchBounds(settings.batch_tokens, settings.batch_pairs, settings.run_tokens)
        self._worker: ModelWorker[Pair, np.float32] = ModelWorker(
            "reranker",
            lambda pairs: list(backend.score(pairs)),
            # Somebody waits for every pair: there is no bulk work.
            WorkerBounds(batch, batch, settings.queue_tokens, settings.queue_tokens),
            probe=("", ""),
        )

    async def start(self) -> None:
        """Start the model's thread; return when the model has scored something."""
        await self._worker.start_and_check()

    async def drain(self) -> None:
        """Take nothing new; return when what was taken is scored."""
        await self._worker.drain()

    async def stop(self) -> None:
        """End the model's thread."""
        await self._worker.stop()

    @property
    def problem(self) -> str:
        """Why the model cannot score; empty if it can. After a failure it is tried again."""
        return self._worker.health()

    async def rerank(self, questions: Sequence[Question], deadline: Deadline) -> list[Scores]:
        """Score the passages of each question.

        Raises ServiceError (OVERLOADED, DRAINING, INTERNAL), or TimeoutError once the deadline has
        passed.
        """
        readable = [self.backend.readable(each.dense_scores) for each in questions]
        pairs = [
            (each.query, each.passages[at])
            for each, places in zip(questions, readable, strict=True)
            for at in places.tolist()
        ]
        if sum(len(query) + len(passage) for query, passage in pairs) <= _COUNTED_IN_PLACE_CHARS:
            costs = self.backend.costs(pairs)
        else:
            costs = await asyncio.to_thread(self.backend.costs, pairs)
        scored = await self._worker.submit(pairs, costs, Urgency.URGENT, deadline)
        flat = np.array(scored, dtype=np.float32)
        ends = np.cumsum([len(places) for places in readable])
        spread = [
            _spread(read, places, len(each.passages))
            for each, places, read in zip(
                questions, readable, np.split(flat, ends[:-1]), strict=True
            )
        ]
        return [
            Scores(rerank, self.backend.blend(rerank, each.dense_scores, each.similarities))
            for each, rerank in zip(questions, spread, strict=True)
        ]


def _spread(
    scores: NDArray[np.float32], places: NDArray[np.intp], count: int
) -> NDArray[np.float32]:
    """Scores of some of `count` passages at their places; NaN at all others."""
    spread = np.full(count, np.nan, dtype=np.float32)
    spread[places] = scores
    return spread
