"""Do files stay few, and conflicts harmless, as rows are removed?"""

import numpy as np
import pytest
from shoal.table import PassageTable, removal
from shoal.table.errors import CommitConflictError, storage_errors
from shoal.table.schema import ModelVectors

from tests.unit.test_table_log import DIMENSION, append, document


@pytest.fixture
def table(tmp_path):
    return PassageTable.create(str(tmp_path / "index" / "table.lance"), DIMENSION)


def ids_of(table):
    batches = PassageTable.open(table.uri).scan(["document_id"])
    return sorted(each for batch in batches for each in batch["document_id"].to_pylist())


def test_a_file_that_is_written_again_stays_one_file(table):
    append(table, [document(f"a{at}") for at in range(3000)], 0)
    append(table, [document(f"b{at}") for at in range(5)], 3000)
    table.remove(np.arange(600))
    assert table.rewrite(0.0) == 1
    assert table.fragment_count == 2
    assert len(ids_of(table)) == table.row_count == 2405


def test_small_files_are_written_again_by_one_commit(table):
    for at in range(40):
        append(table, [document(f"{part}{at}") for part in "abc"], 3 * at)
    # From every other file, so that nothing but the commit could be shared.
    table.remove(np.arange(0, 120, 6))
    before = table.version
    assert table.rewrite(0.0) == 20
    # Lance reserves the new files' numbers by a version of its own.
    assert table.version == before + 2
    assert table.row_count == len(ids_of(table)) == 100


def test_large_files_are_written_again_one_by_one(table, monkeypatch):
    monkeypatch.setattr("shoal.table.removal.MAX_REWRITTEN", 5)
    for at in range(4):
        append(table, [document(f"{part}{at}") for part in "abcdef"[: 2 + 2 * (at % 2)]], 10 * at)
    append(table, [document(f"z{at}") for at in range(9)], 40)
    table.remove(np.array([0, 10, 20, 30, 40]))
    before = table.version
    # Rows: 2, then 4 and no room for 2 more, then 2, then 4, then 9, which are beyond any room.
    assert table.rewrite(0.0) == 5
    assert table.version == before + 2 * 5
    assert table.row_count == len(ids_of(table)) == 16


def test_neighbours_that_are_written_again_become_one_file(table):
    append(table, [document(f"a{at}") for at in range(3000)], 0)
    append(table, [document(f"b{at}") for at in range(5)], 3000)
    append(table, [document(f"c{at}") for at in range(2000)], 3005)
    table.remove(np.concatenate([np.arange(600), [2999, 3002], np.arange(3005, 4000)]))
    assert table.rewrite(0.0) == 3
    assert table.fragment_count == 1
    assert table.row_count == 5005 - 601 - 1 - 995
    assert len(ids_of(table)) == table.row_count
    # Nothing is left to write again.
    assert table.rewrite(0.0) == 0


def test_who_meets_another_change_does_it_again_on_what_is_there(table):
    append(table, [document(f"a{at}") for at in range(10)], 0)
    other = PassageTable.open(table.uri)
    other.remove(np.arange(5))
    other.rewrite(0.0)
    assert table.remove(np.array([7])) == 1
    assert ids_of(table) == ["a5", "a6", "a8", "a9"]


def test_who_meets_too_many_is_told_to_try_again(table, monkeypatch):
    append(table, [document(f"a{at}") for at in range(10)], 0)
    table.remove(np.arange(5))
    rewrite, met = removal.rewrite, []

    def meddled(*arguments):
        met.append(f"m@{len(met)}")
        table.add_model(ModelVectors(met[-1], 4))
        return rewrite(*arguments)

    monkeypatch.setattr(removal, "rewrite", meddled)
    with pytest.raises(CommitConflictError, match="try again"):
        table.rewrite(0.0)
    assert len(met) == 5
    monkeypatch.undo()
    assert table.rewrite(0.0) == 1
    assert ids_of(table) == ["a5", "a6", "a7", "a8", "a9"]


def test_a_conflict_is_no_damage():
    said = "Retryable commit conflict for version 42: This Rewrite transaction was preempted"
    with pytest.raises(CommitConflictError), storage_errors("there"):
        raise OSError(said)
