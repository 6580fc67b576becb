"""Is an index that was made from a snapshot the index that the snapshot was taken of?"""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import TYPE_CHECKING

import numpy as np
from shoal.v1.indexes_pb2 import DescribeIndexResponse, IndexState, Snapshot

from tests.harness.controlled import until
from tests.harness.history import ABSENT, Read
from tests.model.oracle import Oracle, Stored
from tests.model.searches import Searches, Shape
from tests.model.traffic import BRIEFLY

if TYPE_CHECKING:
    from tests.model.world import World


async def copy(world: World, shards: int, seed: int) -> None:
    """Take a snapshot, restore it as another index on some shards, compare, and drop that."""
    name = f"{world.name}-copy"
    folder = world.cluster.home / "copies" / name
    before, version = dict(world.oracle.present), world.oracle.table_version
    start_s = time.monotonic()
    snapshot = await world.client.snapshot_index(world.name, str(folder))
    end_s = time.monotonic()
    assert snapshot.table_version >= version
    assert snapshot.index_version == world.promoted
    restored = await world.client.restore_index(str(folder), name=name, shards=shards)
    try:
        assert restored.fields == (await world.client.describe_index(world.name)).index.fields
        oracle = await _read(world, name, before, Read(start_s, end_s, snapshot.table_version, {}))
        await _check(world, oracle, name, Shape(world.promoted, shards), snapshot, seed)
    finally:
        await world.client.drop_index(name)
        await asyncio.to_thread(shutil.rmtree, folder)


async def _read(world: World, name: str, before: dict[str, Stored], read: Read) -> Oracle:
    """What is in the copy, once it is what it must be.

    before: documents that were there when it was begun. read: when it was taken, and of what.
    """
    # What expires soon has expired.
    await until(lambda: time.monotonic() > read.end_s + BRIEFLY.total_seconds())
    history = world.ledger.history
    ids = sorted(history.writes)
    found = await world.client.get(name, ids)
    assert {each.id for each in found.documents} | set(found.missing_ids) == set(ids)
    present = {each.id: world.author.made[each.content_hash] for each in found.documents}
    # Writers beside change documents of their own alone.
    quiet = {each for each in ids if not each.startswith("t")}
    expected = {id_: each.content_hash for id_, each in before.items() if id_ in quiet}
    copied = {id_: each.content_hash for id_, each in present.items() if id_ in quiet}
    assert copied.keys() - expected.keys() == set(), "deleted, and restored"
    assert expected.keys() - copied.keys() == set(), "lost by the copy"
    assert copied == expected
    seen = {
        id_: present[id_].content_hash if id_ in present else ABSENT
        for id_ in set(ids) - quiet
        # When it was looked up it may have expired since.
        if all(each.expires_s == float("inf") for each in history.writes[id_])
    }
    history.read(Read(read.start_s, read.end_s, read.version, seen, name="restored"))
    oracle = Oracle(world.author, present, spans=world.oracle.spans)
    for each in found.documents:
        oracle.check_document(each)
    return oracle


async def _check(
    world: World, oracle: Oracle, name: str, shape: Shape, snapshot: Snapshot, seed: int
) -> None:
    """It answers as it should, and is counted as it should; then it goes on by itself."""
    described = await _described(world, name, oracle)
    index = described.index
    assert (index.index_version, index.shard_count) == (shape.index_version, shape.shards)
    assert index.passage_count == oracle.passage_count
    assert snapshot.document_count >= index.document_count
    searches = Searches(world.client, name, oracle)
    random = np.random.default_rng(seed)
    query = world.author.query(random)
    await searches.near_and_far(query, shape)
    await searches.with_filters(query, random, shape)
    # It is an index of its own.
    added = world.author.document("n0", random)
    summary = await world.client.upsert(name, [added.fields()])
    oracle.wrote([added], summary.table_version)
    (read,) = (
        await world.client.get(name, ["n0"], min_table_version=oracle.table_version)
    ).documents
    oracle.check_document(read)
    await searches.near_and_far(query, shape)
    world.searches.whole.add(searches.whole.found, searches.whole.wanted)
    world.searches.filtered.add(searches.filtered.found, searches.filtered.wanted)


async def _described(world: World, name: str, oracle: Oracle) -> DescribeIndexResponse:
    async def look() -> DescribeIndexResponse | None:
        described = await world.client.describe_index(name)
        ready = described.index.state == IndexState.INDEX_STATE_READY
        counted = described.index.document_count == len(oracle.present)
        return described if ready and counted else None

    found: DescribeIndexResponse = await until(look)
    return found
