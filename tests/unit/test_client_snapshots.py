"""Do both clients say how far a copy is, return what came of it, and raise typed errors?"""

import asyncio

import pytest
from shoal.client import AlreadyExistsError, AsyncClient, Client, IndexExistsError, NotFoundError

from tests.harness.cli_broker import document, serving


@pytest.fixture
def broker():
    with serving() as served:
        served.indexes["xquad"] = {"p000": document("p000", "A paragraph.")}
        served.versions["xquad"] = 3
        yield served


class Blocking:
    """The synchronous client, called as the other one is."""

    def __init__(self, endpoint):
        self.endpoint = endpoint

    async def run(self, work):
        def call():
            with Client(self.endpoint) as client:
                return work(client)

        return await asyncio.to_thread(call)

    async def all(self, work):
        return await self.run(lambda client: list(work(client)))


class Awaited:
    """The asyncio client."""

    def __init__(self, endpoint):
        self.endpoint = endpoint

    async def run(self, work):
        async with AsyncClient(self.endpoint) as client:
            return await work(client)

    async def all(self, work):
        async with AsyncClient(self.endpoint) as client:
            return [each async for each in work(client)]


@pytest.fixture(params=[Blocking, Awaited])
def caller(request, broker):
    return request.param(broker.endpoint)


async def test_a_copy_is_told_of_and_returned(caller):
    said = []
    taken = await caller.run(
        lambda client: client.snapshot_index("xquad", "s3://b/one", on_progress=said.append)
    )
    assert (taken.uri, taken.table_version) == ("s3://b/one", 3)
    assert [(each.stage, each.done_bytes) for each in said] == [("copying the table", 500_000)]
    said.clear()
    index = await caller.run(
        lambda client: client.restore_index(
            "s3://b/one", name="again", shards=3, on_progress=said.append, timeout_s=10.0
        )
    )
    assert (index.name, index.shard_count) == ("again", 3)
    assert [each.stage for each in said] == ["loading"]


async def test_all_pages_of_a_list_are_read(caller):
    for name in "abcde":
        await caller.run(lambda client, name=name: client.snapshot_index("xquad", f"s3://b/{name}"))
    found = await caller.all(lambda client: client.list_snapshots("s3://b"))
    assert [each.uri for each in found] == [f"s3://b/{name}" for name in "abcde"]


async def test_failures_are_typed(caller):
    await caller.run(lambda client: client.snapshot_index("xquad", "s3://b/one"))
    with pytest.raises(AlreadyExistsError) as refused:
        await caller.run(lambda client: client.snapshot_index("xquad", "s3://b/one"))
    assert refused.value.reason == "SNAPSHOT_EXISTS"
    with pytest.raises(IndexExistsError):
        await caller.run(lambda client: client.restore_index("s3://b/one"))
    with pytest.raises(NotFoundError) as refused:
        await caller.run(lambda client: client.restore_index("s3://b/two"))
    assert refused.value.reason == "SNAPSHOT_NOT_FOUND"
