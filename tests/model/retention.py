"""What leaves an index by itself, or for good: expiry, cleaning and purges."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from shoal.v1.documents_pb2 import GetDocumentsResponse
from shoal.v1.search_pb2 import SearchResponse

from tests.harness.controlled import PATIENCE_S
from tests.model.oracle import Stored
from tests.model.traffic import TOP_K

if TYPE_CHECKING:
    from tests.model.world import World

# Long enough to be seen before, on a machine that is not too busy.
_SOON: Final = timedelta(seconds=0.8)
_REVISION: Final = re.compile(rb"Revision (\d+)\. \xe2\x9c\x93")


async def expire(world: World, ids: Sequence[str], past: Sequence[str], seed: int) -> None:
    """Write documents that expire, and look at them until they have.

    ids: of those that do so in a moment. past: of those that did before they were written.
    """
    random = np.random.default_rng(seed)
    now = datetime.now(UTC)
    ends = dict.fromkeys(past, now - timedelta(minutes=1)) | dict.fromkeys(ids, now + _SOON)
    documents = [world.author.document(id_, random, end) for id_, end in ends.items()]
    await world.ledger.upsert(documents)
    world.oracle.expire(now)
    world.has_expired = True
    expiring = [each for each in documents if each.id in set(ids)]
    async with asyncio.timeout(PATIENCE_S):
        while not await _see(world, expiring, now + _SOON):
            await asyncio.sleep(0.05)


async def _see(world: World, expiring: Sequence[Stored], end: datetime) -> bool:
    """Read and search them once; return whether they had expired before."""
    version = world.oracle.table_version
    begin = datetime.now(UTC)
    got = await world.client.get(
        world.name, [each.id for each in expiring], min_table_version=version
    )
    # The cache may answer: the same question was asked a moment ago, and had another answer.
    with_vector = [each for each in expiring if each.vector is not None][:3]
    answers = [
        await world.client.search(
            world.name, each.vector, top_k=TOP_K, min_table_version=version, bypass_cache=False
        )
        for each in with_vector
    ]
    if begin >= end:
        _check_gone(expiring, got, answers)
    if datetime.now(UTC) < end:
        assert not got.missing_ids
        for each, answer in zip(with_vector, answers, strict=True):
            assert each.content_hash in {hit.content_hash for hit in answer.hits}, each.id
    return begin >= end


def _check_gone(
    expiring: Sequence[Stored], got: GetDocumentsResponse, answers: Sequence[SearchResponse]
) -> None:
    assert not got.documents, f"{got.documents[0].id} had expired, and was read"
    states = {each.content_hash for each in expiring}
    for answer in answers:
        found = [hit.document_id for hit in answer.hits if hit.content_hash in states]
        assert not found, f"{found} had expired, and were found"


async def purge(world: World, ids: Sequence[str]) -> None:
    """Purge documents: no file of the index holds a word of theirs."""
    chosen = list(dict.fromkeys(ids))
    there = {each for each in chosen if each in world.oracle.present}
    purged = await world.ledger.purge(chosen)
    assert not there & set(purged.unknown_ids), "there was something of them"
    assert set(purged.unknown_ids) <= set(chosen)
    assert purged.rows_removed >= len(there)
    gone = {each.text for each in world.author.made.values() if each.id in chosen}
    described = await world.client.describe_index(world.name)
    (root,) = (world.cluster.home / "data" / "indexes").glob(f"*-{described.index.uid}")
    left = await asyncio.to_thread(_revisions_in, root, {_revision(each) for each in gone})
    assert left == {}, "purged, and in these files"


def _revision(text: str) -> bytes:
    (number,) = _REVISION.findall(text.encode())
    return bytes(number)


def _revisions_in(root: Path, wanted: set[bytes]) -> dict[str, set[bytes]]:
    """Files below a folder that have texts of some revisions."""
    found = {}
    for path in root.rglob("*"):
        try:
            here = set(_REVISION.findall(path.read_bytes())) & wanted if path.is_file() else set()
        except FileNotFoundError:
            continue  # It was cleaned meanwhile.
        if here:
            found[str(path)] = here
    return found


async def clean(world: World) -> None:
    """Clean the index now. What the writer drops is what the policy does not keep."""
    # Those of the writers beside expire meanwhile.
    expired = {each for each in world.oracle.expired if not each.startswith("t")}
    cleaned = await world.client.clean_index(world.name)
    assert cleaned.documents_expired >= len(expired)
    world.oracle.expired.clear()
    dropped, listed = set(cleaned.versions_dropped), set(world.versions)
    assert dropped <= listed - {world.promoted, world.previous}
    assert not dropped or max(dropped) < max(listed), "the newest are kept"
    for each in dropped:
        del world.versions[each]
    assert cleaned.table_version >= world.oracle.table_version
