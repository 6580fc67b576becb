"""Do expired and purged documents leave answers and storage, as the protos say?"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from shoal.client import AsyncClient, IndexNotFoundError, InvalidArgumentError
from shoal.v1.indexes_pb2 import IndexVersionState

from tests.harness.controlled import clustered, controlled, ended, fill, ids, until

READY = IndexVersionState.INDEX_VERSION_STATE_READY
DIMENSION = 16


def after(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def files_with(root: Path, text: str) -> list[Path]:
    found = [path for path in root.rglob("*") if path.is_file()]
    return [path for path in found if _may_hold(path, text.encode())]


def _may_hold(path: Path, wanted: bytes) -> bool:
    try:
        return wanted in path.read_bytes()
    except FileNotFoundError:
        return True  # It was moved into its place meanwhile: look again.


async def test_a_document_that_expires_leaves_answers_then_storage(tmp_path: Path) -> None:
    vectors = clustered(20)
    async with controlled(tmp_path, retention={"keep_versions_s": 0}) as (cluster, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", vectors[2:], first=2)
        expires = after(1.5)
        written = await client.upsert(
            "docs",
            [
                {"id": "d0", "text": "soon-to-go", "vector": vectors[0], "expires_at": expires},
                {"id": "past", "text": "gone", "vector": vectors[1], "expires_at": after(-60)},
            ],
        )
        assert written.acknowledged == 2
        version = written.table_version
        while True:
            at = datetime.now(UTC)
            answer = await client.search("docs", vectors[0], top_k=20, min_table_version=version)
            found = {hit.document_id for hit in answer.hits}
            got = await client.get("docs", ["d0", "past"], min_table_version=version)
            assert "past" not in found
            assert "past" in got.missing_ids
            # Asked after its time it is in nothing, whether anything was written since or not.
            if at >= expires:
                assert "d0" not in found
                assert got.missing_ids == ["d0", "past"]
                break
            if datetime.now(UTC) < expires:
                assert "d0" in found
                (document,) = got.documents
                assert document.expires_at.ToDatetime(UTC) == expires
            await asyncio.sleep(0.02)
        # The probe of the shards' counts is a moment behind.
        await until(lambda: _rows(client, 20, 2))
        data = tmp_path / "data"
        assert files_with(data, "soon-to-go")
        cleaned = await client.clean_index("docs")
        assert (cleaned.documents_expired, cleaned.rows_removed) == (2, 2)
        assert cleaned.bytes_removed > 0
        await client.upsert("docs", [{"id": "x", "text": "x", "vector": vectors[3]}])
        await client.clean_index("docs")
        assert files_with(data, "soon-to-go") == []
        await until(lambda: _found(client, vectors[3], "x"))
        assert len(await ids(client, "docs", vectors[0], 30)) == 19

        # Written again without an end it stays.
        await fill(client, "docs", vectors[:1])
        await until(lambda: _found(client, vectors[0], "d0"))
        with pytest.raises(IndexNotFoundError):
            await client.clean_index("nothing")
        assert cluster.serving().serving.index_version == 0


async def _rows(client: AsyncClient, rows: int, superseded: int) -> bool:
    index = (await client.describe_index("docs")).index
    return (index.row_count, index.superseded_row_count) == (rows, superseded)


async def _found(client: AsyncClient, vector: object, document_id: str) -> bool:
    return document_id in await ids(client, "docs", vector, 2)  # type: ignore[arg-type]


async def test_a_purged_document_is_nowhere_below_the_data_root(tmp_path: Path) -> None:
    vectors = clustered(700)
    async with controlled(tmp_path, train_at_passages=10_000_000) as (cluster, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", vectors)
        secret = {"id": "secret-id-0815", "text": "the-secret-text-4711", "vector": vectors[3]}
        await client.upsert("docs", [secret])
        await client.build_index_version("docs")
        version = await ended(client, "docs", 1)
        assert (version.state, version.message) == (READY, "")
        await client.promote_index_version("docs", 1)
        await client.upsert("docs", [secret | {"text": "the-secret-text-4711, once more"}])
        data, folder = tmp_path / "data", cluster.version_folder(1)
        assert files_with(data, "the-secret-text-4711")
        # The version's segment has its id, and so have the table's files.
        assert files_with(folder, "secret-id-0815")
        assert not (folder / "codebook" / "held-out.npz").exists()

        purged = await client.purge("docs", ["secret-id-0815", "never-there"])
        assert files_with(data, "the-secret-text-4711") == []
        assert files_with(data, "secret-id-0815") == []
        assert purged.rows_removed == 4  # Both states, and what two deletions left.
        assert purged.bytes_removed > 0
        assert list(purged.unknown_ids) == ["never-there"]
        assert len(purged.remains) == 2
        assert "snapshots" in purged.remains[0]
        assert "shard servers" in purged.remains[1]

        # Shard servers write again what they had stored, by themselves.
        await until(lambda: not files_with(tmp_path, "secret-id-0815"))
        assert (await client.get("docs", ["secret-id-0815"])).missing_ids == ["secret-id-0815"]
        assert len(await ids(client, "docs", vectors[3], 10)) == 10
        again = await client.purge("docs", ["secret-id-0815"])
        assert (again.rows_removed, list(again.unknown_ids)) == (1, ["secret-id-0815"])

        # A server that starts anew makes the shards from what there is.
        await cluster.platform.hosts["shard-server-0-0"].stop(0)
        await cluster.platform.start_again("shard-server-0-0")
        await until(lambda: _whole(client, vectors[5]))
        assert (await client.search("docs", vectors[3], top_k=5)).coverage.passages_total == 700
        await until(lambda: not files_with(tmp_path, "secret-id-0815"))

        with pytest.raises(InvalidArgumentError):
            await client.purge("docs", [])
        with pytest.raises(IndexNotFoundError):
            await client.purge("nothing", ["a"])


async def _whole(client: AsyncClient, vector: object) -> bool:
    try:
        answer = await client.search("docs", vector, timeout_s=2.0)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001  # it is starting
        return False
    return answer.coverage.complete and bool(answer.hits)


async def test_searches_go_on_while_documents_are_purged(tmp_path: Path) -> None:
    vectors = clustered(300)
    async with controlled(tmp_path) as (_, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", vectors)
        purged: set[str] = set()
        done = asyncio.Event()

        async def search(worker: int) -> int:
            count = 0
            while not done.is_set():
                gone = set(purged)
                answer = await client.search("docs", vectors[worker], top_k=10)
                assert answer.coverage.complete
                assert not gone & {hit.document_id for hit in answer.hits}
                assert all(hit.text == hit.document_id for hit in answer.hits)
                found = await client.get("docs", [f"d{each}" for each in range(worker, 300, 50)])
                assert all(each.text == each.id for each in found.documents)
                count += 1
            return count

        searches = [asyncio.create_task(search(worker)) for worker in range(3)]
        for number in range(0, 40, 4):
            batch = [f"d{each}" for each in range(number, number + 4)]
            answer = await client.purge("docs", batch)
            assert answer.rows_removed == 8
            purged.update(batch)
        done.set()
        counts = await asyncio.gather(*searches)
        assert all(counts)
        assert len(await ids(client, "docs", vectors[0], 300)) == 260


async def test_index_versions_beyond_those_that_are_kept_are_dropped(tmp_path: Path) -> None:
    async with controlled(tmp_path, retention={"keep_index_versions": 0}) as (cluster, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", clustered(700))
        for number in (1, 2, 3):
            await client.build_index_version("docs")
            assert (await ended(client, "docs", number)).state == READY
            if number < 3:
                await client.promote_index_version("docs", number)
        cleaned = await client.clean_index("docs")
        # 2 serves, and 1 is what a rollback leads to.
        assert list(cleaned.versions_dropped) == [3]
        assert not cluster.version_folder(3).exists()
        assert [each.number for each in (await client.index_versions("docs")).versions] == [1, 2]
