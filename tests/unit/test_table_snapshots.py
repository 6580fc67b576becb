"""Does a snapshot hold exactly one version of an index, and what comes of it the same rows?"""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from shoal.table import (
    EMPTY_CURSOR,
    Catalogue,
    IndexExistsError,
    PassageTable,
    StorageFullError,
    Tombstone,
    copying,
    durability,
    present_rows,
    schema,
    snapshots,
    stores,
)
from shoal.table.catalogue import INDEXES
from shoal.table.copying import Copying
from shoal.table.restoring import Place, restore_index
from shoal.table.snapshot_errors import (
    CopyEndedError,
    SnapshotDamagedError,
    SnapshotExistsError,
    SnapshotFormatError,
    SnapshotNotFoundError,
    StoreUnavailableError,
)
from shoal.table.snapshots import (
    SNAPSHOT,
    UNFINISHED,
    begin,
    find_snapshots,
    read_snapshot,
    seal,
    take_snapshot,
)
from shoal.table.stores import open_store

from tests.unit.test_table_durability import Disk
from tests.unit.test_table_log import DIMENSION, append, document


class Kept:
    """An index in a catalogue, and a place for its snapshots."""

    def __init__(self, root):
        self.root = root
        self.catalogue = Catalogue(root / "data")
        self.entry = self.catalogue.create(
            "docs",
            dimension=DIMENSION,
            encoder_model="model@1",
            request_id="once",
            make_table=PassageTable.create,
        )
        self.table = PassageTable.open(self.catalogue.table_uri(self.entry))

    def store(self, name="kept"):
        return open_store(str(self.root / name), outside=self.catalogue.root)

    def take(self, name="kept", progress=None, pin="test"):
        pinned = self.table.pin(pin)
        try:
            return take_snapshot(self.entry, pinned, self.store(name), progress or Copying())
        finally:
            self.table.unpin(pin)

    def restore(self, name="again", kept="kept", progress=None):
        store = self.store(kept)
        uid, folder = self.catalogue.reserve(name)
        place = Place(name, uid, folder, self.catalogue.root / folder)
        try:
            entry = restore_index(store, read_snapshot(store), place, progress or Copying())
            self.catalogue.enter(entry)
        finally:
            self.catalogue.release(name, folder)
        return entry, PassageTable.open(self.catalogue.table_uri(entry))

    def folders(self):
        return sorted(path.name for path in (self.catalogue.root / INDEXES).iterdir())


@pytest.fixture
def kept(tmp_path):
    made = Kept(tmp_path)
    yield made
    made.catalogue.close()


def rows_of(table):
    """Everything of every row, by its id."""
    names = [name for name in schema.table_schema(DIMENSION).names if name != schema.VECTOR]
    batches = table.scan(names, with_vectors=True)
    return {row["_rowid"]: row for batch in batches for row in batch.to_pylist()}


def test_rows_keep_their_ids_and_followers_their_place(kept):
    """A segment names rows by id, and a cursor fragments by number: both must go on to hold."""
    for sequence in range(40):
        append(kept.table, [document(f"d{sequence}", f"text {sequence}")], sequence)
    assert kept.table.compact()
    follower = PassageTable.open(kept.table.uri)
    batches, cursor = follower.changes(EMPTY_CURSOR)
    assert sum(batch.num_rows for batch in batches) == 40
    append(kept.table, [document("d3", "newer"), Tombstone("d5"), document("e", "a", "b")], 40)
    version, rows = kept.table.version, rows_of(kept.table)
    manifest = kept.take()
    append(kept.table, [document("later")], 50)

    entry, restored = kept.restore()
    assert rows_of(restored) == rows
    assert (restored.version, restored.last_sequence()) == (version, 42)
    assert (manifest.table_version, manifest.row_count) == (version, len(rows))
    # d0 to d39 without d5, and e with two passages.
    assert (manifest.document_count, manifest.passage_count) == (40, 41)
    present = present_rows(restored.scan())
    assert "d5" not in present.column("document_id").to_pylist()
    # A follower that has the first 40 rows takes the others, and them alone, from either table.
    batches, _ = restored.changes(cursor)
    assert [row["sequence"] for batch in batches for row in batch.to_pylist()] == [40, 41, 42, 42]
    taken = restored.take([3, 41], ["text"]).to_pylist()
    assert taken == kept.table.take([3, 41], ["text"]).to_pylist()
    # Writes go on with ids and sequences that were never given.
    append(restored, [document("new")], restored.last_sequence() + 1)
    assert set(rows_of(restored)) - set(rows) == {max(rows) + 1}
    assert restored.compact() is False
    assert (entry.uid != kept.entry.uid, entry.encoder_model) == (True, "model@1")
    assert kept.catalogue.get("again") == entry


def test_only_the_files_of_that_version_are_taken(kept):
    for sequence in range(40):
        append(kept.table, [document(f"d{sequence}")], sequence)
    assert kept.table.compact()
    manifest = kept.take()
    names = [file.name for file in manifest.files]
    assert len([name for name in names if name.startswith("table/data/")]) < 10
    assert len([name for name in names if name.startswith("table/_versions/")]) == 1
    on_disk = {
        path.relative_to(kept.root / "kept").as_posix(): path.stat().st_size
        for path in (kept.root / "kept").rglob("*")
        if path.is_file()
    }
    assert on_disk.pop(SNAPSHOT) > 0
    sizes = {f"{manifest.attempt}/{file.name}": file.size_bytes for file in manifest.files}
    assert on_disk == sizes


def test_commits_compactions_and_cleanings_go_on_while_a_version_is_copied(kept, monkeypatch):
    for sequence in range(40):
        append(kept.table, [document(f"d{sequence}")], sequence)
    rows = rows_of(kept.table)
    pinned = kept.table.pin("test")
    begun, go_on = threading.Event(), threading.Event()
    blocks = stores.Store.blocks

    def slow(self, name, missing):
        begun.set()
        assert go_on.wait(60)
        yield from blocks(self, name, missing)

    monkeypatch.setattr(stores.Store, "blocks", slow)
    with ThreadPoolExecutor(1) as executor:
        taking = executor.submit(take_snapshot, kept.entry, pinned, kept.store(), Copying())
        assert begun.wait(60)
        for sequence in range(40, 60):
            append(kept.table, [document(f"d{sequence - 40}", "newer")], sequence)
        assert kept.table.compact()
        kept.table.clean(older_than_s=0)
        go_on.set()
        taking.result()
    _, restored = kept.restore()
    assert rows_of(restored) == rows
    before = len(list((Path(kept.table.uri) / "data").iterdir()))
    kept.table.unpin("test")
    kept.table.clean(older_than_s=0)
    assert len(list((Path(kept.table.uri) / "data").iterdir())) < before


def test_a_pin_of_a_writer_that_died_is_found(kept):
    kept.table.pin("lost")
    again = PassageTable.open(kept.table.uri)
    assert again.pins() == ["lost"]
    again.unpin("lost")
    assert kept.table.pins() == []


def test_readers_are_not_disturbed_by_pins(kept):
    """Lance lends an object to one at a time while its tags change."""
    append(kept.table, [document("a")], 0)
    stop = threading.Event()

    def read():
        while not stop.is_set():
            assert kept.table.version > 0
            assert kept.table.row_count > 0

    with ThreadPoolExecutor(2) as executor:
        reading = [executor.submit(read) for _ in range(2)]
        for number in range(100):
            kept.table.pin(str(number))
            kept.table.unpin(str(number))
        stop.set()
        for each in reading:
            each.result()


def test_an_unfinished_snapshot_is_no_snapshot_and_is_replaced(kept, monkeypatch):
    append(kept.table, [document("a")], 0)

    def die(self, names):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        # As after `kill -9`: nobody cleans up.
        patched.setattr(stores.Store, "sync", lambda self: die(self, []))
        patched.setattr(stores.Store, "remove", lambda self, names: None)
        patched.setattr(stores.Store, "remove_if_empty", lambda self: None)
        with pytest.raises(KeyboardInterrupt):
            kept.take()
    assert UNFINISHED in kept.store().names()
    assert find_snapshots(kept.store(), 10) == ([], "")
    assert find_snapshots(open_store(str(kept.root), outside=kept.catalogue.root), 10)[0] == []
    with pytest.raises(SnapshotNotFoundError, match="unfinished"):
        read_snapshot(kept.store())
    (stale,) = (path for path in (kept.root / "kept").iterdir() if path.is_dir())
    (kept.root / "kept" / ".unfinished.json.new").write_bytes(b"{")
    append(kept.table, [document("b")], 1)
    manifest = kept.take()
    assert manifest.document_count == 2
    assert not stale.exists()
    assert sorted(kept.store().names()) == sorted([SNAPSHOT, manifest.attempt])
    with pytest.raises(SnapshotExistsError):
        kept.take()


class Waiting:
    """Something that the snapshot of one thread stops at, while those of others go on."""

    def __init__(self, monkeypatch, owner, name, *, after=False):
        self.begun, self.go_on, self.thread = threading.Event(), threading.Event(), None
        original = getattr(owner, name)

        def waiting(*arguments):
            done = original(*arguments) if after else None
            if threading.current_thread() is self.thread:
                self.begun.set()
                assert self.go_on.wait(60)
            return done if after else original(*arguments)

        monkeypatch.setattr(owner, name, waiting)

    def take(self, kept):
        """Take a snapshot in a thread, until it stops."""

        def taking():
            self.thread = threading.current_thread()
            return kept.take(pin="displaced")

        executor = ThreadPoolExecutor(1)
        taken = executor.submit(taking)
        executor.shutdown(wait=False)
        assert self.begun.wait(60)
        return taken


def intact(kept):
    """Have the snapshot restored, all checksums compared, and nothing beside it."""
    manifest = read_snapshot(kept.store())
    _, restored = kept.restore(f"again-{len(kept.folders())}")
    assert restored.row_count == manifest.row_count
    assert sorted(kept.store().names()) == sorted([SNAPSHOT, manifest.attempt])
    return manifest


@pytest.mark.parametrize("step", ["_version_folder", "_copy_table", "_count_present"])
def test_a_displaced_attempt_writes_nothing_into_the_one_that_was_finished(kept, monkeypatch, step):
    """Two clusters, one place: each copies to names of its own."""
    append(kept.table, [document(f"d{at}") for at in range(30)], 0)
    waiting = Waiting(monkeypatch, snapshots, step)
    displaced = waiting.take(kept)
    append(kept.table, [Tombstone("d0"), document("d1", "other")], 30)
    winner = kept.take()
    waiting.go_on.set()
    with pytest.raises((SnapshotExistsError, StoreUnavailableError)):
        displaced.result()
    found = intact(kept)
    assert (found.attempt, found.files) == (winner.attempt, winner.files)
    assert winner.document_count == 29


def test_an_attempt_that_is_displaced_as_it_finishes_gives_up(kept, monkeypatch):
    """The last look comes before the next attempt begins, and the snapshot is written after it."""
    append(kept.table, [document("a")], 0)
    waiting = Waiting(monkeypatch, snapshots, "seal", after=True)
    first = waiting.take(kept)
    begun = begin(kept.store(), "docs")
    waiting.go_on.set()
    with pytest.raises(SnapshotExistsError, match="begun meanwhile"):
        first.result()
    assert kept.store().read(UNFINISHED) == begun.mark
    assert kept.store().names() == [UNFINISHED]
    kept.take()
    intact(kept)


def test_an_attempt_that_begins_as_another_finishes_gives_up(kept, monkeypatch):
    append(kept.table, [document("a")], 0)
    names = stores.Store.names

    def finished_meanwhile(self):
        found = names(self)
        monkeypatch.setattr(stores.Store, "names", names)
        kept.take()
        return found

    monkeypatch.setattr(stores.Store, "names", finished_meanwhile)
    with pytest.raises(SnapshotExistsError, match="a snapshot"):
        begin(kept.store(), "docs")
    intact(kept)


def test_a_file_that_is_being_written_is_not_copied(tmp_path):
    """It may be gone the next moment, under the name that it is written as."""
    (tmp_path / "segments").mkdir()
    for name in ("manifest.json", ".manifest.json.new", "segments/a.bin", "segments/.a.bin.new"):
        (tmp_path / name).write_bytes(b"")
    found = [path.relative_to(tmp_path).as_posix() for path in snapshots._files_of(tmp_path)]
    assert found == ["manifest.json", "segments/a.bin"]


def test_a_copy_that_is_ended_leaves_nothing(kept):
    append(kept.table, [document("a")], 0)
    ended = Copying()
    ended.end()
    with pytest.raises(CopyEndedError):
        kept.take(progress=ended)
    assert not (kept.root / "kept").exists()
    kept.take()
    before = kept.folders()
    with pytest.raises(CopyEndedError):
        kept.restore(progress=ended)
    assert kept.folders() == before
    kept.restore()


class Full:
    """A file system that takes so many bytes."""

    def __init__(self, room_bytes):
        self.left = room_bytes
        self.lock = threading.Lock()

    def opened(self, open_file):
        def opening(filesystem, path, mode="rb", **options):
            file = open_file(filesystem, path, mode, **options)
            if "w" in mode:
                write = file.write

                def limited(data):
                    with self.lock:
                        self.left -= len(data)
                        if self.left < 0:
                            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
                    return write(data)

                file.write = limited
            return file

        return opening


def test_a_full_disk_is_said_and_cleaned_up(kept, monkeypatch):
    for sequence in range(5):
        append(kept.table, [document(f"d{sequence}")], sequence)
    kind = stores.local_store(kept.root)._filesystem.__class__
    with monkeypatch.context() as patched:
        patched.setattr(kind, "open", Full(9000).opened(kind.open))
        with pytest.raises(StorageFullError, match="No space left on device"):
            kept.take()
    assert not (kept.root / "kept").exists()
    kept.take()
    before = kept.folders()
    with monkeypatch.context() as patched:
        patched.setattr(kind, "open", Full(9000).opened(kind.open))
        with pytest.raises(StorageFullError, match="No space left on device"):
            kept.restore()
    assert kept.folders() == before
    assert kept.restore()[1].row_count == 5


def test_a_finished_snapshot_survives_a_power_cut(kept, monkeypatch):
    disk = Disk()
    for sequence in range(5):
        append(kept.table, [document(f"d{sequence}")], sequence)
    (kept.root / "place").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(durability.os, "fsync", disk.fsync)
        kept.take("place/kept")
    disk.restore(kept.root / "place", kept.root / "after")
    assert kept.restore(kept="after/kept")[1].row_count == 5


def test_a_restored_index_survives_a_power_cut(kept, monkeypatch, tmp_path):
    disk = Disk()
    for sequence in range(5):
        append(kept.table, [document(f"d{sequence}")], sequence)
    kept.take()
    kept.catalogue.drop("docs")
    with monkeypatch.context() as patched:
        patched.setattr(durability.os, "fsync", disk.fsync)
        entry, table = kept.restore()
        rows = rows_of(table)
        after = disk.restore(kept.catalogue.root, tmp_path / "after")
    reopened = Catalogue(after)
    assert reopened.entries() == [entry]
    assert rows_of(PassageTable.open(reopened.table_uri(entry), repair=True)) == rows
    reopened.close()


def test_a_name_that_is_being_restored_is_taken(kept):
    _, folder = kept.catalogue.reserve("again")
    for take in (
        lambda: kept.catalogue.reserve("again"),
        lambda: kept.catalogue.reserve("docs"),
        lambda: kept.catalogue.create(
            "again",
            dimension=DIMENSION,
            encoder_model="",
            request_id="",
            make_table=PassageTable.create,
        ),
    ):
        with pytest.raises(IndexExistsError):
            take()
    kept.catalogue.release("again", folder)
    assert kept.catalogue.reserve("again")[1] != folder


def test_what_a_crash_left_of_a_restoration_is_swept(kept):
    _, folder = kept.catalogue.reserve("again")
    (kept.catalogue.root / folder / "table.lance").mkdir()
    kept.catalogue.close()
    kept.catalogue = Catalogue(kept.root / "data")
    assert len(kept.folders()) == 1
    kept.catalogue.reserve("again")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format": 2}, SnapshotFormatError),
        ({"row_count": 7}, SnapshotDamagedError),
        ({"table_version": 1}, SnapshotDamagedError),
        ({"entry": {"name": "a", "from": "the future"}}, SnapshotFormatError),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(kept, change, error):
    append(kept.table, [document("a")], 0)
    manifest = kept.take().model_copy(update=change)
    kept.store().write(SNAPSHOT, seal(manifest))
    before = kept.folders()
    with pytest.raises(error):
        kept.restore()
    assert kept.folders() == before


@pytest.mark.parametrize("name", ["../../etc/passwd", "table/../../x", "elsewhere/a", "table/"])
def test_a_manifest_that_names_files_elsewhere_is_refused(kept, name):
    manifest = kept.take()
    (file, *_) = manifest.files
    bad = manifest.model_copy(update={"files": (file.model_copy(update={"name": name}),)})
    kept.store().write(SNAPSHOT, seal(bad))
    with pytest.raises(SnapshotDamagedError, match="no file of an index"):
        kept.restore()


def test_a_manifest_that_was_altered_is_refused(kept):
    kept.take()
    path = kept.root / "kept" / SNAPSHOT
    path.write_text(path.read_text().replace('"row_count": 0', '"row_count": 1'))
    with pytest.raises(SnapshotDamagedError, match="checksum"):
        kept.restore()
    path.write_text("{")
    with pytest.raises(SnapshotDamagedError, match="cannot be read"):
        kept.restore()


def test_a_folder_of_snapshots_is_listed_in_pages(kept):
    for name in ("b", "a", "c"):
        kept.take(f"all/{name}")
    (kept.root / "all" / "notes").mkdir()
    (kept.root / "all" / "file.txt").write_text("no snapshot")
    store = kept.store("all")
    found, after = find_snapshots(store, 2)
    assert [Path(each.uri).name for each in found] == ["a", "b"]
    rest, end = find_snapshots(store, 2, after)
    assert ([Path(each.uri).name for each in rest], end) == (["c"], "")
    assert find_snapshots(kept.store("nowhere"), 2) == ([], "")


def test_a_place_that_cannot_be_reached_says_why(kept):
    with pytest.raises(StoreUnavailableError, match="Install s3fs"):
        open_store("s3://bucket/kept", outside=kept.catalogue.root)
    with pytest.raises(StoreUnavailableError, match="not known"):
        open_store("nonsense://kept", outside=kept.catalogue.root)
    (kept.root / "file").write_text("no folder")
    with pytest.raises((StoreUnavailableError, StorageFullError, SnapshotExistsError)):
        kept.take("file")


def test_an_entry_is_carried_with_whatever_it_says(kept):
    kept.take()
    kept.entry = replace(kept.entry, last_version=7)
    kept.take("other")
    assert kept.restore(kept="other")[0].last_version == 7


def test_documents_are_counted_in_parts(kept, monkeypatch):
    monkeypatch.setattr("shoal.table.snapshots.COUNTED_ROWS", 7)
    for sequence in range(30):
        append(kept.table, [document(f"d{sequence}", "one", "two")], sequence)
    append(kept.table, [Tombstone("d4"), document("d9", "alone")], 30)
    manifest = kept.take()
    assert (manifest.document_count, manifest.passage_count) == (29, 57)


def test_copies_give_way(monkeypatch):
    told = []
    monkeypatch.setattr(copying.os, "setpriority", lambda *arguments: told.append(arguments))
    copying.give_way()
    assert [arguments[-1] > 0 for arguments in told] == [True]
