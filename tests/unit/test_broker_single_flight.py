"""Do identical queries share one computation, each with its own deadline?"""

from __future__ import annotations

import asyncio

import pytest
from shoal.broker.single_flight import SingleFlight
from shoal.rpc.deadline import Deadline

PATIENCE = Deadline.after(3600.0)


class Computation:
    """Counts its runs; ends when it is let through."""

    def __init__(self) -> None:
        self.runs = 0
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.errors: list[Exception] = []

    async def __call__(self) -> int:
        self.runs += 1
        run = self.runs
        try:
            await self.gate.wait()
            await asyncio.sleep(0)  # A search never answers without a turn of the loop.
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.errors:
            raise self.errors.pop(0)
        return run


class Flights:
    """A SingleFlight with one computation."""

    def __init__(self) -> None:
        self.single: SingleFlight[int] = SingleFlight()
        self.computation = Computation()

    def run(self, deadline: Deadline = PATIENCE, key: str = "a") -> asyncio.Task[tuple[int, bool]]:
        return asyncio.create_task(self.single.run(key, self.computation, deadline))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def flights() -> Flights:
    return Flights()


async def test_one_computation_is_shared_while_it_runs_and_not_after(flights: Flights) -> None:
    tasks = [flights.run() for _ in range(3)]
    await turns()
    flights.computation.gate.set()
    assert await asyncio.gather(*tasks) == [(1, False), (1, True), (1, True)]
    assert await flights.run() == (2, False)


async def test_different_keys_do_not_share(flights: Flights) -> None:
    tasks = [flights.run(key=key) for key in "ab"]
    flights.computation.gate.set()
    assert await asyncio.gather(*tasks) == [(1, False), (2, False)]


async def test_when_the_leader_leaves_one_follower_computes_for_all(flights: Flights) -> None:
    leader, *followers = [flights.run() for _ in range(4)]
    await turns()
    leader.cancel()
    await turns()
    flights.computation.gate.set()
    assert await asyncio.gather(*followers) == [(2, False), (2, True), (2, True)]
    assert flights.computation.cancelled == 1


async def test_when_the_leader_runs_out_of_time_one_follower_computes_for_all(
    flights: Flights,
) -> None:
    """Not each for itself: that would be a stampede at the worst of times."""
    flights.computation.errors = [TimeoutError()]
    tasks = [flights.run() for _ in range(4)]
    await turns()
    flights.computation.gate.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[0], TimeoutError)
    assert found[1:] == [(2, False), (2, True), (2, True)]
    assert flights.computation.runs == 2


async def test_a_follower_with_less_time_leaves_alone(flights: Flights) -> None:
    leader = flights.run()
    await turns()
    with pytest.raises(TimeoutError):
        await flights.run(Deadline.after(0.01))
    assert not flights.computation.cancelled
    flights.computation.gate.set()
    assert await leader == (1, False)


async def test_a_computation_that_everybody_has_left_is_cancelled(flights: Flights) -> None:
    tasks = [flights.run() for _ in range(2)]
    await turns()
    for task in tasks:
        task.cancel()
    await turns()
    assert (flights.computation.runs, flights.computation.cancelled) == (1, 1)


async def test_who_comes_while_it_is_being_cancelled_computes_anew(flights: Flights) -> None:
    left = flights.run()
    await turns()
    left.cancel()
    await asyncio.sleep(0)  # It is told to stop, and has not yet.
    newcomer = flights.run()
    await turns()
    flights.computation.gate.set()
    assert await newcomer == (2, False)


async def test_errors_reach_everybody_whose_time_is_up(flights: Flights) -> None:
    flights.computation.errors = [ValueError("wrong")] * 9
    tasks = [flights.run() for _ in range(3)]
    await turns()
    flights.computation.gate.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, ValueError) for each in found)
