"""Steady traffic, and a record of what each query got."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal.client import AsyncClient, ShoalError


@dataclass(frozen=True)
class Outcome:
    """What one query got."""

    sent_s: float
    done_s: float
    error: str = ""
    complete: bool = True


@dataclass
class Traffic:
    """Queries at a fixed rate, whether or not the earlier ones are answered."""

    endpoint: str
    index: str
    questions: Sequence[str]
    rate: float = 20.0
    deadline_s: float = 15.0
    outcomes: list[Outcome] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Send until stopped, then wait for the answers."""
        start_s, number = time.monotonic(), 0
        async with AsyncClient(self.endpoint) as client, asyncio.TaskGroup() as group:
            while not self._stop.is_set():
                group.create_task(self._ask(client, number))
                number += 1
                await asyncio.sleep(max(0.0, start_s + number / self.rate - time.monotonic()))

    def stop(self) -> None:
        """Send no more."""
        self._stop.set()

    async def _ask(self, client: AsyncClient, number: int) -> None:
        sent_s = time.monotonic()
        error, complete = "", True
        # Different from one to the next, so that the cache does not answer them all.
        question = f"{self.questions[number % len(self.questions)]} {number}"
        try:
            response = await client.search(
                self.index, question, candidate_count=2, timeout_s=self.deadline_s
            )
            complete = response.coverage.complete
        except ShoalError as failure:
            error = f"{failure.code.name}: {failure}"
        self.outcomes.append(Outcome(sent_s, time.monotonic(), error, complete))

    def statement(self, what: str) -> str:
        """Say how many queries failed or were incomplete, and for how long."""
        failed = [each for each in self.outcomes if each.error]
        partial = [each for each in self.outcomes if not each.error and not each.complete]
        slowest_s = max((each.done_s - each.sent_s for each in self.outcomes), default=0.0)
        return (
            f"{what}: of {len(self.outcomes)} queries {len(failed)} failed"
            f"{_for_how_long(failed)}, {len(partial)} were incomplete{_for_how_long(partial)}; "
            f"the slowest answer took {slowest_s:.1f} s"
        )


def _for_how_long(outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return ""
    first_s = min(each.sent_s for each in outcomes)
    last_s = max(each.sent_s for each in outcomes)
    return f" (sent within {last_s - first_s:.1f} s)"
