"""Can the log be written, followed, compacted and read by row id at the same time?"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from shoal.table import (
    EMPTY_CURSOR,
    Cursor,
    DocumentRows,
    PassageSpan,
    PassageTable,
    TableDamagedError,
    TableNotFoundError,
    Tombstone,
    build_batch,
    present_rows,
    slot_range,
)
from shoal.table.maintenance import TIER_FRAGMENTS, TIERS_ROWS, due_tier

DIMENSION = 4


def document(document_id, *texts):
    texts = texts or ("text",)
    spans, position = [], 0
    for text in texts:
        spans.append(PassageSpan(position, position + len(text), text))
        position += len(text)
    vectors = np.ones((len(spans), DIMENSION), dtype=np.float32) / 2
    return DocumentRows(document_id, "title", "{}", bytes(32), 0, spans, vectors)


def append(table, operations, first_sequence):
    rows = build_batch(
        operations, first_sequence=first_sequence, updated_at_us=0, dimension=DIMENSION
    )
    return table.append(rows)


@pytest.fixture
def table(tmp_path):
    return PassageTable.create(str(tmp_path / "index" / "table.lance"), DIMENSION)


def follow(table, cursor, **options):
    table.refresh()
    batches, cursor = table.changes(cursor, **options)
    return [row for batch in batches for row in batch.drop_columns(["vector"]).to_pylist()], cursor


def test_what_was_appended_is_read_by_another_reader(table):
    version = append(table, [document("a", "one ", "two"), document("b")], 0)
    reader = PassageTable.open(table.uri)
    assert (reader.version, reader.dimension, reader.row_count) == (version, DIMENSION, 3)
    rows = sorted(
        (row for batch in reader.scan(with_vectors=True) for row in batch.to_pylist()),
        key=lambda row: row["_rowid"],
    )
    assert [(row["document_id"], row["ordinal"]) for row in rows] == [("a", 0), ("a", 1), ("b", 0)]
    assert [row["sequence"] for row in rows] == [0, 0, 1]
    assert rows[0]["vector"] == [0.5] * DIMENSION
    assert reader.last_sequence() == 1


def test_a_follower_sees_each_row_once_also_under_compaction(table):
    follower = PassageTable.open(table.uri)
    cursor, seen, sequence = EMPTY_CURSOR, [], 0
    compactions = 0
    for step in range(90):
        append(table, [document(f"d{sequence}"), document(f"d{sequence + 1}")], sequence)
        sequence += 2
        compactions += table.compact()
        if step % 7 == 0:
            rows, cursor = follow(follower, cursor)
            seen += rows
            cursor = Cursor.from_json(cursor.to_json())
    rows, cursor = follow(follower, cursor)
    seen += rows
    assert compactions >= 2
    assert sorted(row["sequence"] for row in seen) == list(range(sequence))
    assert len({row["_rowid"] for row in seen}) == sequence
    assert follow(follower, cursor) == ([], cursor)
    assert follower.fragment_count <= TIER_FRAGMENTS * 2


def test_a_follower_at_an_old_version_reads_on_while_that_is_kept(table):
    append(table, [document("a")], 0)
    old = PassageTable.open(table.uri)
    for sequence in range(1, 40):
        append(table, [document(f"d{sequence}")], sequence)
    assert table.compact()
    table.clean(older_than_s=3600)
    batches, _ = old.changes(EMPTY_CURSOR)
    assert sum(batch.num_rows for batch in batches) == 1
    table.clean(older_than_s=0)
    rows, _ = follow(old, EMPTY_CURSOR)
    assert len(rows) == 40


def test_rows_are_taken_by_id_in_order_before_and_after_compaction(table):
    for sequence in range(40):
        append(table, [document(f"d{sequence}", f"text {sequence}")], sequence)
    rows, _ = follow(table, EMPTY_CURSOR)
    row_id = {row["document_id"]: row["_rowid"] for row in rows}
    wanted = [row_id["d30"], 10**9, row_id["d2"], row_id["d30"]]

    def taken():
        return table.take(np.array(wanted, np.uint64), ["document_id", "text"]).to_pylist()

    before = taken()
    assert [row["text"] for row in before] == ["text 30", "text 2", "text 30"]
    assert [row["_rowid"] for row in before] == [wanted[0], wanted[2], wanted[3]]
    assert table.compact()
    append(table, [document("d2", "newer")], 40)
    assert taken() == before
    assert table.take([], ["text"]).num_rows == 0


def test_shards_follow_their_slots_only(table):
    append(table, [document(f"d{each}") for each in range(200)], 0)
    append(table, [document(f"d{each}") for each in range(200, 300)], 200)
    seen = []
    for shard in range(4):
        follower = PassageTable.open(table.uri)
        rows, cursor = follow(follower, EMPTY_CURSOR, slots=slot_range(shard, 4))
        assert cursor.sequence == 299
        first, end = slot_range(shard, 4)
        assert all(first <= row["slot"] < end for row in rows)
        seen += rows
    assert sorted(row["sequence"] for row in seen) == list(range(300))


def test_a_deletion_is_followed(table):
    append(table, [document("a", "one ", "two"), document("b")], 0)
    _, cursor = follow(table, EMPTY_CURSOR)
    append(table, [Tombstone("a"), Tombstone("never there")], 2)
    rows, _ = follow(table, cursor)
    assert [(row["document_id"], row["tombstone"]) for row in rows] == [
        ("a", True),
        ("never there", True),
    ]
    present = present_rows(table.scan())
    assert present.column("document_id").to_pylist() == ["b"]


def test_appends_go_on_while_a_compaction_runs(table):
    for sequence in range(TIER_FRAGMENTS + 1):
        append(table, [document(f"d{sequence}")], sequence)
    with ThreadPoolExecutor(1) as executor:
        compaction = executor.submit(table.compact)
        for sequence in range(TIER_FRAGMENTS + 1, TIER_FRAGMENTS + 21):
            append(table, [document(f"d{sequence}")], sequence)
        assert compaction.result()
    table.refresh()
    rows, _ = follow(PassageTable.open(table.uri), EMPTY_CURSOR)
    assert sorted(row["sequence"] for row in rows) == list(range(TIER_FRAGMENTS + 21))


def test_samples_are_vectors_of_rows_that_have_one(table):
    append(table, [document(f"d{each}") for each in range(50)], 0)
    append(table, [Tombstone(f"d{each}") for each in range(50)], 50)
    assert table.sample_vectors(20, seed=1).shape == (20, DIMENSION)
    assert table.sample_vectors(1000, seed=1).shape == (50, DIMENSION)
    assert table.sample_vectors(0, seed=1).shape == (0, DIMENSION)


def test_an_empty_table_can_be_read_and_followed(table):
    assert list(table.scan()) == []
    assert table.last_sequence() == -1
    assert follow(table, EMPTY_CURSOR)[0] == []
    assert table.compact() is False
    assert table.take([1], ["text"]).num_rows == 0


def test_what_is_not_a_table_is_refused(tmp_path):
    with pytest.raises(TableNotFoundError, match="there is no table"):
        PassageTable.open(str(tmp_path / "nothing.lance"))


def test_a_commit_cut_short_by_a_power_cut_is_removed_by_the_writer(table):
    append(table, [document("a")], 0)
    version = append(table, [document("b")], 1)
    manifest = Path(table.uri) / "_versions" / f"{2**64 - 1 - version:020}.manifest"
    manifest.write_bytes(b"")
    with pytest.raises(TableDamagedError):
        PassageTable.open(table.uri)
    mended = PassageTable.open(table.uri, repair=True)
    assert mended.version == version - 1
    append(mended, [document("c")], 2)
    assert present_rows(mended.scan()).column("document_id").to_pylist() == ["a", "c"]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], None),
        ([1] * TIER_FRAGMENTS, None),
        ([1] * (TIER_FRAGMENTS + 1), TIERS_ROWS[0]),
        ([TIERS_ROWS[0]] * (TIER_FRAGMENTS + 1) + [1], TIERS_ROWS[1]),
        ([TIERS_ROWS[-1]] * 1000, None),
    ],
)
def test_a_tier_is_due_once_it_has_too_many_fragments(sizes, expected):
    assert due_tier(sizes) == expected
