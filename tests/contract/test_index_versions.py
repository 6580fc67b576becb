"""Do versions of an index do what IndexService says of them, through broker, writer, controller?"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from shoal.client import (
    AsyncClient,
    FailedPreconditionError,
    IndexNotFoundError,
    InvalidArgumentError,
    NotFoundError,
)
from shoal.table.manifest import ManifestState, read_manifest
from shoal.v1.indexes_pb2 import IndexVersionState
from shoal.v1.search_pb2 import SearchKind

from tests.harness.controlled import DIMENSION, clustered, controlled, ended, fill, ids, until

READY = IndexVersionState.INDEX_VERSION_STATE_READY
FAILED = IndexVersionState.INDEX_VERSION_STATE_FAILED
BUILDING = IndexVersionState.INDEX_VERSION_STATE_BUILDING


async def test_a_version_is_built_promoted_rolled_back_and_dropped(tmp_path: Path) -> None:
    vectors = clustered(900)
    async with controlled(tmp_path) as (cluster, client):
        await client.create_index("docs", dimension=DIMENSION)
        table_version = await fill(client, "docs", vectors)

        begun = await client.build_index_version("docs")
        assert (begun.number, begun.state, begun.promote) == (1, BUILDING, False)
        version = await ended(client, "docs", 1)
        assert (version.state, version.message) == (READY, "")
        assert version.passage_count == version.document_count == 900
        assert version.recall >= version.recall_target > 0.9
        assert (version.table_version, version.shard_count) == (table_version, 2)
        manifest = read_manifest(cluster.version_folder(1))
        assert manifest.state is ManifestState.READY
        assert version.size_bytes == manifest.size_bytes
        assert cluster.platform.steps == [
            ("train", -1),
            ("encode", 0),
            ("encode", 1),
            ("verify", -1),
        ]
        listed = await client.index_versions("docs")
        assert (listed.promoted_version, listed.serving_version) == (0, 0)
        assert not listed.HasField("previous_version")

        # What is written after the build is found in it too.
        await fill(client, "docs", clustered(30, seed=1), first=900)
        await client.delete("docs", ["d0"])
        assert await client.promote_index_version("docs", 1) == 1
        described = (await client.describe_index("docs")).index
        assert (described.index_version, described.standby_version) == (1, 0)
        assert await ids(client, "docs", vectors[7], 1) == ["d7"]
        assert await ids(client, "docs", clustered(30, seed=1)[4], 1) == ["d904"]
        assert "d0" not in await ids(client, "docs", vectors[0], 5)
        assert await client.promote_index_version("docs", 1) == 1  # May be repeated.

        await client.build_index_version("docs", promote=True)
        assert (await ended(client, "docs", 2)).state == READY
        await until(lambda: cluster.serving().serving.index_version == 2)
        back = await client.rollback_index("docs")
        assert (back.promoted_version, back.serving_version) == (1, 1)
        listed = await client.index_versions("docs")
        assert (listed.serving_version, listed.previous_version) == (1, 2)
        assert [each.number for each in listed.versions] == [1, 2]
        with pytest.raises(FailedPreconditionError, match="serves") as refused:
            await client.drop_index_version("docs", 1)
        assert refused.value.reason == "VERSION_SERVES"
        await client.drop_index_version("docs", 2)
        assert not cluster.version_folder(2).exists()
        await until(lambda: not cluster.serving().HasField("standby"))
        assert await ids(client, "docs", vectors[7], 1) == ["d7"]
        with pytest.raises(FailedPreconditionError) as refused:
            await client.rollback_index("docs")
        assert refused.value.reason == "NO_PREVIOUS_VERSION"


async def test_a_replica_loads_the_published_segments(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = clustered(900)
    async with controlled(tmp_path, standby_s=0) as (cluster, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", vectors)
        await client.build_index_version("docs")
        await ended(client, "docs", 1)
        # One segment is damaged: its shard is made from the table, and named.
        segment = cluster.version_folder(1) / "segments" / "shard-0001"
        victim = max((each for each in segment.rglob("*") if each.is_file()), key=_size)
        victim.write_bytes(victim.read_bytes()[:-9])
        assert await client.promote_index_version("docs", 1) == 1
        refusals = [each for each in caplog.messages if "refusing the published segment" in each]
        assert len(refusals) == 1
        assert victim.name in refusals[0]
        for number in range(0, 900, 90):
            assert await ids(client, "docs", vectors[number], 1) == [f"d{number}"]
        assert not cluster.serving().HasField("standby")
        index = (await client.describe_index("docs")).index
        assert (index.kind, index.passage_count) == (SearchKind.SEARCH_KIND_IVF_PQ, 900)
        assert not index.HasField("standby_version")


async def test_segments_are_built_for_the_shards_that_the_index_has(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (cluster, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", clustered(700))
        await client.scale(index="docs", shards=3)
        await client.build_index_version("docs", promote=True)
        version = await ended(client, "docs", 1)
        assert (version.state, version.shard_count) == (READY, 3)
        await until(lambda: cluster.serving().serving.index_version == 1)
        assert cluster.serving().serving.shard_count == 3


async def test_two_builds_at_once_are_refused_by_name(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (cluster, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", clustered(700))
        cluster.platform.gate.clear()
        await client.build_index_version("docs")
        with pytest.raises(FailedPreconditionError, match=r"version 1 .* is being") as refused:
            await client.build_index_version("docs")
        assert refused.value.reason == "BUILD_IN_PROGRESS"
        with pytest.raises(FailedPreconditionError) as refused:
            await client.promote_index_version("docs", 1)
        assert refused.value.reason == "VERSION_NOT_READY"
        (running,) = (await client.index_versions("docs")).versions
        assert running.HasField("progress")
        assert 0.0 <= running.progress.done < 1.0
        cluster.platform.gate.set()
        assert (await ended(client, "docs", 1)).state == READY


async def test_what_is_asked_of_versions_that_are_not_there(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (_, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", clustered(50))
        for wrong in (
            client.promote_index_version("docs", 4),
            client.drop_index_version("docs", 4),
        ):
            with pytest.raises(NotFoundError) as refused:
                await wrong
            assert refused.value.reason == "VERSION_NOT_FOUND"
        for lost in (
            client.build_index_version("nobody"),
            client.index_versions("nobody"),
            client.promote_index_version("nobody", 1),
            client.rollback_index("nobody"),
            client.drop_index_version("nobody", 1),
        ):
            with pytest.raises(IndexNotFoundError):
                await lost
        # Too few passages to learn from: the build says so, and nothing else changes.
        await client.build_index_version("docs", promote=True)
        version = await ended(client, "docs", 1)
        assert version.state == FAILED
        assert "training needs" in version.message
        with pytest.raises(FailedPreconditionError, match="training needs") as failed:
            await client.promote_index_version("docs", 1)
        assert failed.value.reason == "VERSION_NOT_READY"
        with pytest.raises(FailedPreconditionError, match="version 0 of index 'docs' serves"):
            await client.drop_index_version("docs", 0)
        await client.drop_index_version("docs", 1)
        assert list((await client.index_versions("docs")).versions) == []


async def test_no_search_fails_or_mixes_while_versions_change(tmp_path: Path) -> None:
    vectors = clustered(900)
    async with controlled(tmp_path) as (_, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", vectors)
        stop, seen = asyncio.Event(), []

        async def ask() -> None:
            number = 0
            while not stop.is_set():
                number = (number + 37) % 900
                answer = await client.search(
                    "docs", vectors[number], top_k=3, explain=True, bypass_cache=True
                )
                assert answer.coverage.complete
                assert answer.hits[0].document_id == f"d{number}"
                versions = {hit.provenance.index_version for hit in answer.hits}
                assert versions == {answer.explanation.index_version}
                seen.extend(versions)

        asking = [asyncio.create_task(ask()) for _ in range(2)]
        await client.build_index_version("docs", promote=True)
        await ended(client, "docs", 1)
        assert await client.promote_index_version("docs", 1) == 1
        for expected in (0, 1, 0):
            back = await client.rollback_index("docs")
            assert back.serving_version == expected
        stop.set()
        await asyncio.gather(*asking)
        assert set(seen) == {0, 1}


def _size(path: Path) -> int:
    return path.stat().st_size


async def test_two_kinds_are_built_and_each_serves(tmp_path: Path) -> None:
    vectors = clustered(900)
    async with controlled(tmp_path) as (cluster, client):
        made = await client.create_index(
            "docs", dimension=DIMENSION, recall_target=0.9, kind=SearchKind.SEARCH_KIND_HNSW
        )
        assert (made.recall_target, made.declared_kind) == (0.9, SearchKind.SEARCH_KIND_HNSW)
        await fill(client, "docs", vectors)
        await client.build_index_version("docs", promote=True)
        graph = await ended(client, "docs", 1)
        assert (graph.state, graph.kind) == (READY, SearchKind.SEARCH_KIND_HNSW)
        assert graph.recall >= graph.recall_target == 0.9
        assert read_manifest(cluster.version_folder(1)).kind == "hnsw"
        await until(lambda: cluster.serving().serving.index_version == 1)
        # Written after the build: it is in the tail of a graph.
        await fill(client, "docs", clustered(30, seed=1), first=900)
        await client.delete("docs", ["d0"])
        await fill(client, "docs", clustered(1, seed=2), first=930)
        await _follows(client, clustered(1, seed=2)[0], "d930")
        await _serves_as(client, SearchKind.SEARCH_KIND_HNSW)
        await _follows(client, clustered(30, seed=1)[4], "d904")
        assert "d0" not in await ids(client, "docs", vectors[0], 5)

        updated = await client.update_index(
            "docs", recall_target=0.97, kind=SearchKind.SEARCH_KIND_IVF_SQ8
        )
        wanted = (0.97, SearchKind.SEARCH_KIND_IVF_SQ8)
        assert (updated.recall_target, updated.declared_kind) == wanted

        async def is_told() -> bool:
            described = (await client.describe_index("docs")).index
            return (described.recall_target, described.declared_kind) == wanted

        await until(is_told)
        described = (await client.describe_index("docs")).index
        assert described.kind == SearchKind.SEARCH_KIND_HNSW  # What serves is not touched.
        await client.build_index_version("docs", promote=True)
        lists = await ended(client, "docs", 2)
        assert (lists.kind, lists.recall_target) == (SearchKind.SEARCH_KIND_IVF_SQ8, 0.97)
        await until(lambda: cluster.serving().serving.index_version == 2)
        await _serves_as(client, SearchKind.SEARCH_KIND_IVF_SQ8)
        assert await ids(client, "docs", vectors[7], 1) == ["d7"]
        # Back to the graph, as quickly as to any other version.
        assert (await client.rollback_index("docs")).serving_version == 1
        await _serves_as(client, SearchKind.SEARCH_KIND_HNSW)
        assert await ids(client, "docs", clustered(30, seed=1)[4], 1) == ["d904"]

        # A build may say otherwise than its index.
        await client.build_index_version(
            "docs", recall_target=0.5, kind=SearchKind.SEARCH_KIND_IVF_RABITQ
        )
        bits = await ended(client, "docs", 3)
        assert (bits.kind, bits.recall_target) == (SearchKind.SEARCH_KIND_IVF_RABITQ, 0.5)


async def _follows(client: AsyncClient, vector: NDArray[np.float32], name: str) -> None:
    for _ in range(100):
        if await ids(client, "docs", vector, 1) == [name]:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name} is not found")


async def _serves_as(client: AsyncClient, kind: SearchKind.ValueType) -> None:
    for _ in range(100):
        found = await client.describe_index("docs")
        if {each.kind for each in found.shards} == {kind} == {found.index.kind}:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"the shards do not serve as {SearchKind.Name(kind)}: {found}")


async def test_what_cannot_be_asked_of_a_version_is_refused(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (_, client):
        await client.create_index("docs", dimension=DIMENSION)
        exact = SearchKind.SEARCH_KIND_EXACT
        for wrong, what in (
            (client.create_index("other", dimension=DIMENSION, kind=exact), "version 0"),
            (client.create_index("other", dimension=DIMENSION, recall_target=1.0), "at most"),
            (client.update_index("docs", kind=exact), "version 0"),
            (client.update_index("docs", recall_target=-0.5), "at most"),
            (client.build_index_version("docs", kind=exact), "version 0"),
            (client.build_index_version("docs", recall_target=1.5), "at most"),
        ):
            with pytest.raises(InvalidArgumentError, match=what):
                await wrong
        with pytest.raises(IndexNotFoundError):
            await client.update_index("nobody", recall_target=0.9)
        assert (await client.describe_index("docs")).index.recall_target == 0.95
