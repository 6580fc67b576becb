"""Are batches bounded, ordered, and padded little, whatever waits? Pure; no threads, no clocks."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.rpc.batching import URGENT_IN_A_ROW, BatchBounds, BatchQueue, Urgency


@dataclass(eq=False)
class Work:
    cost: int
    abandoned: bool = False


def queue_of(costs, urgency=Urgency.BULK, *, max_cost=512, max_count=16, run_cost=10):
    bounds = BatchBounds(max_cost, max_count, run_cost)
    queue = BatchQueue(bounds, bounds)
    queue.push(urgency, [Work(cost) for cost in costs])
    return queue


def drain(queue):
    batches = []
    while batch := queue.take():
        batches.append([work.cost for work in batch])
    return batches


def test_an_empty_queue_has_no_batch():
    assert queue_of([]).take() == []


def test_like_costs_share_a_batch():
    batches = drain(queue_of([200, 20, 198, 22, 199, 21], max_cost=600))
    assert sorted(map(sorted, batches)) == [[20, 21, 22], [198, 199, 200]]


def test_padding_may_cost_as_much_as_a_run_and_no_more():
    assert drain(queue_of([20, 30], run_cost=10)) == [[20, 30]]
    assert drain(queue_of([20, 31], run_cost=10)) == [[20], [31]]
    # Two that are there would be padded by a longer one: twice the price.
    assert drain(queue_of([20, 20, 26], run_cost=10)) == [[20, 20], [26]]
    assert drain(queue_of([3, 300, 8], run_cost=10_000, max_cost=10_000)) == [[3, 8, 300]]


def test_one_entry_is_taken_whatever_its_cost():
    assert drain(queue_of([9_999, 9_999])) == [[9_999], [9_999]]


def test_urgent_goes_ahead_of_bulk():
    queue = queue_of([100] * 3, max_cost=100)
    queue.push(Urgency.URGENT, [Work(7)])
    assert drain(queue)[0] == [7]


def test_bulk_is_not_starved():
    queue = queue_of([100], max_cost=100)
    queue.push(Urgency.URGENT, [Work(90) for _ in range(20)])
    assert drain(queue).index([100]) == URGENT_IN_A_ROW


def test_what_was_abandoned_is_dropped_and_no_longer_counted():
    queue = queue_of([], max_cost=100, run_cost=50)
    works = [Work(10), Work(20), Work(30)]
    queue.push(Urgency.BULK, works)
    works[1].abandoned = True
    queue.drop_abandoned(Urgency.BULK)
    assert queue.cost(Urgency.BULK) == 40
    assert sorted(drain(queue)[0]) == [10, 30]
    assert queue.cost(Urgency.BULK) == 0


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.booleans()), max_size=400),
    st.integers(1, 1_000),
    st.integers(1, 40),
    st.integers(0, 100),
)
def test_every_entry_is_taken_once_within_the_bounds(entries, max_cost, max_count, run_cost):
    bounds = BatchBounds(max_cost, max_count, run_cost)
    queue = BatchQueue(bounds, bounds)
    works = [(Work(cost), Urgency.URGENT if urgent else Urgency.BULK) for cost, urgent in entries]
    for work, urgency in works:
        queue.push(urgency, [work])
    left = {id(work): work for work, _ in works}
    order = {urgency: [id(w) for w, u in works if u is urgency] for urgency in Urgency}
    while batch := queue.take():
        costs = [work.cost for work in batch]
        assert len(batch) <= max_count
        assert len(batch) == 1 or max(costs) * len(batch) <= max_cost
        padding = max(costs) * len(costs) - sum(costs)
        assert padding <= run_cost * (len(costs) - 1)
        taken = {id(work) for work in batch}
        # The oldest of its lane is always among them, so nothing waits for ever.
        assert any(lane and lane[0] in taken for lane in order.values())
        for lane in order.values():
            lane[:] = [each for each in lane if each not in taken]
        for each in taken:
            del left[each]
        assert sum(map(queue.cost, Urgency)) == sum(work.cost for work in left.values())
    assert not left
