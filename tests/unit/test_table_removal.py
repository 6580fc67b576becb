"""Do files stay few, and conflicts harmless, as rows are removed?"""

import numpy as np
import pytest
from shoal.table import PassageTable
from shoal.table.errors import CommitConflictError, storage_errors

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
    append(table, [document(f"c{at}") for at in range(2000)], 3005)
    table.remove(np.concatenate([np.arange(600), [2999, 3002], np.arange(3005, 4000)]))
    assert table.rewrite(0.0) == 3
    assert table.fragment_count == 3
    assert table.row_count == 5005 - 601 - 1 - 995
    assert len(ids_of(table)) == table.row_count
    # Nothing is left to write again.
    assert table.rewrite(0.0) == 0


def test_who_meets_another_writer_is_told_to_try_again(table):
    append(table, [document(f"a{at}") for at in range(10)], 0)
    other = PassageTable.open(table.uri)
    other.remove(np.arange(5))
    other.rewrite(0.0)
    with pytest.raises(CommitConflictError, match="try again"):
        table.remove(np.array([7]))
    table.refresh()
    assert table.remove(np.array([7])) == 1
    assert ids_of(table) == ["a5", "a6", "a8", "a9"]


def test_a_conflict_is_no_damage():
    said = "Retryable commit conflict for version 42: This Rewrite transaction was preempted"
    with pytest.raises(CommitConflictError), storage_errors("there"):
        raise OSError(said)
