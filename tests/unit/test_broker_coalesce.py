"""Do queries share calls without getting in each other's way?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from shoal.broker.coalesce import Coalescer
from shoal.rpc.deadline import Deadline

PATIENCE = Deadline.after(3600.0)


class Calls:
    """A target whose answers are let through by hand."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.budgets_s: list[float] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None
        self.failing = 0
        self.cancelled = 0

    async def __call__(self, items: Sequence[int], budget_s: float) -> list[int]:
        self.batches.append(list(items))
        self.budgets_s.append(budget_s)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None and self.failing in items:
            raise self.error
        return [item * 10 for item in items]


async def turns(count: int = 5) -> None:
    """Let everything run that can."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def calls() -> Calls:
    return Calls()


def submit(
    coalescer: Coalescer[int, int], item: int, deadline: Deadline = PATIENCE
) -> asyncio.Task[int]:
    return asyncio.create_task(coalescer.submit(item, deadline))


async def test_what_arrives_during_a_call_shares_the_next(calls: Calls) -> None:
    coalescer = Coalescer(calls, max_count=3)
    tasks = [submit(coalescer, item) for item in range(6)]
    await turns()
    assert calls.batches == [[0]]
    calls.gate.set()
    assert await asyncio.gather(*tasks) == [0, 10, 20, 30, 40, 50]
    assert calls.batches == [[0], [1, 2, 3], [4, 5]]


async def test_an_idle_target_is_called_at_once(calls: Calls) -> None:
    coalescer = Coalescer(calls, max_count=3)
    calls.gate.set()
    assert [await coalescer.submit(item, PATIENCE) for item in range(3)] == [0, 10, 20]
    assert calls.batches == [[0], [1], [2]]


async def test_several_calls_may_be_in_flight(calls: Calls) -> None:
    coalescer = Coalescer(calls, max_count=3, max_in_flight=2)
    tasks = [submit(coalescer, item) for item in range(4)]
    await turns()
    assert calls.batches == [[0], [1]]
    calls.gate.set()
    await asyncio.gather(*tasks)
    assert calls.batches == [[0], [1], [2, 3]]


async def test_one_that_leaves_does_not_disturb_the_others(calls: Calls) -> None:
    coalescer = Coalescer(calls, max_count=8)
    tasks = [submit(coalescer, item) for item in range(4)]
    await turns()
    tasks[2].cancel()  # Still in the queue.
    await turns()
    calls.gate.set()
    assert await asyncio.gather(*tasks[:2], tasks[3]) == [0, 10, 30]
    assert calls.batches == [[0], [1, 3]]
    assert not calls.cancelled


async def test_a_call_goes_on_while_somebody_waits_for_it(calls: Calls) -> None:
    coalescer = Coalescer(calls, max_count=8)
    calls.gate.set()
    first = submit(coalescer, 0)
    others = [submit(coalescer, item) for item in (1, 2)]
    calls.gate.clear()
    await turns()
    calls.gate.set()
    await first
    calls.gate.clear()
    await turns()
    assert calls.batches[-1] == [1, 2]
    others[0].cancel()
    await turns()
    assert not calls.cancelled
    calls.gate.set()
    assert await others[1] == 20


async def test_a_call_that_everybody_has_left_is_cancelled_and_the_next_goes_out(
    calls: Calls,
) -> None:
    coalescer = Coalescer(calls, max_count=1)
    left, waiting = submit(coalescer, 0), submit(coalescer, 1)
    await turns()
    left.cancel()
    await turns()
    assert calls.cancelled == 1
    calls.gate.set()
    assert await waiting == 10


async def test_each_keeps_its_own_deadline_and_the_call_has_the_latest(calls: Calls) -> None:
    coalescer = Coalescer(calls, max_count=8)
    first = submit(coalescer, 0)
    await turns()
    hurried, patient = submit(coalescer, 1, Deadline.after(0.01)), submit(coalescer, 2)
    first.cancel()
    await turns()
    assert calls.batches[-1] == [1, 2]
    assert calls.budgets_s[-1] > 1000
    with pytest.raises(TimeoutError):
        await hurried
    assert calls.cancelled == 1  # The first one's call only.
    calls.gate.set()
    assert await patient == 20


async def test_one_whose_deadline_passes_in_the_queue_is_not_called_for(calls: Calls) -> None:
    coalescer = Coalescer(calls, max_count=8)
    first = submit(coalescer, 0)
    await turns()
    with pytest.raises(TimeoutError):
        await submit(coalescer, 1, Deadline.after(0.01))
    calls.gate.set()
    assert await first == 0
    await turns()
    assert calls.batches == [[0]]


async def test_a_failure_reaches_every_member_and_no_other(calls: Calls) -> None:
    coalescer = Coalescer(calls, max_count=2)
    first = submit(coalescer, 0)
    tasks = [submit(coalescer, item) for item in range(1, 4)]
    await turns()
    calls.error, calls.failing = ValueError("out of order"), 1
    calls.gate.set()
    assert await first == 0
    found = await asyncio.gather(*tasks[:2], return_exceptions=True)
    assert [repr(each) for each in found] == ["ValueError('out of order')"] * 2
    assert await tasks[2] == 30
    assert await coalescer.submit(7, PATIENCE) == 70


async def test_the_next_call_begins_before_the_members_of_the_last_go_on(calls: Calls) -> None:
    """They keep the event loop busy, and the target would have nothing to do meanwhile."""
    coalescer = Coalescer(calls, max_count=2)
    under_way_then = []

    async def submit_and_look() -> None:
        await coalescer.submit(0, PATIENCE)
        under_way_then.append(len(calls.batches))

    first = asyncio.create_task(submit_and_look())
    rest = [submit(coalescer, item) for item in range(1, 3)]
    await turns()
    calls.gate.set()
    await first
    assert under_way_then == [2]
    await asyncio.gather(*rest)
