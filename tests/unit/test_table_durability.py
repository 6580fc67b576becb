"""Is an acknowledged commit on the disk, so that a power cut cannot take it?

The power cut is simulated: of all that was written, only what was synced is kept, contents by file
and names by folder, and that is what the table is opened from.
"""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from shoal.table import (
    Catalogue,
    DocumentRows,
    PassageSpan,
    PassageTable,
    build_batch,
    durability,
    present_rows,
)

DIMENSION = 2


class Disk:
    """What survives a power cut."""

    def __init__(self):
        self.contents = {}
        self.names = {}

    def fsync(self, descriptor):
        found = os.fstat(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if stat.S_ISDIR(found.st_mode):
            self.names[found.st_ino] = {each.name: each.lstat().st_ino for each in path.iterdir()}
        else:
            self.contents[found.st_ino] = path.read_bytes()

    def restore(self, root, target):
        """Make the folder as it is found after the power is back."""
        target.mkdir()
        self._restore(os.stat(root).st_ino, target)
        return target

    def _restore(self, inode, target):
        for name, child in self.names.get(inode, {}).items():
            if child in self.names:
                (target / name).mkdir()
                self._restore(child, target / name)
            elif child in self.contents:
                (target / name).write_bytes(self.contents[child])
            else:
                # A name whose contents were never synced: a file of zero bytes, as ext4 leaves it.
                (target / name).write_bytes(b"")


@pytest.fixture
def disk(monkeypatch):
    made = Disk()
    monkeypatch.setattr(durability.os, "fsync", made.fsync)
    return made


def append(table, first, count=1):
    vectors = np.ones((1, DIMENSION), dtype=np.float32)
    operations = [
        DocumentRows(f"d{each}", "", "", bytes(32), 0, [PassageSpan(0, 1, "x")], vectors)
        for each in range(first, first + count)
    ]
    rows = build_batch(operations, first_sequence=first, updated_at_us=0, dimension=DIMENSION)
    return table.append(rows)


def documents(uri):
    rows = present_rows(PassageTable.open(uri, repair=True).scan())
    return [] if rows is None else sorted(rows.column("document_id").to_pylist())


def test_acknowledged_commits_survive_a_power_cut(tmp_path, disk):
    root = tmp_path / "data"
    catalogue = Catalogue(root)
    entry = catalogue.create(
        "a", dimension=DIMENSION, encoder_model="", request_id="", make_table=PassageTable.create
    )
    after = disk.restore(root, tmp_path / "after-creation")
    reopened = Catalogue(after)
    assert reopened.entries() == [entry]
    assert documents(reopened.table_uri(entry)) == []
    reopened.close()

    table = PassageTable.open(catalogue.table_uri(entry))
    for each in range(40):
        append(table, each)
        if each in (0, 17, 39):
            after = disk.restore(root, tmp_path / f"after-{each}")
            kept = documents(str(after / entry.folder / "table.lance"))
            assert kept == sorted(f"d{number}" for number in range(each + 1))

    assert table.compact()
    table.clean(older_than_s=0)
    after = disk.restore(root, tmp_path / "after-compaction")
    assert len(documents(str(after / entry.folder / "table.lance"))) == 40
    catalogue.close()


def test_data_is_synced_before_the_commit_that_names_it(tmp_path, disk, monkeypatch):
    (tmp_path / "index").mkdir()
    table = PassageTable.create(str(tmp_path / "index" / "table.lance"), DIMENSION)
    append(table, 0)

    def cut(root, version):
        raise KeyboardInterrupt

    monkeypatch.setattr(durability, "sync_manifest", cut)
    with pytest.raises(KeyboardInterrupt):
        append(table, 1)
    # Even if the disk has taken the new manifest by itself, the data that it names is there.
    table_root = Path(table.uri)
    for path in [*(table_root / "_versions").iterdir(), table_root / "_versions"]:
        durability.sync_path(path)
    durability.sync_path(tmp_path)
    after = disk.restore(tmp_path, tmp_path.with_name("after"))
    assert documents(str(after / "index" / "table.lance")) == ["d0", "d1"]


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file"
    durability.write_atomically(path, b"old")
    durability.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/a/b", Path("/a/b")),
        ("file:///a/b%20c", Path("/a/b c")),
        ("s3://bucket/a", None),
        ("gs://bucket/a", None),
    ],
)
def test_only_local_uris_are_folders(uri, path):
    assert durability.local_path(uri) == path
