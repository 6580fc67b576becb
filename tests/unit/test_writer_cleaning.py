"""Does a cleaning remove what it may, and nothing else, while writes go on?"""

import asyncio
import contextlib
import resource
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from shoal.table import (
    EMPTY_CURSOR,
    DocumentRows,
    PassageSpan,
    PassageTable,
    StorageFullError,
    TableNotFoundError,
    Tombstone,
    present_rows,
    table_schema,
)
from shoal.table.schema import ModelVectors
from shoal.table.vector_blocks import held_rows, write_block
from shoal.writer import adoption
from shoal.writer.commit import Committer
from shoal.writer.config import WriterSettings

DIMENSION = 4
PAST_US, FUTURE_US = 1, 4_000_000_000_000_000


def document(document_id, text="text", expires_at_us=None):
    vectors = np.ones((1, DIMENSION), dtype=np.float32)
    spans = [PassageSpan(0, len(text), text)]
    return DocumentRows(document_id, "", "", bytes(32), 0, spans, vectors, expires_at_us)


@pytest.fixture
def table(tmp_path):
    return PassageTable.create(str(tmp_path / "index" / "table.lance"), DIMENSION)


@contextlib.contextmanager
def committing(table, tmp_path, next_sequence=0, **settings):
    declared = {"keep_versions_s": 0, "keep_tombstones_s": 3600} | settings
    with ThreadPoolExecutor(2) as commits, ThreadPoolExecutor(1) as maintenance:
        yield Committer(
            table,
            next_sequence=next_sequence,
            settings=WriterSettings(data=tmp_path, **declared),
            executor=commits,
            maintenance_executor=maintenance,
        )


def stored(table):
    table = PassageTable.open(table.uri)
    rows = present_rows(table.scan())
    return [] if rows is None else sorted(rows.column("document_id").to_pylist())


def files_with(folder, text):
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in found if text.encode() in path.read_bytes()]


async def test_what_was_replaced_deleted_or_expired_leaves_the_table(table, tmp_path):
    with committing(table, tmp_path) as committer:
        for state in range(5):
            await committer.submit([document(f"d{at}", f"state {state}") for at in range(100)])
        await committer.submit([Tombstone(f"d{at}") for at in range(10)])
        await committer.submit([document("old", expires_at_us=PAST_US)])
        await committer.submit([document("young", expires_at_us=FUTURE_US)])
        before = EMPTY_CURSOR
        follower = PassageTable.open(table.uri)
        _, before = follower.changes(before)
        cleaned = await committer.clean()
        assert (cleaned.rows, cleaned.tombstones, cleaned.expired) == (411, 0, 1)
        assert cleaned.bytes > 0
        assert stored(table) == sorted([*(f"d{at}" for at in range(10, 100)), "young"])
        # Tombstones stay, for those who have yet to hear of them.
        assert PassageTable.open(table.uri).row_count == 90 + 10 + 2
        follower.refresh()
        batches, _ = follower.changes(before)
        assert [row["document_id"] for batch in batches for row in batch.to_pylist()] == ["old"]
        again = await committer.clean()
        assert (again.rows, again.tombstones, again.expired) == (0, 0, 0)
        await committer.close()


async def test_forgotten_deletions_are_recorded_and_sequences_go_on(table, tmp_path):
    with committing(table, tmp_path, keep_tombstones_s=0) as committer:
        await committer.submit([document("a"), document("b")])
        _, cursor = table.changes(EMPTY_CURSOR)
        await committer.submit([Tombstone("b")])
        cleaned = await committer.clean()
        assert (cleaned.rows, cleaned.tombstones) == (1, 1)
        await committer.close()
    opened = PassageTable.open(table.uri, repair=True)
    assert opened.row_count == 1
    assert opened.trimmed.passed(cursor.sequence, (0, 1024))
    # The highest sequence is in no row any more, and is not given again.
    assert opened.last_sequence() == 2
    _, anew = opened.changes(EMPTY_CURSOR)
    assert not opened.trimmed.passed(anew.sequence, (0, 1024))


async def test_a_document_written_while_its_past_expires_is_kept(table, tmp_path):
    with committing(table, tmp_path) as committer:
        await committer.submit([document(f"d{at}", expires_at_us=PAST_US) for at in range(4)])
        plan = committer.cleaner._plan

        def planned(slots):
            found = plan(slots)
            # Written between the look at the table and the deletion: done, and still on its way.
            asyncio.run_coroutine_threadsafe(write(), loop).result()
            return found

        async def write():
            await committer.submit([document("d0", "new")])
            waiting.append(committer.submit([document("d1", "new")]))

        waiting, loop = [], asyncio.get_running_loop()
        committer.cleaner._plan = planned
        await committer.clean()
        await asyncio.gather(*waiting)
        await committer.submit([document("d2", "new")])
        assert stored(table) == ["d0", "d1", "d2"]
        await committer.close()


async def test_writes_go_on_during_cleanings_and_lose_nothing(table, tmp_path):
    with committing(table, tmp_path, keep_tombstones_s=0, trim_rows=50) as committer:
        expected = {}

        async def write(worker):
            random = np.random.default_rng(worker)
            for step in range(120):
                document_id = f"w{worker}-{random.integers(0, 15)}"
                if random.random() < 0.2:
                    await committer.submit([Tombstone(document_id)])
                    expected.pop(document_id, None)
                else:
                    await committer.submit([document(document_id, str(step))])
                    expected[document_id] = str(step)

        async def clean():
            while not done.is_set():
                await committer.clean()

        done = asyncio.Event()
        cleaning = asyncio.create_task(clean())
        await asyncio.gather(*(write(worker) for worker in range(4)))
        done.set()
        await cleaning
        await committer.clean(thorough=True)
        rows = present_rows(
            PassageTable.open(table.uri).scan(["document_id", "sequence", "tombstone", "text"])
        )
        columns = (rows.column(name).to_pylist() for name in ("document_id", "text"))
        assert dict(zip(*columns, strict=True)) == expected
        assert PassageTable.open(table.uri).row_count == len(expected)
        await committer.close()


async def test_a_purge_leaves_nothing_in_the_files(table, tmp_path):
    secret, other = "xylophone-secret-0815", "a text that stays, number 4711"
    with committing(table, tmp_path, keep_versions_s=3600) as committer:
        await committer.submit([document("secret-id-0815", secret), document("b", other)])
        await committer.submit([document("secret-id-0815", secret + ", again")])
        await committer.submit([Tombstone("secret-id-0815")])
        # A compaction has it in another file besides.
        table.rewrite(0.0)
        folder = tmp_path / "index"
        assert files_with(folder, secret)
        assert files_with(folder, "secret-id-0815")
        purged = await committer.cleaner.purge(["secret-id-0815", "nobody"])
        assert (purged.rows, purged.unknown, purged.rewritten) == (3, ["nobody"], [])
        assert purged.bytes > 0
        assert files_with(folder, secret) == files_with(folder, "secret-id-0815") == []
        assert files_with(folder, other)
        assert stored(table) == ["b"]
        again = await committer.cleaner.purge(["secret-id-0815"])
        assert (again.rows, again.unknown) == (0, ["secret-id-0815"])
        await committer.close()


async def test_a_purge_leaves_what_was_written_since(table, tmp_path):
    with committing(table, tmp_path) as committer:
        await committer.submit([document("a", "secret-4712")])
        await committer.submit([Tombstone("a")])
        await committer.submit([document("a", "new")])
        purged = await committer.cleaner.purge(["a"])
        assert (purged.rows, purged.rewritten) == (2, ["a"])
        assert files_with(tmp_path / "index", "secret-4712") == []
        assert stored(table) == ["a"]
        await committer.close()


async def test_files_stay_few_as_large_ones_are_cleaned_and_purged(table, tmp_path):
    with committing(table, tmp_path) as committer:
        for _ in range(2):
            await committer.submit([document(f"d{at}") for at in range(4000)])
        await committer.clean(thorough=True)
        await committer.submit([Tombstone("d7")])
        await committer.cleaner.purge(["d7"])
        opened = PassageTable.open(table.uri)
        assert opened.row_count == len(stored(table)) == 3999
        assert opened.fragment_count <= 3
        await committer.close()


async def test_a_purge_under_a_pin_says_so_and_is_finished_once_that_goes(table, tmp_path):
    secret = "xylophone-secret-0816"
    with committing(table, tmp_path, keep_versions_s=3600) as committer:
        cleaner, folder = committer.cleaner, tmp_path / "index"
        await committer.submit([document("a", secret), document("b")])
        kept = await cleaner.pin("first")
        await committer.submit([Tombstone("a")])
        later = await cleaner.pin("second")
        purged = await cleaner.purge(["a"])
        assert purged.pinned
        assert files_with(folder, secret)
        assert (kept.row_count, later.row_count) == (2, 3)
        await cleaner.unpin("second")
        # The other one is still being copied.
        assert sum(batch.num_rows for batch in kept.scan(["text"])) == 2
        await cleaner.unpin("first")
        assert files_with(folder, secret) == []
        assert not (await cleaner.purge(["b"])).pinned
        assert stored(table) == ["b"]
        await committer.close()


class Held:
    """The one thread for maintenance, kept busy until it is let go."""

    def __init__(self, cleaner):
        self._go_on = threading.Event()
        self._busy = cleaner._executor.submit(self._go_on.wait, 60)

    def go_on(self):
        self._go_on.set()
        assert self._busy.result()


async def until(condition):
    while not condition():
        await asyncio.sleep(0)


async def test_purges_that_come_together_are_done_together(table, tmp_path):
    with committing(table, tmp_path, keep_versions_s=3600) as committer:
        await committer.submit([document(f"d{at}", f"secret-{at}-") for at in range(20)])
        await committer.submit([Tombstone(f"d{at}") for at in range(20)])
        dropped, drop = [], table.drop_history
        table.drop_history = lambda: dropped.append(1) or drop()
        held, cleaner = Held(committer.cleaner), committer.cleaner
        purges = [asyncio.create_task(cleaner.purge([f"d{at}", f"no{at}"])) for at in range(10)]
        await until(lambda: cleaner._cleaning.locked())
        purges += [asyncio.create_task(cleaner.purge([f"d{at}", "d19"])) for at in range(10, 18)]
        leaver = asyncio.create_task(cleaner.purge(["d18"]))
        await until(lambda: len(cleaner._purges) == 9)
        leaver.cancel()
        held.go_on()
        results = await asyncio.gather(*purges)
        assert len(dropped) == 2
        assert [each.rows for each in results] == [2] * 10 + [4] * 8
        unknown = [each.unknown for each in results]
        assert unknown == [[f"no{at}"] for at in range(10)] + [[]] * 8
        # Whoever has left purges nothing.
        left = [at for at in range(20) if files_with(tmp_path / "index", f"secret-{at}-")]
        assert left == [18]
        with pytest.raises(asyncio.CancelledError):
            await leaver
        await committer.close()


async def test_purges_that_fail_together_are_told_and_the_next_one_works(table, tmp_path):
    with committing(table, tmp_path) as committer:
        await committer.submit([document("a")])
        await committer.submit([Tombstone("a")])
        rewrite = table.rewrite

        def full(part):
            table.rewrite = rewrite
            raise StorageFullError(table.uri, "full")

        table.rewrite = full
        both = [committer.cleaner.purge(["a"]), committer.cleaner.purge(["b"])]
        results = await asyncio.gather(*both, return_exceptions=True)
        assert [type(each) for each in results] == [StorageFullError] * 2
        assert (await committer.cleaner.purge(["a"])).rows == 0
        await committer.close()


async def test_others_have_the_thread_between_the_turns_of_an_adoption(
    table, tmp_path, monkeypatch
):
    with committing(table, tmp_path) as committer:
        for name in ("a", "b", "c"):
            await committer.submit([document(name)])
        model = ModelVectors("new@abc", 6)
        table.add_model(model)
        ids, folder = table.missing(model.model), tmp_path / "index" / "vectors" / "abc"
        write_block(folder, ids, np.ones((3, 6), np.float32), table)
        monkeypatch.setattr(adoption, "TURN_BYTES", 4 * 6)
        held = Held(committer.cleaner)
        adopting = asyncio.create_task(committer.cleaner.adopt(model.model, folder))
        await until(lambda: committer.cleaner._executor._work_queue.qsize() > 0)
        others = committer.cleaner._executor.submit(lambda: len(table.missing(model.model)))
        held.go_on()
        assert await adopting == (3, 0)
        assert others.result() > 0
        await committer.close()


async def test_a_cleaning_takes_the_vectors_along_that_wait_for_the_table(table, tmp_path):
    with committing(table, tmp_path) as committer:
        await committer.submit([document("a", "old"), document("b")])
        model = ModelVectors("new@abc", 6)
        table.add_model(model)
        ids, folder = table.missing(model.model), tmp_path / "index" / "vectors" / "abc"
        write_block(folder, ids, np.ones((2, 6), np.float32), table)
        await committer.submit([document("a", "new")])
        assert (await committer.clean()).rows == 1
        assert held_rows(folder).tolist() == ids[1:].tolist()
        await committer.close()


async def test_a_cleaning_that_is_given_up_leaves_the_running_one_alone(table, tmp_path):
    with committing(table, tmp_path) as committer:
        await committer.submit([document("old", expires_at_us=PAST_US)])
        held = Held(committer.cleaner)
        running = asyncio.create_task(committer.clean())
        await until(lambda: committer.cleaner._cleaning.locked())
        waiting = asyncio.create_task(committer.clean())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        held.go_on()
        assert (await running).expired == 1
        assert committer._watched is None
        await committer.close()


@pytest.mark.parametrize("work", ["clean", "purge", "pin", "left"])
async def test_the_end_waits_for_what_is_under_way_and_refuses_the_rest(table, tmp_path, work):
    """What came after it would make the folder of a dropped index again."""
    with committing(table, tmp_path) as committer:
        await committer.submit([document("a")])
        await committer.submit([Tombstone("a")])
        cleaner = committer.cleaner
        calls = {
            "clean": lambda: committer.clean(thorough=True),
            "purge": lambda: cleaner.purge(["a"]),
            "pin": lambda: cleaner.pin("p"),
            "left": lambda: cleaner.purge(["a"]),
        }
        held = Held(cleaner)
        begun = asyncio.create_task(calls[work]())
        await until(lambda: cleaner._executor._work_queue.qsize() > 0)
        if work == "left":
            begun.cancel()
        closing = asyncio.create_task(committer.close())
        await asyncio.sleep(0)
        assert not closing.done()
        held.go_on()
        await closing
        assert begun.done()
        await asyncio.gather(begun, return_exceptions=True)
        shutil.rmtree(tmp_path / "index")
        for call in calls.values():
            with pytest.raises(TableNotFoundError):
                await call()
        with pytest.raises(TableNotFoundError):
            await cleaner.unpin("p")
        assert cleaner._executor.submit(int).result() == 0
        assert not (tmp_path / "index").exists()


async def test_a_full_disk_ends_a_cleaning_and_loses_nothing(table, tmp_path):
    with committing(table, tmp_path) as committer:
        for _ in range(3):
            await committer.submit([document(f"d{at}", "t" * 100) for at in range(500)])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        # The operating system refuses larger files, much as a full disk refuses all.
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        try:
            with pytest.raises(StorageFullError):
                await committer.clean(thorough=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert len(stored(table)) == 500
        await committer.submit([document("new")])
        await committer.clean(thorough=True)
        opened = PassageTable.open(table.uri, repair=True)
        assert opened.row_count == len(stored(table)) == 501
        await committer.close()


def test_a_table_of_an_older_release_is_read_and_gets_its_column(tmp_path):
    import lance

    layout = table_schema(DIMENSION)
    old = pa.schema(
        [field for field in layout if field.name != "expires_at"],
        metadata={b"shoal.schema_version": b"1"},
    )
    uri = str(tmp_path / "table.lance")
    row = {
        "sequence": 0,
        "document_id": "a",
        "ordinal": 0,
        "slot": 7,
        "tombstone": False,
        "updated_at": 5,
        "vector": [1.0, 0, 0, 0],
    }
    rows = pa.Table.from_pylist([{name: row.get(name) for name in old.names}], schema=old)
    lance.write_dataset(rows, uri, enable_stable_row_ids=True)
    reader = PassageTable.open(uri)
    (batch,) = reader.scan()
    assert batch.column("expires_at").null_count == 1
    ids = batch.column("_rowid").to_pylist()
    assert reader.take(ids, ["expires_at", "document_id"]).to_pylist() == [
        {"expires_at": None, "document_id": "a", "_rowid": ids[0]}
    ]
    writer = PassageTable.open(uri, repair=True)
    with ThreadPoolExecutor(1) as pool:
        committer = Committer(
            writer,
            next_sequence=writer.last_sequence() + 1,
            settings=WriterSettings(data=tmp_path),
            executor=pool,
            maintenance_executor=pool,
        )

        async def write():
            await committer.submit([document("b", expires_at_us=7)])
            await committer.close()

        asyncio.run(write())
    reader.refresh()
    found = {row["document_id"]: row for batch in reader.scan() for row in batch.to_pylist()}
    assert found["a"]["expires_at"] is None
    assert found["b"]["expires_at"].timestamp() == 7e-6
