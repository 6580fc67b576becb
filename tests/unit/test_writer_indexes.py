"""Are the catalogue and the open indexes of one mind, and are versions kept that are needed?"""

import contextlib
from dataclasses import replace

import pytest
from shoal.internal.v1.topology_pb2 import IndexPlacement, Layout, Topology
from shoal.rpc.errors import ServiceError
from shoal.table import IndexNotFoundError, PassageTable
from shoal.table.versions import VersionRecord
from shoal.writer.config import WriterSettings
from shoal.writer.indexes import Indexes
from shoal.writer.server import WriterService
from shoal.writer.storage import StorageKeeper


@contextlib.asynccontextmanager
async def opened(tmp_path, **settings):
    indexes = Indexes(WriterSettings(data=tmp_path / "data", **settings))
    await indexes.start()
    try:
        yield indexes
    finally:
        await indexes.close()


async def create(indexes, name="docs"):
    return await indexes.create(name, dimension=4, encoder_model="", request_id="")


async def test_an_index_that_cannot_be_opened_is_not_entered(tmp_path):
    """Else it would be in the catalogue, and nobody could use, drop or make it."""
    async with opened(tmp_path) as indexes:
        entry = (await create(indexes)).entry
        place = await indexes.reserve("again")
        restored = replace(entry, name="again", uid=place.uid, folder=place.folder)
        with pytest.raises(ServiceError):
            await indexes.enter(restored)
        await indexes.release(place)
        with pytest.raises(IndexNotFoundError):
            indexes.get("again")
        assert not place.path.exists()
        await create(indexes, "again")
    async with opened(tmp_path) as indexes:
        assert sorted(each.name for each in indexes.entries()) == ["again", "docs"]


async def test_what_a_dead_writer_pinned_goes_with_its_history(tmp_path):
    async with opened(tmp_path) as indexes:
        table = (await create(indexes)).table
        pinned = table.pin("lost")
    async with opened(tmp_path) as indexes:
        assert PassageTable.open(table.uri).pins() == []
        assert not indexes.get("docs").table.pins()
        assert pinned.version <= indexes.get("docs").table.version


async def build(indexes, count):
    """Versions 1 to count, all READY and none in force."""
    uid = indexes.get("docs").entry.uid
    for _ in range(count):
        _, begun = await indexes.begin_version(uid, promote=False)
        number, folder = begun.number, begun.folder
        ready = VersionRecord(number, "ready", 0, finish_time_ns=9, codebook_uri=folder)
        await indexes.finish_version(uid, ready)
    return uid


async def test_no_version_is_retired_before_it_is_known_which_are_needed(tmp_path):
    async with opened(tmp_path, keep_index_versions=0) as indexes:
        await create(indexes)
        uid = await build(indexes, 4)
        index = indexes.get("docs")
        answers = {uid: None}
        keeper = StorageKeeper(indexes._settings, indexes, answers.get)
        assert (await keeper.clean(index, thorough=False)).versions == []
        answers[uid] = {2, 3}
        assert (await keeper.clean(index, thorough=False)).versions == [1, 4]


def test_versions_that_are_prepared_or_stand_by_are_needed_too(tmp_path):
    service = WriterService(WriterSettings(data=tmp_path))
    assert service._loaded_versions("u") is None
    placed = IndexPlacement(
        uid="u",
        serving=Layout(index_version=1),
        preparing=Layout(index_version=2),
        standby=Layout(index_version=3),
        candidate=Layout(index_version=4),
    )
    service.follower.topology = Topology(epoch=1, indexes=[placed])
    assert service._loaded_versions("u") == {1, 2, 3, 4}
    # Of an index that is not placed yet nothing is in memory.
    assert service._loaded_versions("v") == set()
