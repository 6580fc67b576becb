"""What if the disk is full?

| what is being written           | what is promised                                        |
| ------------------------------- | ------------------------------------------------------- |
| a commit                        | tests/unit/test_writer_commit.py                        |
| a compaction of the table       | commits go on, no row is lost, and later it succeeds    |
| a version that is built         | tests/faults/test_builds.py, unit/test_shard_build.py   |
| a segment, its tail folded in   | searches go on, it is said, and later it is stored      |
| a snapshot, or an index from it | it is said, nothing is left, and with room it succeeds  |

The disk is a real one of 4 MiB where the right to make one is there, else the operating system
refuses large files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from shoal.client import StorageFullError as StorageFull
from shoal.table import PassageTable, StorageFullError, present_rows
from shoal.writer.commit import Committer
from shoal.writer.config import WriterSettings

from tests.contract.test_shard_moves import serving
from tests.harness.controlled import DIMENSION, clustered, controlled, fill
from tests.harness.shard_corpus import Corpus, layout
from tests.unit.test_writer_commit import document, executors, largest_file

PATIENCE_S = 30.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB; only root may make one."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_up(disk: Path, leave_bytes: int = 0) -> Path:
    """Take all the room of a disk but some; return the file that has it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 12))
        assert os.statvfs(disk).f_bfree == 0
        file.truncate(file.tell() - leave_bytes)
    return ballast


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_a_compaction_that_has_no_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = PassageTable.create(str(tmp_path / "index" / "table.lance"), 4)
    settings = WriterSettings(data=tmp_path)
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 2_000)))

    def found() -> list[str]:
        rows = present_rows(PassageTable.open(table.uri).scan())
        assert rows is not None
        return sorted(rows.column("document_id").to_pylist())

    with executors() as threads:
        committer = Committer(table, next_sequence=0, settings=settings, **threads)
        with largest_file(1 << 15):
            for number in range(45):
                await committer.submit([document(f"d{number}", f"{number} {text}")])
            with pytest.raises(StorageFullError, match="cannot be written"):
                await asyncio.to_thread(table.compact)
            assert committer._maintenance is not None
            await committer._maintenance
            assert f"maintenance of {table.uri} failed" in caplog.text
            assert table.fragment_count == 45
            assert len(found()) == 45
            # Nothing of what could not be finished is left.
            assert len(list((Path(table.uri) / "data").iterdir())) == 45
        await committer.submit([document("after")])
        await committer._maintenance
        assert len(found()) == 46
        await committer.close()
    assert PassageTable.open(table.uri).fragment_count < 45


async def test_a_folded_segment_that_has_no_room(tmp_path: Path, small_disk: Path) -> None:
    corpus = Corpus(tmp_path, dimension=32, seed=2)
    corpus.fill(600)
    ballast = fill_up(small_disk)
    settings = {"snapshot_dir": small_disk / "own", "snapshot_interval_s": 0}
    async with serving(corpus, fold_at_passages=100, **settings) as server:
        await server.change(layout(2))

        async def states(said: bool) -> None:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    found = await server.states(2)
                    if all(("No space left" in each.message) == said for each in found) and all(
                        each.tail_count < 100 for each in found
                    ):
                        return
                    await asyncio.sleep(0.02)

        await states(said=True)
        for _ in range(3):
            version = corpus.fill(300)
            found = await server.states(2, version)
            assert sum(each.passage_count for each in found) == corpus.passage_count
        await states(said=True)  # The tails were folded all the same.
        response = await server.search(corpus.vectors(3), layout(2))
        assert all(each.ready for each in response.shards)
        ballast.unlink()
        await states(said=False)
        assert list((small_disk / "own").glob("*/*/shard-*/*.npy"))


async def test_a_snapshot_that_has_no_room(tmp_path: Path, small_disk: Path) -> None:
    async with controlled(tmp_path / "home") as (_, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", clustered(700))
        ballast = fill_up(small_disk, leave_bytes=1 << 14)
        with pytest.raises(StorageFull, match="No space left on device"):
            await client.snapshot_index("docs", str(small_disk / "kept"))
        assert names_in(small_disk) == ["ballast"]
        ballast.unlink()
        taken = await client.snapshot_index("docs", str(small_disk / "kept"))
        assert taken.document_count == 700


async def test_a_restoration_that_has_no_room(tmp_path: Path, small_disk: Path) -> None:
    kept = tmp_path / "kept"
    async with controlled(tmp_path / "home", data=str(small_disk / "data")) as (_, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", clustered(700))
        await client.snapshot_index("docs", str(kept))
        # Enough for the catalogue, and to enter what is begun, but not for a table.
        ballast = fill_up(small_disk, leave_bytes=1 << 15)
        with pytest.raises(StorageFull, match="No space left on device"):
            await client.restore_index(str(kept), name="again")
        assert len(list((small_disk / "data" / "indexes").iterdir())) == 1
        assert [each.name async for each in client.list_indexes()] == ["docs"]
        ballast.unlink()
        index = await client.restore_index(str(kept), name="again")
        assert index.document_count == 700
