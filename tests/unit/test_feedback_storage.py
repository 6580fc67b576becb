"""Are feedback's table and keys whole after whatever cut them short, and rotated in time?"""

import json
import os
import stat

import pyarrow as pa
import pytest
from shoal.table import feedback as columns
from shoal.table.feedback import LAYOUT, FeedbackTable
from shoal.writer.config import WriterSettings
from shoal.writer.feedback_keys import EPOCH_BYTES, FILE_NAME, FeedbackKeys

DAY_S = 86_400.0


def rows(*shown, at_us=1_000_000):
    return pa.Table.from_pylist(
        [
            {
                columns.SEQUENCE: 0,
                columns.ANSWER_ID: os.urandom(16),
                columns.ANSWERED_AT: at_us,
                columns.RECORDED_AT: at_us,
                columns.QUERY: "q",
                columns.INDEX_VERSION: 1,
                columns.TABLE_VERSION: 1,
                columns.ENCODER_MODEL: "e@1",
                columns.RERANKER_MODEL: "",
                columns.SHOWN_IDS: list(ids),
                columns.SHOWN_PASSAGES: [0] * len(ids),
                columns.SHOWN_SCORES: [0.5] * len(ids),
                columns.SHOWN_HASHES: [b"12345678"] * len(ids),
                columns.CHOSEN_RANKS: [1] if ids else [],
                columns.CHOSEN_DWELLS: [-1] if ids else [],
                columns.PRINCIPAL_HASH: None,
            }
            for ids in shown
        ],
        LAYOUT,
    )


def shown(table, since_us=0):
    return sorted(
        ids for batch in table.read(since_us) for ids in batch.column(columns.SHOWN_IDS).to_pylist()
    )


def test_nothing_is_made_before_there_is_something_to_keep(tmp_path):
    table = FeedbackTable(tmp_path)
    assert (table.row_count, table.answers(0), shown(table)) == (0, (0, 0), [])
    assert (table.remove_older(9), table.compact(), table.clear()) == (0, False, 0)
    assert list(tmp_path.iterdir()) == []


def test_what_is_removed_is_gone_from_the_files_and_the_rest_stays(tmp_path):
    table = FeedbackTable(tmp_path)
    assert table.append(rows(["gone", "a"], ["b"], [], ["c", "gone"])) == 4
    assert table.append(rows(["d"], at_us=2_000_000)) == 1
    assert table.answers(0) == (4, 5)
    assert table.answers(2_000_000) == (1, 1)
    assert table.purge(["gone", "never"], before_us=1_500_000) == 2
    assert shown(table) == [[], ["b"], ["d"]]
    files = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert not any(b"gone" in each.read_bytes() for each in files)
    # Answers of before are out of date, also after a restart.
    table = FeedbackTable(tmp_path)
    assert table.append(rows(["gone"])) == 0
    assert table.append(rows(["e"], at_us=1_500_000)) == 1
    assert table.remove_older(2_000_000) == 3
    assert shown(table) == [["d"]]
    assert table.clear() == 1
    assert table.append(rows(["f"], at_us=3_000_000)) == 1


def test_of_one_answer_the_last_feedback_is_read_and_counted_and_the_rest_is_cleaned_away(tmp_path):
    table = FeedbackTable(tmp_path)
    first = rows(["a"], ["b"])
    later = rows(["c"], at_us=3_000_000)
    table.append(first)
    table.append(later)
    for choices in ([[1], [1]], [[], [1]]):
        at = LAYOUT.get_field_index(columns.CHOSEN_RANKS)
        chosen = pa.array(choices, LAYOUT.field(at).type)
        table.append(first.set_column(at, LAYOUT.field(at), chosen))
    assert table.row_count == 7
    assert table.answers(0) == (2, 3)
    read = pa.Table.from_batches(list(table.read(0)))
    # By the time of the answer, though "c" was recorded before.
    assert read[columns.SHOWN_IDS].to_pylist() == [["a"], ["b"], ["c"]]
    assert read[columns.CHOSEN_RANKS].to_pylist() == [[], [1], [1]]
    assert read[columns.SEQUENCE].to_pylist() == [5, 6, 2]
    assert table.remove_older(0) == 4
    assert table.row_count == 3
    assert table.answers(0) == (2, 3)


def test_an_export_is_in_the_same_order_however_the_files_lie(tmp_path):
    table = FeedbackTable(tmp_path)
    times = [*range(600, 0, -3), *range(1, 600, 7)]
    for start in range(0, len(times), 20):
        parts = [rows([f"d{each}"], at_us=each) for each in times[start : start + 20]]
        table.append(pa.concat_tables(parts))

    def read():
        batches = list(table.read(0))
        assert len(batches) > 1
        return pa.Table.from_batches(batches)

    before = read()
    pairs = list(
        zip(
            before[columns.ANSWERED_AT].to_pylist(),
            before[columns.SEQUENCE].to_pylist(),
            strict=True,
        )
    )
    assert pairs == sorted(pairs)
    assert len(pairs) == len(times)
    table.remove_older(0)
    table.compact()
    assert read().equals(before)


def test_many_small_commits_become_few_files(tmp_path):
    table = FeedbackTable(tmp_path)
    for at in range(40):
        table.append(rows([f"d{at}"]))
    assert table.compact()
    assert not table.compact()
    assert len(list((tmp_path / "feedback" / "feedback.lance" / "data").iterdir())) == 1
    assert len(shown(FeedbackTable(tmp_path))) == 40


@pytest.mark.parametrize("cut", ["making", "commit"])
def test_what_was_cut_short_is_no_harm(tmp_path, cut):
    FeedbackTable(tmp_path).append(rows(["a"]))
    versions = tmp_path / "feedback" / "feedback.lance" / "_versions"
    manifests = sorted(versions.glob("*.manifest"), key=lambda each: int(each.stem))
    if cut == "making":
        for each in manifests:
            each.unlink()
    else:
        manifests[0].write_bytes(manifests[0].read_bytes()[:-10])
    table = FeedbackTable(tmp_path)
    assert shown(table) == []
    assert table.append(rows(["b"])) == 1
    assert shown(FeedbackTable(tmp_path)) == [["b"]]


def test_keys_verify_as_long_as_their_tokens_are_taken_and_salts_are_thrown_away(tmp_path):
    now_s = [1e9]
    settings = WriterSettings(data=tmp_path, feedback_answer_s=3600, feedback_salt_days=2)

    def load():
        keys = FeedbackKeys(settings, lambda: now_s[0])
        keys.load()
        return keys

    keys = load()
    first = keys.signing_keys()
    assert [len(each.key) for each in first.keys] == [32]
    hashed = keys.hasher("index")("ann")
    assert len(hashed) == 16
    assert keys.hasher("index")("bob") != hashed != keys.hasher("other")("ann")
    # The beginning names the salt, and is no principal's.
    assert keys.hasher("index")("bob")[:EPOCH_BYTES] == hashed[:EPOCH_BYTES]
    assert keys.hasher("index")("epoch")[EPOCH_BYTES:] != hashed[:EPOCH_BYTES]
    path = tmp_path / FILE_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    now_s[0] += 3600
    second = load().signing_keys()
    assert [each.id for each in second.keys][1:] == [first.keys[0].id]
    assert keys.hasher("index")("ann") == hashed
    now_s[0] += 3600
    assert first.keys[0].id not in [each.id for each in load().signing_keys().keys]

    salt = json.loads(path.read_text())["salt"]
    now_s[0] += 2 * DAY_S
    keys = load()
    again = keys.hasher("index")("ann")
    assert again[:EPOCH_BYTES] != hashed[:EPOCH_BYTES]
    assert again[EPOCH_BYTES:] != hashed[EPOCH_BYTES:]
    assert salt not in path.read_text()
    path.write_text("{")
    assert load().hasher("index")("ann") != hashed
