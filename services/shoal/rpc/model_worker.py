"""How does a model serve many callers at once without ever blocking the event loop?

One thread owns the model and takes batches from a queue; callers await their results. Work is
refused at the door when it could not be done in time, and dropped when its caller has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from shoal.rpc.batching import BatchBounds, BatchQueue, Urgency
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.v1.errors_pb2 import Reason

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

# How much the latest batch counts in the estimate of the model's speed.
_SPEED_WEIGHT: Final = 0.2
# Bounds of the delay that a refused caller is asked to wait, in seconds.
_SHORTEST_DELAY_S: Final = 0.05
_LONGEST_DELAY_S: Final = 5.0

# The first run of a model on a busy machine takes seconds.
_CHECK_BUDGET_S: Final = 60.0


@dataclass(frozen=True)
class WorkerBounds:
    """How much a worker takes on."""

    urgent_batch: BatchBounds
    bulk_batch: BatchBounds
    # Cost that may wait in each lane. A single call is let in whatever it costs if its lane is
    # empty, as it could never be served otherwise.
    urgent_queue_cost: int
    bulk_queue_cost: int


@dataclass(eq=False)
class _Call(Generic[Result]):
    future: asyncio.Future[list[Result]]
    results: list[Result | None]
    remaining: int
    abandoned: bool = False


@dataclass(eq=False)
class _Entry(Generic[Item, Result]):
    item: Item
    cost: int
    position: int
    call: _Call[Result]

    @property
    def abandoned(self) -> bool:
        return self.call.abandoned


@dataclass
class _Speed:
    """Cost that the model works off in a second, as a moving average."""

    cost_per_s: float = 0.0

    def observe(self, cost: int, elapsed_s: float) -> None:
        latest = cost / max(elapsed_s, 1e-6)
        weight = _SPEED_WEIGHT if self.cost_per_s else 1.0
        self.cost_per_s += weight * (latest - self.cost_per_s)

    def time_for_s(self, cost: int) -> float:
        return cost / self.cost_per_s if self.cost_per_s else 0.0


@dataclass
class ModelWorker(Generic[Item, Result]):
    """A thread that runs a model on batches.

    `run` is called in that thread with the items of a batch, and returns a result for each. What it
    raises fails the calls of that batch with INTERNAL, and the worker goes on.
    """

    name: str
    run: Callable[[list[Item]], Sequence[Result]]
    bounds: WorkerBounds
    # A small item, to see with whether the model works.
    probe: Item
    # What the model last failed with. Empty once a batch has succeeded since.
    problem: str = ""
    _speed: _Speed = field(default_factory=_Speed)
    _wake: threading.Condition = field(default_factory=threading.Condition)
    _active: int = 0
    _draining: bool = False
    _stopping: bool = False

    def __post_init__(self) -> None:
        self._queue: BatchQueue[_Entry[Item, Result]] = BatchQueue(
            self.bounds.urgent_batch, self.bounds.bulk_batch
        )
        self._thread: threading.Thread | None = None
        self._probing: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def start(self) -> None:
        """Start the thread. To be called where the event loop runs."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
        self._thread.start()

    async def start_and_check(self) -> None:
        """Start, and return once the model has run.

        Raises ServiceError if it fails; the thread is gone again then.
        """
        self.start()
        try:
            await self.check()
        except BaseException:
            await self.stop()
            raise

    async def drain(self) -> None:
        """Refuse what is new; return when what was taken is done."""
        self._draining = True
        await self._idle.wait()

    async def stop(self) -> None:
        """End the thread, after the batch that it is running. What still waits fails."""
        self._draining = True
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        if self._probing is not None:
            self._probing.cancel()
        for entry in self._queue.clear():
            _fail(entry.call, _draining_error(self.name))

    async def check(self) -> None:
        """Run the model on the probe. Raises ServiceError if it fails."""
        await self.submit([self.probe], [1], Urgency.URGENT, Deadline.after(_CHECK_BUDGET_S))

    def health(self) -> str:
        """What the model last failed with, or an empty string.

        Costs nothing until there is a failure; then each call sees to it that the model is tried
        again, since nobody sends work to one that says it is ill.
        """
        if self.problem and (self._probing is None or self._probing.done()) and not self._draining:
            self._probing = self._loop.create_task(self._probe())
        return self.problem

    async def _probe(self) -> None:
        # What it fails with is in `problem` and in the log.
        with contextlib.suppress(ServiceError, TimeoutError):
            await self.check()

    async def submit(
        self, items: Sequence[Item], costs: Sequence[int], urgency: Urgency, deadline: Deadline
    ) -> list[Result]:
        """Run the model on items; return their results in order.

        Raises ServiceError (OVERLOADED, DRAINING, INTERNAL), or TimeoutError once the deadline has
        passed.
        """
        assert len(items) == len(costs)
        if self._draining:
            raise _draining_error(self.name)
        if not items:
            return []
        call: _Call[Result] = _Call(
            asyncio.get_running_loop().create_future(), [None] * len(items), len(items)
        )
        entries = [
            _Entry(item, cost, position, call)
            for position, (item, cost) in enumerate(zip(items, costs, strict=True))
        ]
        with self._wake:
            self._admit(sum(costs), urgency, deadline)
            self._queue.push(urgency, entries)
            self._wake.notify()
        return await self._result_of(call, urgency, deadline)

    async def _result_of(
        self, call: _Call[Result], urgency: Urgency, deadline: Deadline
    ) -> list[Result]:
        self._active += 1
        self._idle.clear()
        try:
            async with deadline.timeout():
                return await call.future
        finally:
            if call.remaining:
                call.abandoned = True
                with self._wake:
                    self._queue.drop_abandoned(urgency)
            self._active -= 1
            if not self._active:
                self._idle.set()

    def _admit(self, cost: int, urgency: Urgency, deadline: Deadline) -> None:
        waiting = self._queue.cost(urgency)
        urgent = urgency is Urgency.URGENT
        bound = self.bounds.urgent_queue_cost if urgent else self.bounds.bulk_queue_cost
        ahead = waiting if urgent else waiting + self._queue.cost(Urgency.URGENT)
        wait_s = self._speed.time_for_s(ahead)
        if waiting and (waiting + cost > bound or wait_s > deadline.budget_s):
            raise ServiceError(
                Reason.REASON_OVERLOADED,
                f"the {self.name} has about {wait_s:.2f} s of work waiting: come back later, or "
                "ask another one",
                retry_delay_s=min(_LONGEST_DELAY_S, max(_SHORTEST_DELAY_S, wait_s)),
            )

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._stopping and not len(self._queue):
                    self._wake.wait()
                if self._stopping:
                    return
                batch = self._queue.take()
            if batch:
                self._run(batch)

    def _run(self, batch: list[_Entry[Item, Result]]) -> None:
        started_s = time.perf_counter()
        error: ServiceError | None = None
        results: Sequence[Result] = ()
        try:
            results = self.run([entry.item for entry in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except Exception as failure:  # noqa: BLE001  # whatever it is, the next batch may do
            _log.exception("the %s failed on a batch of %d", self.name, len(batch))
            self.problem = f"the model failed: {type(failure).__name__}: {failure}"
            error = ServiceError(Reason.REASON_INTERNAL, f"the {self.name}: {self.problem}")
        else:
            self.problem = ""
            padded_cost = max(entry.cost for entry in batch) * len(batch)
            self._speed.observe(padded_cost, time.perf_counter() - started_s)
        # The loop is closed if the process gave up waiting for a drain.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_deliver, batch, results, error)


def _deliver(
    batch: list[_Entry[Item, Result]], results: Sequence[Result], error: ServiceError | None
) -> None:
    """Hand the results of a batch to their callers. Runs on the event loop."""
    if error is not None:
        for entry in batch:
            _fail(entry.call, error)
        return
    for entry, result in zip(batch, results, strict=True):
        call = entry.call
        call.results[entry.position] = result
        call.remaining -= 1
        if call.remaining == 0 and not call.future.done():
            # Every position is filled now.
            call.future.set_result(call.results)  # type: ignore[arg-type]


def _fail(call: _Call[Result], error: ServiceError) -> None:
    if not call.future.done():
        call.future.set_exception(error)


def _draining_error(name: str) -> ServiceError:
    return ServiceError(Reason.REASON_DRAINING, f"the {name} is draining: ask another one")
