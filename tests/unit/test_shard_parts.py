"""Do the parts of a shard keep what they are given?"""

import asyncio
import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.shard.admission import Admission, ProgressSignal
from shoal.shard.directory import RECORD, Directory, TailDirectory, hash_ids
from shoal.shard.merge import MISSING_SCORE, best, likeliest
from shoal.shard.segment import ExactSegment, search_exact
from shoal.shard.tombstones import Live
from shoal.table.trimming import NEVER_US
from shoal.v1.errors_pb2 import Reason


@given(st.lists(st.tuples(st.integers(0, 20), st.sets(st.integers(0, 300))), max_size=6))
def test_live_positions_are_those_not_killed(steps):
    live, dead, count = Live(0), set(), 0
    for added, wanted in steps:
        count += added
        killed = {each for each in wanted if each < count} - dead
        dead |= killed
        live = live.changed(count, np.array(sorted(killed), dtype=np.int64))
        assert live.live_count == count - len(dead)
        expected = [position not in dead for position in range(count)]
        assert live.mask().tolist() == expected
        assert live.contains(np.arange(count)).tolist() == expected


def test_a_live_does_not_change():
    before = Live(10).changed(10, np.array([3]))
    before.changed(12, np.array([4, 11]))
    assert before.mask().tolist() == [position != 3 for position in range(10)]


def _records(row_ids):
    records = np.zeros(len(row_ids), dtype=RECORD)
    records["expires_us"] = NEVER_US
    records["row_id"] = row_ids
    return records


_rows = st.lists(
    st.tuples(st.integers(0, 2**63), st.sampled_from(["a", "b", "c", "", "ü", "a b"])),
    unique_by=lambda each: each[0],
    max_size=30,
)


@given(rows=_rows, wanted=st.lists(st.integers(0, 2**63), max_size=5))
def test_directories_find_rows_and_documents(rows, wanted):
    row_ids = [row_id for row_id, _ in rows]
    ids = [document_id for _, document_id in rows]
    main = Directory(_records(row_ids), pa.array(ids, pa.large_string()), hash_ids(ids))
    tail = TailDirectory()
    for at in range(0, len(rows), 7):
        tail.append(_records(row_ids[at : at + 7]), ids[at : at + 7])
    np.testing.assert_array_equal(main.hashes(), hash_ids(ids))
    assert main.document_count() == len(set(ids))
    names = ["a", "ü", "not there"]
    for found in (main.documents(names, hash_ids(names)), tail.documents(names)):
        positions = {names[at]: where.tolist() for at, where in found}
        assert positions == {
            name: [at for at, each in enumerate(ids) if each == name]
            for name in names
            if name in ids
        }
    asked = np.array([*wanted, *row_ids[:3]], dtype=np.uint64)
    expected = [row_ids.index(each) if each in row_ids else -1 for each in asked.tolist()]
    assert main.find_rows(asked).tolist() == expected
    assert tail.find_rows(asked, len(rows)).tolist() == expected
    everything = np.arange(len(rows))
    assert main.ids_at(everything) == tail.ids_at(everything) == ids


def test_ids_that_share_a_hash_are_told_apart():
    ids = ["one", "two", "one"]
    same = np.zeros(3, dtype=np.uint64)
    main = Directory(_records([5, 6, 7]), pa.array(ids, pa.large_string()), same)
    assert [(at, list(where)) for at, where in main.documents(["two"], same[:1])] == [(0, [1])]
    assert list(main.documents(["three"], same[:1])) == []


def test_a_directory_takes_about_a_hundred_bytes_a_passage():
    ids = [f"document-{at:010}" for at in range(10_000)]
    main = Directory(_records(np.arange(10_000)), pa.array(ids, pa.large_string()), hash_ids(ids))
    assert main.memory_bytes / main.count <= 116


@given(
    scores=st.lists(st.sampled_from([0.5, 0.25, -1.0, float("-inf")]), min_size=1, max_size=12),
    count=st.integers(1, 15),
    seed=st.integers(0, 5),
)
def test_merging_is_a_global_sort(scores, count, seed):
    row_ids = np.random.default_rng(seed).permutation(len(scores)).astype(np.uint64)
    columns = best(np.array([scores], np.float32), row_ids[None], count)[0]
    pairs = sorted(zip([-each for each in scores], row_ids.tolist(), strict=True))[:count]
    assert [(-scores[at], int(row_ids[at])) for at in columns] == pairs
    chosen = likeliest(np.array([scores], np.float32), count)[0]
    assert sorted(scores[at] for at in chosen) == sorted(scores)[-count:]


def test_fewer_vectors_than_wanted_leave_gaps():
    vectors = np.eye(3, dtype=np.float32)
    scores, positions = search_exact(vectors, vectors[:2], 5, Live(3).changed(3, np.array([0])))
    assert positions.tolist() == [[1, 2], [1, 2]] or sorted(positions[1].tolist()) == [1, 2]
    empty, _ = ExactSegment(vectors).search(vectors, 5, Live(3).changed(3, np.arange(3)))
    assert empty.shape == (3, 0)
    assert scores.max() <= 1.0
    assert np.isneginf(MISSING_SCORE)


async def test_an_overloaded_server_refuses_but_takes_one_large_call():
    admission = Admission(8)
    with admission.admit(100):
        with pytest.raises(ServiceError) as raised, admission.admit(1):
            pass
        assert raised.value.reason == Reason.REASON_OVERLOADED
        drained = asyncio.create_task(admission.drain())
        await asyncio.sleep(0)
        with pytest.raises(ServiceError) as raised, admission.admit(1):
            pass
        assert raised.value.reason == Reason.REASON_DRAINING
        assert not drained.done()
    await drained


async def test_waiting_ends_with_progress_or_with_the_deadline():
    signal = ProgressSignal()
    state = {"version": 0}

    def hurry():
        def step():
            state["version"] += 1
            signal.notify()

        threading.Thread(target=step).start()

    reached = await signal.wait_until(lambda: state["version"] >= 3, hurry, Deadline.after(30))
    assert reached
    assert not await signal.wait_until(lambda: False, lambda: None, Deadline.after(0.01))
