"""Does a budget shrink with the clock, and never below nothing? The clock is scripted."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.rpc.deadline import DEFAULT_BUDGET_S, Deadline


class Clock:
    def __init__(self, now_s=100.0):
        self.now_s = now_s

    def __call__(self):
        return self.now_s


class Context:
    """A call with so much time left."""

    def __init__(self, remaining_s):
        self._remaining_s = remaining_s

    def time_remaining(self):
        return self._remaining_s


def test_a_budget_shrinks_and_ends_at_nothing():
    clock = Clock()
    deadline = Deadline.after(2.0, clock)
    assert deadline.budget_s == 2.0
    clock.now_s += 1.5
    assert deadline.budget_s == pytest.approx(0.5)
    assert not deadline.passed
    clock.now_s += 9
    assert deadline.budget_s == 0.0
    assert deadline.passed


@settings(deadline=None)
@given(st.floats(0, 1e4), st.floats(0, 1), st.floats(0, 1e4))
def test_a_share_never_outlasts_the_whole(budget_s, fraction, elapsed_s):
    clock = Clock()
    deadline = Deadline.after(budget_s, clock)
    clock.now_s += elapsed_s
    share = deadline.share(fraction)
    assert 0.0 <= share.budget_s <= deadline.budget_s + 1e-6
    assert share.budget_s == pytest.approx(deadline.budget_s * fraction, abs=1e-6)


@pytest.mark.parametrize("remaining_s", [None, 86_401.0, 1e10])
def test_callers_without_a_deadline_get_the_default(remaining_s):
    budget_s = Deadline.of(Context(remaining_s)).budget_s
    assert DEFAULT_BUDGET_S - 5 < budget_s <= DEFAULT_BUDGET_S


def test_the_callers_deadline_is_taken():
    assert 0 < Deadline.of(Context(3.0)).budget_s <= 3.0


async def test_waiting_ends_when_the_deadline_has_passed():
    async def wait():
        async with Deadline.after(0.0).timeout():
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await wait()
