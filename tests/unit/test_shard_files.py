"""Is a stored segment what was written, whatever happens to its files, and as good to search?"""

import errno
import json
import shutil
from mmap import mmap

import numpy as np
import pytest
import xxhash
from shoal.shard.codebook import train_codebook
from shoal.shard.codes import load_codebook
from shoal.shard.lists import sizes_of
from shoal.shard.load import build_shards
from shoal.shard.search import Target, search
from shoal.shard.segment_folder import MANIFEST, HashedFile
from shoal.shard.shard import Main, Shard
from shoal.shard.snapshot import SnapshotFolder
from shoal.table.cursor import EMPTY_CURSOR

from tests.harness.shard_corpus import UID, Corpus

DIMENSION = 32


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    corpus = Corpus(folder, dimension=DIMENSION, seed=5)
    corpus.fill(700)
    train_codebook(corpus.uri, folder / "codebook", threads=1)
    return corpus, load_codebook(folder / "codebook", DIMENSION)


@pytest.fixture(params=["exact", "codes"])
def stored(request, trained, tmp_path):
    """A main segment, and where it is stored."""
    corpus, codebook = trained
    codebook = None if request.param == "exact" else codebook
    main = build_shards(corpus.table, codebook, [0], 2)[0]
    folder = SnapshotFolder(tmp_path, UID, 1, 2)
    folder.save(0, main)
    return corpus, codebook, main, folder


def found(main, codebook, queries):
    target = Target(0, Shard(main, DIMENSION, 100).view)
    ranking, failures = search([target], codebook, queries, 10, shard_count=2)
    assert not failures
    return ranking


def assert_same(one, other, codebook, queries):
    ours, theirs = found(one, codebook, queries), found(other, codebook, queries)
    np.testing.assert_array_equal(ours.row_ids, theirs.row_ids)
    np.testing.assert_array_equal(ours.scores, theirs.scores)


@pytest.mark.parametrize("mapped", [True, False])
def test_a_stored_segment_finds_the_same(stored, mapped):
    corpus, codebook, main, folder = stored
    loaded = folder.load(0, codebook, DIMENSION, mapped=mapped)
    assert loaded.cursor == main.cursor
    assert loaded.directory.document_count() == main.directory.document_count()
    np.testing.assert_array_equal(loaded.directory.records, main.directory.records)
    np.testing.assert_array_equal(loaded.directory.hashes(), main.directory.hashes())
    ids = main.directory.ids_at(np.arange(20))
    for one, other in zip(
        main.directory.documents(ids, main.directory.hashes()[:20]),
        loaded.directory.documents(ids, loaded.directory.hashes()[:20]),
        strict=True,
    ):
        assert one[0] == other[0]
        np.testing.assert_array_equal(one[1], other[1])
    assert_same(loaded, main, codebook, corpus.vectors(40))


def test_searches_find_row_ids_apart_from_the_records_and_in_their_files(stored):
    _, codebook, main, folder = stored
    loaded = folder.load(0, codebook, DIMENSION)
    for each in (main, loaded):
        directory = each.directory
        np.testing.assert_array_equal(directory.row_ids, directory.records["row_id"])
        # Else looking for one would copy all of them.
        assert directory.row_ids.flags.c_contiguous
        assert not np.shares_memory(directory.row_ids, directory.records)
    for array in (loaded.directory.row_ids, loaded.directory.records):
        assert isinstance(_owner(array), mmap)


def test_a_segment_of_an_older_release_has_row_ids_in_its_records_alone(stored):
    corpus, codebook, main, folder = stored
    (place,) = folder.folder.iterdir()
    manifest = json.loads((place / MANIFEST).read_text())
    del manifest["files"]["row_ids.npy"]
    text = json.dumps(
        {"content": manifest["content"], "files": manifest["files"]},
        sort_keys=True,
        separators=(",", ":"),
    )
    manifest["xxh3"] = xxhash.xxh3_64_hexdigest(text.encode())
    (place / MANIFEST).write_text(json.dumps(manifest))
    (place / "row_ids.npy").unlink()
    loaded = folder.load(0, codebook, DIMENSION)
    np.testing.assert_array_equal(loaded.directory.row_ids, main.directory.row_ids)
    assert_same(loaded, main, codebook, corpus.vectors(10))


def _owner(array):
    """What an array's memory belongs to."""
    while isinstance(array, np.ndarray | memoryview):
        array = array.base if isinstance(array, np.ndarray) else array.obj
    return array


def test_a_mapped_segment_can_be_folded_and_stored_again(stored):
    corpus, codebook, _, folder = stored
    mapped = folder.load(0, codebook, DIMENSION)
    added = corpus.vectors(7)
    live = Shard(mapped, DIMENSION, 100).view.main_live.changed(mapped.segment.count, np.array([3]))
    again = mapped.segment.folded(live, added)
    assert again.count == mapped.segment.count + 6
    # What is mapped stays good when its files are replaced.
    queries = corpus.vectors(10)
    before = found(mapped, codebook, queries)
    folder.save(0, mapped)
    np.testing.assert_array_equal(found(mapped, codebook, queries).scores, before.scores)
    assert_same(folder.load(0, codebook, DIMENSION), mapped, codebook, queries)
    folder.drop()
    assert folder.load(0, codebook, DIMENSION) is None
    np.testing.assert_array_equal(found(mapped, codebook, queries).scores, before.scores)


def test_an_empty_segment_is_stored(trained, tmp_path):
    corpus, codebook = trained
    table = Corpus(tmp_path, dimension=DIMENSION).table
    folder = SnapshotFolder(tmp_path / "stored", UID, 1, 1)
    for each in (None, codebook):
        (main,) = build_shards(table, each, [0], 1).values()
        folder.save(0, main)
        loaded = folder.load(0, each, DIMENSION)
        assert loaded.segment.count == 0
        assert (found(loaded, each, corpus.vectors(3)).positions < 0).all()


def test_every_flipped_byte_is_found(stored):
    _, codebook, _, folder = stored
    (place,) = folder.folder.iterdir()
    names = sorted(path.name for path in place.iterdir())
    assert len(names) == (12 if codebook is None else 14)
    random = np.random.default_rng(0)
    for path in place.iterdir():
        whole = path.read_bytes()
        # Headers are where a reader could stumble before it compares anything.
        places = {0, 8, 9, 40, len(whole) - 1, *random.integers(0, len(whole), 5).tolist()}
        for at in sorted(place for place in places if place < len(whole)):
            damaged = bytearray(whole)
            damaged[at] ^= 0x10
            path.write_bytes(damaged)
            refusals = []
            assert folder.load(0, codebook, DIMENSION, on_refusal=refusals.append) is None
            assert str(path) in refusals[0], (path.name, at)
        for other in (whole[:-1], whole + b"\0", b""):
            path.write_bytes(other)
            assert folder.load(0, codebook, DIMENSION) is None
        path.unlink()
        refusals = []
        assert folder.load(0, codebook, DIMENSION, on_refusal=refusals.append) is None
        assert str(path) in refusals[0]
        path.write_bytes(whole)
        assert folder.load(0, codebook, DIMENSION) is not None


def test_segments_of_another_codebook_or_dimension_are_refused(stored, trained, tmp_path):
    _, codebook, _, folder = stored
    assert folder.load(0, codebook, DIMENSION + 1) is None
    other = trained[1] if codebook is None else None
    assert folder.load(0, other, DIMENSION) is None


def test_a_full_disk_leaves_the_stored_segment_as_it_was(stored, monkeypatch):
    corpus, codebook, main, folder = stored
    written = 0

    def write(self, content):
        nonlocal written
        written += memoryview(content).nbytes
        if written > 20_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, content)

    original = HashedFile.write
    monkeypatch.setattr(HashedFile, "write", write)
    with pytest.raises(OSError, match="No space left"):
        folder.save(0, Main(main.segment, main.directory, EMPTY_CURSOR))
    monkeypatch.undo()
    assert [path.name for path in folder.folder.iterdir()] == ["shard-0000.000001"]
    loaded = folder.load(0, codebook, DIMENSION)
    assert loaded.cursor == main.cursor
    assert_same(loaded, main, codebook, corpus.vectors(5))


def test_what_a_killed_save_left_is_removed_by_the_next(stored):
    _, codebook, main, folder = stored
    left = folder.folder / ".unfinished-shard-0000.000002-0123"
    shutil.copytree(folder.folder / "shard-0000.000001", left)
    assert folder.shards() == {0}
    folder.save(0, main)
    assert [path.name for path in folder.folder.iterdir()] == ["shard-0000.000002"]
    if codebook is not None:
        loaded = folder.load(0, codebook, DIMENSION)
        np.testing.assert_array_equal(sizes_of(loaded.segment.lists), sizes_of(main.segment.lists))
