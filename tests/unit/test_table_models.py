"""Are a model's vectors a part of their rows: added, followed, removed and copied with them?"""

import os

import numpy as np
import pyarrow as pa
import pytest
from shoal.table import (
    DocumentRows,
    PassageSpan,
    PassageTable,
    TableDamagedError,
    Tombstone,
    build_batch,
    removal,
    schema,
    versions,
)
from shoal.table.catalogue import IndexEntry
from shoal.table.scanning import vectors_of
from shoal.table.schema import ModelVectors
from shoal.table.vector_blocks import blocks_in, drop_outdated_blocks, held_rows, write_block
from shoal.table.versions import RolloutRecord, VersionRecord
from shoal.writer import adoption

NEW = ModelVectors("new@abc", 6)


class Log:
    """A table that documents are written to, two passages each."""

    def __init__(self, folder):
        self.table = PassageTable.create(str(folder / "table.lance"), 4)
        self.sequence = 0

    def write(self, *ids, further=False):
        vectors = np.full((2, NEW.dimension), 0.5, np.float32)
        self.append(
            [
                DocumentRows(
                    each,
                    "title",
                    "",
                    bytes(32),
                    0,
                    [PassageSpan(0, 1, "a"), PassageSpan(1, 2, "b")],
                    np.eye(4, dtype=np.float32)[:2],
                    further={NEW.model: vectors} if further else {},
                )
                for each in ids
            ]
        )

    def append(self, operations):
        rows = build_batch(
            operations,
            first_sequence=self.sequence,
            updated_at_us=1,
            dimension=4,
            models=self.table.models,
        )
        self.table.append(rows)
        self.sequence += len(operations)

    def rows_of(self, *ids):
        rows = pa.Table.from_batches(list(self.table.scan())).to_pylist()
        found = [each[schema.ROW_ID] for each in rows if each[schema.DOCUMENT_ID] in ids]
        return np.sort(np.array(found, np.uint64))


@pytest.fixture
def log(tmp_path):
    log = Log(tmp_path)
    log.write("a", "b")
    log.write("c")
    log.append([Tombstone("c")])
    return log


def made(row_ids):
    """Vectors that say which row they are of."""
    return np.repeat(row_ids.astype(np.float32)[:, None], NEW.dimension, axis=1)


def read(log, model=NEW.model):
    table = PassageTable.open(log.table.uri, model=model)
    batches = table.scan((schema.DOCUMENT_ID,), with_vectors=True)
    return {
        row[schema.ROW_ID]: row[schema.VECTOR]
        for row in pa.Table.from_batches(list(batches)).to_pylist()
    }


def test_what_is_missing_is_what_can_be_found_and_has_no_vector(log):
    log.table.add_model(NEW)
    assert log.table.models == (NEW,)
    assert log.table.missing(NEW.model).tolist() == log.rows_of("a", "b").tolist()
    log.write("d", further=True)
    log.write("b")  # Replaced, without: the model is away.
    assert log.table.missing(NEW.model).tolist() == [
        *log.rows_of("a").tolist(),
        *log.rows_of("b").tolist()[2:],
    ]


def test_rows_are_filled_whatever_is_appended_compacted_or_removed_meanwhile(log):
    log.table.add_model(NEW)
    missing = log.table.missing(NEW.model)
    for number in range(40):
        log.write(f"d{number}", further=True)
    assert log.table.compact()
    gone = np.array([10_000], np.uint64)
    ids = np.concatenate([missing[::-1], gone])
    assert log.table.fill(NEW.model, ids, made(ids)) == len(missing)
    assert len(log.table.missing(NEW.model)) == 0
    vectors = read(log)
    for row in missing.tolist():
        assert vectors[row] == [float(row)] * NEW.dimension
    assert sum(each is None for each in vectors.values()) == 3  # Of what is deleted.
    assert all(len(each) == 4 for each in read(log, "").values() if each is not None)
    # By id, as answers are filled and rerankers are given vectors.
    follower = PassageTable.open(log.table.uri, model=NEW.model)
    taken = follower.take(missing, (schema.DOCUMENT_ID, schema.VECTOR))
    assert taken.column_names == [schema.DOCUMENT_ID, schema.VECTOR, schema.ROW_ID]
    assert vectors_of(taken[schema.VECTOR], NEW.dimension).tolist() == made(missing).tolist()


def test_removed_rows_take_their_vectors_along(log):
    log.table.add_model(NEW)
    missing = log.table.missing(NEW.model)
    log.table.fill(NEW.model, missing, made(missing))
    removed = log.rows_of("a")
    assert log.table.remove(np.array([0])) == 2
    assert log.table.rewrite(0.0) == 1
    assert not set(removed.tolist()) & set(read(log))


def test_a_model_that_nobody_needs_leaves(log):
    log.table.add_model(NEW)
    follower = PassageTable.open(log.table.uri, model=NEW.model)
    late = build_batch(
        [Tombstone("b")], first_sequence=9, updated_at_us=1, dimension=4, models=(NEW,)
    )
    log.table.drop_model(NEW.model)
    assert log.table.models == ()
    log.table.append(late)  # Was made before.
    follower.refresh()
    with pytest.raises(TableDamagedError, match="vector_abc"):
        list(follower.scan((), with_vectors=True))
    with pytest.raises(TableDamagedError, match="no vectors of new@abc"):
        PassageTable.open(log.table.uri, model=NEW.model)


def test_blocks_of_rows_that_were_purged_are_removed_whoever_comes_first(log, tmp_path):
    folder = tmp_path / "vectors"
    kept, gone = log.rows_of("b"), log.rows_of("a")
    write_block(folder / "abc", kept, made(kept), log.table)
    write_block(folder / "abc", gone, made(gone), log.table)
    assert held_rows(folder / "abc").tolist() == sorted([*kept.tolist(), *gone.tolist()])
    log.table.remove(np.array([0]))
    drop_outdated_blocks(folder, log.table)
    (block,) = blocks_in(folder / "abc")
    assert block.row_ids.tolist() == kept.tolist()
    write_block(folder / "abc", gone, made(gone), log.table)  # It was read before the purge.
    assert held_rows(folder / "abc").tolist() == kept.tolist()


def test_what_a_killed_step_left_behind_is_removed_by_the_next_purge(log, tmp_path):
    log.table.add_model(NEW)
    folder = tmp_path / "vectors" / "new"
    write_block(folder, log.rows_of("a"), made(log.rows_of("a")), log.table)
    (block,) = blocks_in(folder)
    left, writing = folder / f".{block.path.name}.new", folder / ".1-1.npz.new"
    for each in (left, writing):
        each.write_bytes(b"half of it")
    os.utime(left, (0, 0))
    drop_outdated_blocks(tmp_path / "vectors", log.table)
    assert (left.exists(), writing.exists(), block.path.exists()) == (False, True, True)


def test_what_is_kept_of_a_block_is_not_encoded_again(log, tmp_path):
    folder = tmp_path / "vectors" / "abc"
    both = log.rows_of("a", "b")
    write_block(folder, both, made(both), log.table)
    log.table.remove(np.array([0]))
    drop_outdated_blocks(tmp_path / "vectors", log.table)
    (block,) = blocks_in(folder)
    assert block.row_ids.tolist() == log.rows_of("b").tolist()
    assert block.vectors.tolist() == made(block.row_ids).tolist()


def test_files_are_written_again_though_a_model_comes_meanwhile(log, monkeypatch):
    """A purge meets a build that begins: both are done, and nobody has to ask again."""
    log.write("d")
    log.table.remove(np.array([0]))
    rewrite = removal.rewrite

    def beside_a_build(*arguments):
        monkeypatch.setattr(removal, "rewrite", rewrite)
        log.table.add_model(NEW)
        return rewrite(*arguments)

    monkeypatch.setattr(removal, "rewrite", beside_a_build)
    assert log.table.rewrite(0.0) == 1
    assert log.table.models == (NEW,)
    assert removal.due_fragments(log.table._dataset, 0.0) == []


def test_a_file_is_filled_once_though_blocks_lie_across_files(tmp_path, monkeypatch):
    log = Log(tmp_path)
    for name in ("a", "b", "c", "d"):
        log.write(name, f"{name}2")  # Four rows of a file each.
    log.table.add_model(NEW)
    folder = tmp_path / "vectors" / "abc"
    ids = log.table.missing(NEW.model)
    for first, end in ((0, 2), (2, 6), (6, 10), (10, 14), (14, 16)):
        write_block(folder, ids[first:end], made(ids[first:end]), log.table)
    monkeypatch.setattr(adoption, "TURN_BYTES", 4 * (4 * NEW.dimension))
    before, taking = log.table.version, adoption.Adoption(log.table, NEW.model, folder)
    turns = 1
    while taking.turn():
        turns += 1
    assert (turns, log.table.version - before) == (4, 4)
    assert (taking.adopted, taking.missing()) == (16, 0)
    assert {row: [float(row)] * NEW.dimension for row in ids.tolist()} == read(log)
    assert list(folder.iterdir()) == []


def test_a_file_with_more_than_a_turn_holds_is_filled_in_shares(log, tmp_path, monkeypatch):
    log.table.add_model(NEW)
    ids, folder = log.table.missing(NEW.model), tmp_path / "vectors" / "abc"
    write_block(folder, ids, made(ids), log.table)
    monkeypatch.setattr(adoption, "TURN_BYTES", 4 * NEW.dimension)
    taking = adoption.Adoption(log.table, NEW.model, folder)
    log.table.remove(np.array([0]))  # Of what has been left, meanwhile.
    while taking.turn():
        pass
    assert (taking.adopted, taking.missing()) == (2, 0)
    assert list(folder.iterdir()) == []


def test_a_damaged_block_is_encoded_again(log, tmp_path):
    ids = log.rows_of("a")
    write_block(tmp_path / "v", ids, made(ids), log.table)
    (path,) = (tmp_path / "v").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert len(held_rows(tmp_path / "v")) == 0
    assert list(blocks_in(tmp_path / "v")) == []
    assert not path.exists()


# Versions

ENTRY = IndexEntry("docs", "uid", "indexes/docs", "old@1", 8, 0)


def begin(entry, **model):
    return versions.begin(entry, now_ns=1, promote=False, **model)


def finish(entry, state="ready"):
    return versions.finish(entry, VersionRecord(entry.last_version, state, 0))


NEW_MODEL = {"encoder_model": "new@2", "encoder_bundle": "/bundles/new", "dimension": 4}


def test_a_version_keeps_the_model_it_began_with():
    entry = finish(begin(ENTRY, **NEW_MODEL))
    (version,) = entry.versions
    assert (version.encoder_model, version.encoder_bundle) == ("new@2", "/bundles/new")
    assert (version.dimension, version.state) == (4, "ready")
    assert list(versions.further_models(entry)) == ["new@2"]


def test_without_a_model_a_version_has_the_one_in_force():
    assert finish(begin(ENTRY)).versions[0].encoder_model == "old@1"
    promoted = versions.promote(finish(begin(ENTRY, **NEW_MODEL)), 1)
    assert begin(promoted).versions[-1].encoder_model == "new@2"
    back = begin(promoted, encoder_model="old@1", encoder_bundle="/bundles/old", dimension=8)
    assert back.versions[-1].encoder_bundle == ""  # It is the index's own.


def test_what_a_model_has_encoded_holds_for_its_next_version():
    entry = versions.note_encoded(begin(ENTRY, **NEW_MODEL), 1)
    assert versions.further_models(entry)["new@2"].encoded
    entry = begin(finish(entry), **NEW_MODEL)
    assert versions.find(entry, 2).encoded
    failed = finish(begin(ENTRY, **NEW_MODEL), "failed")
    assert versions.further_models(failed) == {}


def test_a_rollout_ends_as_its_candidate_serves_or_goes():
    entry = versions.change_rollout(finish(begin(ENTRY, **NEW_MODEL)), RolloutRecord(1, 0.2))
    assert versions.promote(entry, 1).rollout is None
    assert versions.drop(entry, 1).rollout is None
    assert versions.retire(entry, 0, set()).versions == entry.versions
    assert versions.change_rollout(entry, None).rollout is None
