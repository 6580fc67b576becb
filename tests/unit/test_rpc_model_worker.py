"""Does one thread serve many callers: refusing, dropping, failing and draining as promised?

The model is a function that the test holds at a gate; threads and the event loop are real.
"""

import asyncio
import contextlib
import threading

import pytest
from shoal.rpc.batching import BatchBounds, Urgency
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.rpc.model_worker import ModelWorker, WorkerBounds
from shoal.v1.errors_pb2 import Reason

BOUNDS = WorkerBounds(
    urgent_batch=BatchBounds(100, 8, 100),
    bulk_batch=BatchBounds(20, 8, 100),
    urgent_queue_cost=100,
    bulk_queue_cost=100,
)


class Gate:
    """A model that doubles numbers, once the test lets it."""

    def __init__(self):
        self.open = threading.Event()
        self.entered = threading.Event()
        self.batches = []
        self.error = None

    def run(self, items):
        self.batches.append(list(items))
        self.entered.set()
        assert self.open.wait(30)
        if self.error:
            raise self.error
        return [item * 2 for item in items]


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
async def worker(gate):
    worker = ModelWorker("encoder", gate.run, BOUNDS, probe=0)
    worker.start()
    yield worker
    gate.open.set()
    await worker.stop()


def submit(worker, items, urgency=Urgency.URGENT, *, cost=1, budget_s=30.0):
    return asyncio.ensure_future(
        worker.submit(items, [cost] * len(items), urgency, Deadline.after(budget_s))
    )


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


async def held(worker, gate):
    """Have the model busy with an item, 0, until the gate opens."""
    call = submit(worker, [0])
    await until(gate.entered.is_set)
    return call


async def test_results_come_in_the_order_of_the_items(worker, gate):
    gate.open.set()
    costs = [19, 2, 17, 1, 12]
    items = list(range(5))
    assert await worker.submit(items, costs, Urgency.BULK, Deadline.after(30)) == [0, 2, 4, 6, 8]
    assert len(gate.batches) > 1
    assert await worker.submit([], [], Urgency.BULK, Deadline.after(30)) == []


async def test_what_waits_shares_a_batch_and_urgent_goes_first(worker, gate):
    calls = [await held(worker, gate)]
    calls.append(submit(worker, [10, 11], Urgency.BULK))
    calls.append(submit(worker, [20]))
    calls.append(submit(worker, [30]))
    await asyncio.sleep(0)
    gate.open.set()
    assert await asyncio.gather(*calls) == [[0], [20, 22], [40], [60]]
    assert gate.batches == [[0], [20, 30], [10, 11]]


async def test_too_much_is_refused_at_the_door_with_a_delay(worker, gate):
    first = await held(worker, gate)
    waiting = submit(worker, [1], Urgency.BULK, cost=90)
    await asyncio.sleep(0)
    with pytest.raises(ServiceError) as caught:
        await submit(worker, [2], Urgency.BULK, cost=11)
    assert caught.value.reason == Reason.REASON_OVERLOADED
    assert caught.value.failure.retry_delay_s > 0
    # The other lane has a bound of its own.
    urgent = submit(worker, [3], cost=90)
    gate.open.set()
    assert await asyncio.gather(first, waiting, urgent) == [[0], [2], [6]]


async def test_an_empty_lane_takes_a_call_of_any_cost(worker, gate):
    gate.open.set()
    assert await submit(worker, [1], Urgency.BULK, cost=100_000) == [2]


async def test_work_that_cannot_be_done_in_time_is_refused(worker, gate):
    first = await held(worker, gate)
    waiting = submit(worker, [1], cost=50)
    await asyncio.sleep(0)
    worker._speed.observe(10, 1.0)
    with pytest.raises(ServiceError) as caught:
        await submit(worker, [2], budget_s=1.0)
    assert caught.value.reason == Reason.REASON_OVERLOADED
    gate.open.set()
    await asyncio.gather(first, waiting)


async def test_the_work_of_a_caller_who_left_is_dropped(worker, gate):
    first = await held(worker, gate)
    leaving = submit(worker, [1])
    staying = submit(worker, [2])
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    gate.open.set()
    assert await asyncio.gather(first, staying) == [[0], [4]]
    assert gate.batches == [[0], [2]]


async def test_a_passed_deadline_drops_the_work(worker, gate):
    first = await held(worker, gate)
    with pytest.raises(TimeoutError):
        await submit(worker, [1], budget_s=0.01)
    gate.open.set()
    assert await first == [0]
    assert await submit(worker, [2]) == [4]
    assert [1] not in gate.batches


async def test_a_failing_model_fails_its_calls_and_the_worker_goes_on(worker, gate):
    gate.error = RuntimeError("no memory")
    gate.open.set()
    # Two batches' worth: the second is dropped once the first has failed the call.
    with pytest.raises(ServiceError, match="no memory") as caught:
        await submit(worker, list(range(8)), Urgency.BULK, cost=15)
    assert caught.value.reason == Reason.REASON_INTERNAL
    assert "no memory" in worker.problem
    assert "no memory" in worker.health()
    gate.error = None
    # Asking after its health is what has it tried again.
    await until(lambda: not worker.health())
    assert await submit(worker, [4]) == [8]


async def test_a_result_too_few_is_a_failure():
    worker = ModelWorker("encoder", lambda items: items[1:], BOUNDS, probe=0)
    worker.start()
    with pytest.raises(ServiceError, match="1 results for 2 items"):
        await submit(worker, [1, 2])
    await worker.stop()


async def test_draining_finishes_what_was_taken_and_refuses_the_rest(worker, gate):
    first = await held(worker, gate)
    draining = asyncio.ensure_future(worker.drain())
    await asyncio.sleep(0)
    with pytest.raises(ServiceError) as caught:
        await submit(worker, [1])
    assert caught.value.reason == Reason.REASON_DRAINING
    assert not draining.done()
    gate.open.set()
    await draining
    assert await first == [0]


async def test_stopping_fails_what_waits(worker, gate):
    first = await held(worker, gate)
    waiting = submit(worker, [1])
    await asyncio.sleep(0)
    stopping = asyncio.ensure_future(worker.stop())
    await until(lambda: worker._stopping)
    gate.open.set()
    await stopping
    with pytest.raises(ServiceError) as caught:
        await waiting
    assert caught.value.reason == Reason.REASON_DRAINING
    with contextlib.suppress(ServiceError):
        await first
    assert not worker._thread.is_alive()
