"""Does a build that fails, however it fails, leave what serves as it was, and no files?

| what happens                                | what is promised                                |
| ------------------------------------------- | ----------------------------------------------- |
| the disk is full while a segment is written | FAILED with why; files gone; the old one serves |
| verification fails                          | the same                                        |
| no parameters reach the recall target       | the same, before anything is encoded            |
| the controller dies in mid-build            | FAILED once it is back; another build succeeds  |
| the writer is away when the build ends      | it is told when it is back                      |
| the index is dropped in mid-build           | nothing is left of it                           |
| the controller dies while another model       | FAILED once it is back; another build encodes   |
| encodes the passages                        | nothing again                                   |
| a segment is damaged after it was published | tests/unit/test_shard_build.py, tests/contract  |
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from shoal.client import AsyncClient, FailedPreconditionError
from shoal.cluster.steps import Step
from shoal.shard.build import VerificationError
from shoal.shard.build_job import BuildJob
from shoal.table.vector_blocks import held_rows
from shoal.v1.indexes_pb2 import IndexVersionState
from shoal.v1.search_pb2 import SearchKind

from loadtest.other_bundles import same_model
from tests.harness.controlled import (
    DIMENSION,
    Controlled,
    clustered,
    controlled,
    ended,
    fill,
    ids,
    until,
)

READY = IndexVersionState.INDEX_VERSION_STATE_READY
FAILED = IndexVersionState.INDEX_VERSION_STATE_FAILED
VECTORS = clustered(700)


async def _index(client: AsyncClient) -> None:
    await client.create_index("docs", dimension=DIMENSION)
    await fill(client, "docs", VECTORS)


async def _serves_exactly(client: AsyncClient) -> None:
    assert (await client.describe_index("docs")).index.index_version == 0
    assert await ids(client, "docs", VECTORS[7], 1) == ["d7"]


def _left(cluster: Controlled, number: int) -> list[str]:
    folder = cluster.version_folder(number)
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


async def test_a_disk_that_fills_up_while_a_segment_is_written(tmp_path: Path) -> None:
    def full(step: Step, job: BuildJob) -> None:
        if step == "encode":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), job.folder)

    async with controlled(tmp_path) as (cluster, client):
        await _index(client)
        cluster.platform.before = full
        await client.build_index_version("docs", promote=True)
        version = await ended(client, "docs", 1)
        assert version.state == FAILED
        assert "No space left on device" in version.message
        assert "Make room" in version.message
        assert _left(cluster, 1) == ["manifest.json"]
        await _serves_exactly(client)
        with pytest.raises(FailedPreconditionError, match="No space left"):
            await client.promote_index_version("docs", 1)
        cluster.platform.before = lambda step, job: None  # Room was made.
        await client.build_index_version("docs", promote=True)
        assert (await ended(client, "docs", 2)).state == READY


async def test_a_recall_target_that_nothing_reaches(tmp_path: Path) -> None:
    # Neighbours that lie closer together than the steps of one byte a number.
    random = np.random.default_rng(0)
    base = clustered(1)
    close = base + 1e-3 * random.standard_normal((900, DIMENSION))
    close[::100] = -close[::100]
    async with controlled(tmp_path) as (cluster, client):
        await client.create_index("docs", dimension=DIMENSION, recall_target=0.99)
        await fill(client, "docs", close.astype(np.float32))
        await client.build_index_version("docs", promote=True, kind=SearchKind.SEARCH_KIND_IVF_SQ8)
        version = await ended(client, "docs", 1)
        assert version.state == FAILED
        assert "ivf-sq8 reaches recall@10 0." in version.message
        assert "below the target 0.990: lower the target" in version.message
        assert "build another kind" in version.message
        assert cluster.platform.steps == [("train", -1)]
        assert _left(cluster, 1) == ["manifest.json"]
        assert (await client.describe_index("docs")).index.index_version == 0


async def test_a_version_that_does_not_verify_is_never_served(tmp_path: Path) -> None:
    def poor(step: Step, job: BuildJob) -> None:
        if step == "verify":
            raise VerificationError("recall@10 is 0.412, below the target 0.950")

    async with controlled(tmp_path) as (cluster, client):
        await _index(client)
        cluster.platform.before = poor
        await client.build_index_version("docs", promote=True)
        version = await ended(client, "docs", 1)
        assert (version.state, version.message[:18]) == (FAILED, "recall@10 is 0.412")
        assert _left(cluster, 1) == ["manifest.json"]
        await _serves_exactly(client)


async def test_a_controller_that_dies_in_mid_build(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (cluster, client):
        await _index(client)
        cluster.platform.gate.clear()
        await client.build_index_version("docs", promote=True)
        await until(lambda: cluster.platform.steps)
        await cluster.kill_controller()
        await _serves_exactly(client)
        (version,) = (await client.index_versions("docs")).versions
        assert not version.HasField("progress")  # Nobody is there to say.
        await cluster.start_controller()
        version = await ended(client, "docs", 1)
        assert version.state == FAILED
        assert "the controller was restarted" in version.message
        cluster.platform.gate.set()
        await client.build_index_version("docs", promote=True)
        assert (await ended(client, "docs", 2)).state == READY
        assert await client.promote_index_version("docs", 2) == 2


async def test_a_writer_that_is_away_when_the_build_ends_is_told_later(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (cluster, client):
        await _index(client)
        cluster.platform.gate.clear()
        await client.build_index_version("docs")
        await cluster.platform.hosts["writer-0"].stop(0)
        cluster.platform.gate.set()
        await until(lambda: ("verify", -1) in cluster.platform.steps)
        folder = next((tmp_path / "data" / "indexes").iterdir()) / "versions" / "1"
        await until(lambda: "READY" in (folder / "manifest.json").read_text())
        await cluster.platform.start_again("writer-0")
        assert (await ended(client, "docs", 1)).state == READY


async def test_an_index_that_is_dropped_in_mid_build_leaves_nothing(tmp_path: Path) -> None:
    async with controlled(tmp_path) as (cluster, client):
        await _index(client)
        cluster.platform.gate.clear()
        await client.build_index_version("docs", promote=True)
        await client.drop_index("docs")
        cluster.platform.gate.set()
        await until(lambda: ("discard", -1) in cluster.platform.steps)
        await until(lambda: not list((tmp_path / "data" / "indexes").iterdir()))
        await client.create_index("docs", dimension=DIMENSION)
        assert list((await client.index_versions("docs")).versions) == []


async def test_a_controller_that_dies_while_passages_are_encoded_anew(tmp_path: Path) -> None:
    """What was encoded is kept, and another build goes on with it."""
    encoding, go_on = threading.Event(), threading.Event()

    def hold(step: Step, job: BuildJob) -> None:
        if step == "encode_rows":
            encoding.set()
            assert go_on.wait(30.0)

    bundle = same_model(tmp_path / "bundle", "another")
    async with controlled(tmp_path / "home") as (cluster, client):
        await client.create_index("docs")
        await client.upsert("docs", [{"id": f"d{n}", "text": f"text {n}"} for n in range(20)])
        cluster.platform.before = hold
        begun = await client.build_index_version("docs", encoder_bundle=str(bundle))
        assert await asyncio.to_thread(encoding.wait, 30.0)
        await cluster.kill_controller()
        # What writes come meanwhile are not kept waiting for a model that has not encoded yet.
        await client.upsert("docs", [{"id": "late", "text": "written meanwhile"}])
        go_on.set()  # The step's own process lives on for a moment.
        fingerprint = begun.encoder_model.partition("@")[2]
        folder = cluster.version_folder(1).parents[1] / "vectors" / fingerprint
        await until(lambda: len(held_rows(folder)) == 20)
        await cluster.start_controller()
        interrupted = await ended(client, "docs", 1)
        assert interrupted.state == FAILED
        assert "the controller was restarted" in interrupted.message

        cluster.platform.before = lambda step, job: None
        cluster.platform.ranges.clear()
        await client.build_index_version("docs", encoder_bundle=str(bundle))
        version = await ended(client, "docs", 2)
        assert (version.state, version.passage_count) == (READY, 21), version.message
        assert sum(cluster.platform.ranges) == 1  # The one that was written meanwhile.
        assert not list(folder.glob("*.npz"))
