"""How are the passages of an index encoded by another model, and how far is that?

    plan ──> encode rows, several ranges at once ──> the writer takes the vectors ──┐
      ^                                                                             │
      └───────────── passages that were written meanwhile, without ────────────────┘

The first round encodes nearly everything. From the moment that the writer takes the vectors nothing
is written without, so that a second round, which is short, leaves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from shoal.cluster.steps import StepFailedError, StepRunner
from shoal.v1.indexes_pb2 import BuildProgress
from shoal.writer.encoding_job import EncodingJob, EncodingProgress, RowRange

# Part of a build's time that this takes: to encode a passage takes a core some 15 ms, to train and
# to make codes of its vector well below one.
PASSAGES_PART: Final = 0.95
# Each round leaves what was written during it: more than a few say that something is wrong.
_MAX_ROUNDS: Final = 20


class PassageEncoding:
    """The encoding of one index's passages, for one build."""

    def __init__(
        self,
        job: EncodingJob,
        runner: StepRunner,
        slots: asyncio.Semaphore,
        clock: Callable[[], float],
    ) -> None:
        """slots: as many steps as may run at once."""
        self._job, self._runner, self._slots, self._clock = job, runner, slots, clock
        self._to_encode = 0
        self._begun_s: float | None = None
        self.done = False
        """Whether every passage has a vector of the model."""

    async def run(self, adopt: Callable[[], Awaitable[int]]) -> None:
        """Encode whatever is not encoded. Raises StepFailedError.

        adopt: has the writer take what was encoded; says how many passages have no vector yet.
        """
        for _ in range(_MAX_ROUNDS):
            ranges: list[RowRange] = await self._runner.run_step("plan_encoding", self._job)
            if self._begun_s is None:
                self._begun_s = self._clock()
            self._to_encode += sum(each.count for each in ranges)
            await self._encode(ranges)
            if await adopt() == 0:
                self.done = True
                return
        raise StepFailedError(
            f"passages are still without a vector of {self._job.model} after {_MAX_ROUNDS} rounds"
        )

    async def _encode(self, ranges: list[RowRange]) -> None:
        """Encode some ranges. If one fails no other is begun, and those that run are waited for."""
        failures: list[StepFailedError] = []

        async def encode(rows: RowRange) -> None:
            async with self._slots:
                if failures:
                    return
                try:
                    await self._runner.run_step("encode_rows", self._job, rows)
                except StepFailedError as error:
                    failures.append(error)

        await asyncio.gather(*(encode(rows) for rows in ranges))
        if failures:
            raise failures[0]

    def progress(self) -> BuildProgress:
        """How far it is. Blocks: reads small files."""
        if self._begun_s is None:
            return BuildProgress(stage="looking for passages to encode")
        done, _ = EncodingProgress.read_all(Path(self._job.progress_folder))
        done, total = min(done, self._to_encode), self._to_encode
        per_s = done / max(self._clock() - self._begun_s, 1e-3)
        stage = f"encoding passages by {self._job.model}: {done:,} of {total:,}, {per_s:.0f}/s"
        if done >= total:
            stage = "writing vectors into the table"
        return BuildProgress(
            stage=stage,
            done=PASSAGES_PART * done / max(1, total),
            passages_encoded=done,
            passages_to_encode=total,
            passages_per_s=per_s,
        )
