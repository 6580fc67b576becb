"""Are the broker's bounds on calls, waits and looks kept?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from shoal.broker.cache import REST_S, Cache, answer_key
from shoal.broker.coalesce import Coalescer
from shoal.broker.config import BrokerSettings
from shoal.broker.replicas import NEVER_S, Health
from shoal.broker.routes import IndexRoute
from shoal.rpc.deadline import Deadline
from shoal.v1.search_pb2 import SearchRequest

PATIENCE = Deadline.after(3600.0)


@given(st.lists(st.integers(0, 12), max_size=30), st.integers(1, 8), st.integers(0, 10))
def test_calls_are_bounded_by_count_and_weight(
    weights: list[int], max_count: int, max_weight: int
) -> None:
    """Every item is called for once, in order; one that is too heavy goes alone."""
    batches: list[list[int]] = []

    async def call(items: Sequence[int], budget_s: float) -> list[int]:
        batches.append(list(items))
        await asyncio.sleep(0)
        return list(items)

    async def submit_all() -> list[int]:
        coalescer = Coalescer(
            call, max_count=max_count, weigh=lambda item: weights[item], max_weight=max_weight
        )
        return await asyncio.gather(
            *(coalescer.submit(item, PATIENCE) for item in range(len(weights)))
        )

    assert asyncio.run(submit_all()) == list(range(len(weights)))
    assert [item for batch in batches for item in batch] == list(range(len(weights)))
    for batch in batches:
        assert len(batch) <= max_count
        assert len(batch) == 1 or sum(weights[item] for item in batch) <= max_weight


def test_only_a_failure_says_that_an_instance_is_away() -> None:
    health = Health()
    health.started(1.0)
    health.abandoned(health.lost_s, 2.0)
    assert health.down_since_s == NEVER_S
    for now_s in (3.0, 4.0):
        health.started(now_s)
        health.failed(now_s)
    assert health.down_since_s == 3.0
    health.started(5.0)
    health.succeeded(0.01, 5.0)
    assert health.down_since_s == NEVER_S


def test_one_that_failed_twice_is_tried_by_one_call_at_a_time() -> None:
    health = Health()
    for now_s in (1.0, 2.0):
        assert not health.shunned(now_s)
        health.started(now_s)
        health.failed(now_s)
    assert health.shunned(2.0)
    after_s = health.rests_until_s
    assert not health.shunned(after_s)
    health.started(after_s)
    assert health.shunned(after_s)
    health.succeeded(0.01, after_s)
    assert not health.shunned(after_s)


class DeadStore:
    """A Redis that fails at once, and counts how often it is asked."""

    def __init__(self) -> None:
        self.looks = 0
        self.error: Exception | None = OSError("gone")

    async def get(self, key: bytes) -> bytes:
        self.looks += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return key


async def test_after_a_rest_one_look_finds_out_whether_redis_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0
    cache, store = Cache(BrokerSettings(), lambda: now_s), DeadStore()
    monkeypatch.setattr(cache, "_redis", store)

    async def crowd() -> list[bytes | None]:
        return await asyncio.gather(*(cache.get(b"whale") for _ in range(20)))

    await crowd()
    assert store.looks == 20
    await crowd()
    assert store.looks == 20
    now_s += 2 * REST_S
    assert await crowd() == [None] * 20
    assert store.looks == 21
    now_s += 2 * REST_S
    store.error = None
    assert (await crowd()).count(b"whale") == 1
    assert await crowd() == [b"whale"] * 20


def test_an_answer_is_named_by_what_the_brokers_own_default_makes_of_it() -> None:
    """Brokers with different settings share one Redis."""
    route = IndexRoute("books", "u", 8, "tiny@1", Timestamp(), 0, 2, ())
    request = SearchRequest(index="books", text="whale")
    names = {answer_key(request, route, (1, 1), ("tiny@1",), count) for count in (0, 20, 50)}
    assert len(names) == 3
