"""Do writes share commits, keep their order, and fail together when the storage is full?"""

import asyncio
import contextlib
import resource
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from shoal.table import (
    DocumentRows,
    PassageSpan,
    PassageTable,
    StorageFullError,
    TableNotFoundError,
    Tombstone,
    present_rows,
)
from shoal.writer.commit import Committer
from shoal.writer.config import WriterSettings

DIMENSION = 4


def document(document_id, text="text", dimension=DIMENSION):
    vectors = np.ones((1, dimension), dtype=np.float32)
    return DocumentRows(
        document_id, "", "", bytes(32), 0, [PassageSpan(0, len(text), text)], vectors
    )


@contextlib.contextmanager
def executors():
    with ThreadPoolExecutor(2) as commits, ThreadPoolExecutor(1) as maintenance:
        yield {"executor": commits, "maintenance_executor": maintenance}


@pytest.fixture
def table(tmp_path):
    return PassageTable.create(str(tmp_path / "index" / "table.lance"), DIMENSION)


@pytest.fixture
def settings(tmp_path):
    return WriterSettings(data=tmp_path)


@pytest.fixture
def committer(table, settings):
    with executors() as threads:
        yield Committer(table, next_sequence=0, settings=settings, **threads)


def stored(table):
    table.refresh()
    rows = present_rows(table.scan())
    return [] if rows is None else sorted(rows.column("document_id").to_pylist())


async def test_what_gathers_during_a_commit_shares_the_next_one(table, committer):
    # The lock that an append takes stands for a slow disk.
    with table._appending:
        first = committer.submit([document("first")])
        await asyncio.sleep(0)
        others = [committer.submit([document(f"d{each}")]) for each in range(50)]
        assert not first.done()
        await asyncio.sleep(0)
    versions = await asyncio.gather(first, *others)
    assert committer.commit_count == 2
    assert committer.operation_count == 51
    assert len(set(versions[1:])) == 1
    assert versions[1] == versions[0] + 1
    assert len(stored(table)) == 51
    await committer.close()


async def test_a_commit_is_bounded(table, settings):
    with executors() as threads:
        small = settings.model_copy(update={"commit_rows": 10})
        committer = Committer(table, next_sequence=0, settings=small, **threads)
        done = [committer.submit([document(f"d{each}")]) for each in range(25)]
        versions = await asyncio.gather(*done)
        assert len(set(versions)) == 3
        # What is larger than a commit's bound is not stuck.
        await committer.submit([document(f"e{each}") for each in range(11)])
        await committer.close()
    assert len(stored(table)) == 36


async def test_operations_keep_their_order(table, committer):
    for _ in range(5):
        committer.submit([document("a"), document("b")])
        committer.submit([Tombstone("a")])
    await committer.submit([document("c")])
    assert stored(table) == ["b", "c"]
    sequences = [
        each for batch in table.scan(["sequence"]) for each in batch["sequence"].to_pylist()
    ]
    assert sorted(sequences) == list(range(16))
    await committer.close()


async def test_a_caller_who_leaves_takes_nothing_along(table, committer):
    with table._appending:
        left = committer.submit([document("a")])
        await asyncio.sleep(0)
        other = committer.submit([document("b")])
        left.cancel()
    await other
    assert stored(table) == ["a", "b"]
    await committer.close()


async def test_nothing_is_taken_after_the_end(table, committer):
    last = committer.submit([document("a")])
    await committer.close()
    assert last.done()
    with pytest.raises(TableNotFoundError):
        await committer.submit([document("b")])
    assert stored(table) == ["a"]


async def test_many_small_commits_are_compacted_behind(table, committer):
    for each in range(80):
        await committer.submit([document(f"d{each}")])
    await committer.close()
    table.refresh()
    assert table.fragment_count < 40
    assert len(stored(table)) == 80


@contextlib.contextmanager
def largest_file(size_bytes):
    """Writes beyond that size fail, as on a full disk, with an error of the operating system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_storage_that_cannot_be_written_fails_the_commit_and_loses_nothing(table, committer):
    await committer.submit([document("kept")])
    with largest_file(1 << 16):
        with pytest.raises(StorageFullError, match="cannot be written"):
            await committer.submit([document("large", "x" * (1 << 18))])
        assert stored(PassageTable.open(table.uri)) == ["kept"]
    await committer.submit([document("after")])
    assert stored(PassageTable.open(table.uri)) == ["after", "kept"]
    await committer.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB; only root may make one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_full_disk_loses_nothing_acknowledged_and_writing_resumes(small_disk, settings):
    table = PassageTable.create(str(small_disk / "table.lance"), DIMENSION)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    acknowledged = []
    with executors() as threads:
        committer = Committer(table, next_sequence=0, settings=settings, **threads)
        text = "".join(map(chr, np.random.default_rng(0).integers(0x4E00, 0x9FFF, 30_000)))

        async def fill():
            for each in range(1000):
                await committer.submit([document(f"d{each}", text)])
                acknowledged.append(f"d{each}")

        with pytest.raises(StorageFullError, match="No space left"):
            await fill()
        assert acknowledged
        reader = PassageTable.open(table.uri)
        assert set(acknowledged) <= set(stored(reader))
        rows = reader.scan(["text"])
        assert all(each == text for batch in rows for each in batch["text"].to_pylist())
        ballast.unlink()
        await committer.submit([document("after", text)])
        assert {"after", *acknowledged} <= set(stored(PassageTable.open(table.uri, repair=True)))
        await committer.close()
