"""Do snapshots do what IndexService says of them, through broker, writer, controller and shards?"""

from __future__ import annotations

import asyncio
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest
from shoal.bundle import EncoderModel, load_bundle
from shoal.client import (
    AlreadyExistsError,
    AsyncClient,
    DataLossError,
    FailedPreconditionError,
    IndexExistsError,
    IndexNotFoundError,
    InvalidArgumentError,
    NotFoundError,
)
from shoal.table.manifest import read_manifest
from shoal.v1.indexes_pb2 import IndexState, IndexVersionState
from shoal.v1.search_pb2 import SearchKind

from tests.harness.controlled import (
    DIMENSION,
    clustered,
    controlled,
    ended,
    fill,
    ids,
)
from tests.harness.real import ENCODER

CORPORA = Path(__file__).parents[2] / "deploy" / "corpora"
READY = IndexVersionState.INDEX_VERSION_STATE_READY
SERVES = IndexState.INDEX_STATE_READY
VECTORS = clustered(900)


async def _ranking(client: AsyncClient, name: str) -> list[list[tuple[str, float]]]:
    """What some queries find, with the scores."""
    found = []
    for number in range(0, 900, 60):
        answer = await client.search(name, VECTORS[number], top_k=10, bypass_cache=True)
        assert answer.coverage.complete
        found.append([(hit.document_id, hit.score) for hit in answer.hits])
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


async def _built(client: AsyncClient) -> None:
    """An index with a version in force, a tail that came after it, and documents deleted."""
    await client.create_index("docs", dimension=DIMENSION)
    await fill(client, "docs", VECTORS)
    await client.build_index_version("docs", promote=True)
    assert (await ended(client, "docs", 1)).state == READY
    await fill(client, "docs", clustered(30, seed=1), first=900)
    deleted = await client.delete("docs", ["d0", "d60", "d905"])
    await client.promote_index_version("docs", 1)
    await client.search("docs", VECTORS[0], min_table_version=deleted)


@pytest.mark.parametrize("place", ["folder", "memory"])
async def test_an_index_is_restored_on_another_number_of_shards(tmp_path: Path, place: str) -> None:
    uri = f"memory://{uuid.uuid4().hex}" if place == "memory" else str(tmp_path / "kept")
    async with controlled(tmp_path / "home") as (cluster, client):
        await _built(client)
        before = await _ranking(client, "docs")
        said = []
        taken = await client.snapshot_index("docs", f"{uri}/monday", on_progress=said.append)
        assert (taken.uri, taken.name) == (f"{uri}/monday", "docs")
        assert (taken.index_version, taken.document_count, taken.passage_count) == (1, 927, 927)
        assert taken.size_bytes > 0
        assert [each.stage for each in said]
        # What comes later is not in it.
        await client.delete("docs", ["d7"])
        listed = [each async for each in client.list_snapshots(uri)]
        assert listed == [taken]
        assert [each async for each in client.list_snapshots(f"{uri}/monday")] == [taken]

        cluster.platform.steps.clear()
        index = await client.restore_index(taken.uri, name="again", shards=3)
        assert (index.name, index.state, index.shard_count) == ("again", SERVES, 3)
        assert (index.index_version, index.kind) == (1, SearchKind.SEARCH_KIND_IVF_PQ)
        assert (index.document_count, index.table_version) == (927, taken.table_version)
        assert index.uid != taken.uid
        assert index.encoder_model == taken.encoder_model
        assert await _ranking(client, "again") == before
        assert await ids(client, "again", VECTORS[7], 1) == ["d7"]
        assert "d0" not in await ids(client, "again", VECTORS[0], 5)
        assert cluster.platform.steps == []  # Nothing was trained or encoded.
        (version,) = (await client.index_versions("again")).versions
        assert (version.number, version.state) == (1, READY)

        # It lives: writes go on, and the next version has the next number.
        version = await fill(client, "again", VECTORS[:1])
        assert version > taken.table_version
        await client.search("again", VECTORS[0], min_table_version=version)
        assert await ids(client, "again", VECTORS[0], 1) == ["d0"]
        assert (await client.build_index_version("again")).number == 2
        assert (await ended(client, "again", 2)).state == READY


async def test_real_text_is_ranked_as_before_on_another_number_of_shards(tmp_path: Path) -> None:
    corpus = CORPORA / "xquad-en"
    lines = [*_lines(corpus / "corpus.jsonl"), *_lines(corpus / "queries.jsonl")]
    texts = [each["text"] for each in lines]
    vectors = EncoderModel(load_bundle(ENCODER)).encode(texts, "passage")
    async with controlled(tmp_path / "home") as (_, client):
        await client.create_index("docs", dimension=vectors.shape[1])
        documents = [
            {"id": f"d{number}", "text": text, "vector": vector}
            for number, (text, vector) in enumerate(zip(texts, vectors, strict=True))
        ]
        await client.upsert("docs", documents)
        await client.build_index_version("docs", promote=True)
        assert (await ended(client, "docs", 1)).state == READY
        await client.promote_index_version("docs", 1)
        await client.delete("docs", ["d1", "d300"])
        await client.snapshot_index("docs", str(tmp_path / "kept"))
        found = []
        for name, shards in (("docs", 2), ("three", 3), ("one", 1)):
            if name != "docs":
                index = await client.restore_index(str(tmp_path / "kept"), name=name, shards=shards)
                assert (index.shard_count, index.document_count) == (shards, len(texts) - 2)
                assert index.kind == SearchKind.SEARCH_KIND_IVF_PQ
            found.append(
                [
                    [(hit.document_id, hit.score) for hit in answer.hits]
                    for number in range(240, 1400, 40)
                    if (answer := await client.search(name, vectors[number])).coverage.complete
                ]
            )
        assert len(found[0]) == 29
        assert found[1] == found[0]
        assert found[2] == found[0]


async def test_restored_shards_are_loaded_and_not_made_from_the_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with controlled(tmp_path / "home") as (cluster, client):
        await _built(client)
        await client.snapshot_index("docs", str(tmp_path / "kept"))
        await client.drop_index("docs")
        caplog.clear()
        index = await client.restore_index(str(tmp_path / "kept"))
        assert (index.name, index.state, index.index_version) == ("docs", SERVES, 1)
        folder = cluster.version_folder(1)
        manifest = read_manifest(folder)
        assert manifest.index_uid == index.uid
        assert all((folder / file.name).is_file() for file in manifest.segments[0].files)
        refusals = [each for each in caplog.messages if "refus" in each or "no segment" in each]
        assert refusals == []
        shards = (await client.describe_index("docs")).shards
        assert {each.kind for each in shards} == {SearchKind.SEARCH_KIND_IVF_PQ}


async def test_an_index_without_a_version_is_restored(tmp_path: Path) -> None:
    async with controlled(tmp_path / "home") as (_, client):
        await client.create_index("docs", dimension=DIMENSION)
        await client.snapshot_index("docs", str(tmp_path / "empty"))
        await fill(client, "docs", VECTORS[:50])
        taken = await client.snapshot_index("docs", str(tmp_path / "kept"))
        assert (taken.index_version, taken.document_count) == (0, 50)
        index = await client.restore_index(taken.uri, name="again")
        assert (index.index_version, index.document_count) == (0, 50)
        assert await ids(client, "again", VECTORS[7], 3) == await ids(client, "docs", VECTORS[7], 3)
        index = await client.restore_index(str(tmp_path / "empty"), name="nothing")
        assert (index.document_count, index.state) == (0, SERVES)
        await fill(client, "nothing", VECTORS[:2])


async def test_what_is_refused(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    async with controlled(tmp_path / "home") as (_, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", VECTORS[:50])
        await client.snapshot_index("docs", str(kept))
        with pytest.raises(AlreadyExistsError, match="a snapshot at") as refused:
            await client.snapshot_index("docs", str(kept))
        assert refused.value.reason == "SNAPSHOT_EXISTS"
        with pytest.raises(AlreadyExistsError, match="something else") as refused:
            await client.snapshot_index("docs", str(tmp_path))
        assert refused.value.reason == "SNAPSHOT_EXISTS"
        with pytest.raises(IndexNotFoundError):
            await client.snapshot_index("nobody", str(tmp_path / "other"))
        assert not (tmp_path / "other").exists()
        with pytest.raises(IndexExistsError):
            await client.restore_index(str(kept))
        with pytest.raises(IndexExistsError):
            await client.restore_index(str(kept), name="docs")
        with pytest.raises(NotFoundError) as refused:
            await client.restore_index(str(tmp_path / "other"), name="again")
        assert refused.value.reason == "SNAPSHOT_NOT_FOUND"
        for wrong in (
            client.snapshot_index("docs", ""),
            client.snapshot_index("docs", "a/relative/path"),
            client.snapshot_index("docs", str(tmp_path / "home" / "data" / "inside")),
            client.restore_index(str(kept), name="No Name"),
            client.restore_index(str(kept), name="again", shards=5000),
        ):
            with pytest.raises(InvalidArgumentError):
                await wrong
        with pytest.raises(FailedPreconditionError, match="Install s3fs") as refused:
            await client.snapshot_index("docs", "s3://bucket/kept")
        assert refused.value.reason == "STORE_UNAVAILABLE"
        assert [each.name for each in (tmp_path / "home" / "data" / "indexes").iterdir()] == [
            f"docs-{(await client.describe_index('docs')).index.uid}"
        ]


async def test_a_snapshot_of_a_later_release_is_refused_by_name(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    async with controlled(tmp_path / "home") as (_, client):
        await client.create_index("docs", dimension=DIMENSION)
        await client.snapshot_index("docs", str(kept))
        said = json.loads((kept / "snapshot.json").read_text())
        said["snapshot"]["format"] = 2
        (kept / "snapshot.json").write_text(json.dumps(said))
        with pytest.raises(FailedPreconditionError, match="has format 2") as refused:
            await client.restore_index(str(kept), name="again")
        assert refused.value.reason == "SNAPSHOT_FORMAT"


@pytest.mark.parametrize("damage", ["altered", "cut", "missing"])
@pytest.mark.parametrize("part", ["table/data", "table/_versions", "version/segments"])
async def test_a_damaged_file_is_named_and_nothing_is_left(
    tmp_path: Path, damage: str, part: str
) -> None:
    kept = tmp_path / "kept"
    async with controlled(tmp_path / "home") as (_, client):
        await _built(client)
        await client.snapshot_index("docs", str(kept))
        victim = max(path for path in kept.glob(f"*/{part}/**/*") if path.is_file())
        content = victim.read_bytes()
        middle = len(content) // 2
        if damage == "altered":
            flipped = bytes([content[middle] ^ 1])
            victim.write_bytes(content[:middle] + flipped + content[middle + 1 :])
        elif damage == "cut":
            victim.write_bytes(content[:-1])
        else:
            victim.unlink()
        with pytest.raises(DataLossError, match=victim.name) as refused:
            await client.restore_index(str(kept), name="again")
        assert refused.value.reason == "CHECKSUM_MISMATCH"
        assert len(list((tmp_path / "home" / "data" / "indexes").iterdir())) == 1
        assert [each.name async for each in client.list_indexes()] == ["docs"]
        # The name is free: another snapshot makes it.
        shutil.rmtree(kept)
        await client.snapshot_index("docs", str(kept))
        assert (await client.restore_index(str(kept), name="again")).document_count == 927


async def test_writes_and_searches_go_on_while_snapshots_are_taken(tmp_path: Path) -> None:
    async with controlled(tmp_path / "home") as (_, client):
        await _built(client)
        written = 0
        stop = asyncio.Event()

        async def write() -> None:
            nonlocal written
            while not stop.is_set():
                await fill(client, "docs", clustered(5, seed=2 + written), first=2000 + 5 * written)
                written += 1
                assert await ids(client, "docs", VECTORS[7], 1) == ["d7"]

        writing = asyncio.create_task(write())
        counts = []
        for number in range(4):
            acknowledged = 927 + 5 * written
            taken = await client.snapshot_index("docs", str(tmp_path / "kept" / str(number)))
            counts.append(taken.document_count)
            # One more write may be on its way when the snapshot's version is chosen.
            assert acknowledged <= taken.document_count <= 927 + 5 * (written + 1)
        stop.set()
        await writing
        assert written
        assert counts == sorted(counts)
        for number, count in enumerate(counts):
            kept = str(tmp_path / "kept" / str(number))
            index = await client.restore_index(kept, name=f"again-{number}")
            assert index.document_count == count
