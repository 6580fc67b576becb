"""Does every document belong to one slot, and every slot to one shard?"""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.table import SLOT_COUNT, shard_of, slot_of, slot_range, slots_of

ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
shard_counts = st.integers(1, SLOT_COUNT)


def test_slots_are_part_of_the_stored_format():
    assert [slot_of(each) for each in ("a", "p000", "Übergröße", "文書")] == [543, 653, 702, 151]


@given(st.lists(ids, max_size=20))
def test_many_slots_are_the_slots_of_each(document_ids):
    expected = [slot_of(each) for each in document_ids]
    assert slots_of(document_ids).tolist() == expected
    assert slots_of(pa.array(document_ids, pa.string())).tolist() == expected
    assert all(0 <= slot < SLOT_COUNT for slot in expected)


@given(shard_counts)
def test_shards_own_runs_of_slots_that_tile_them(shard_count):
    ranges = [slot_range(shard, shard_count) for shard in range(shard_count)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == SLOT_COUNT
    assert all(end == first for (_, end), (first, _) in itertools.pairwise(ranges))
    sizes = [end - first for first, end in ranges]
    assert max(sizes) - min(sizes) <= 1


@given(shard_counts, st.integers(0, SLOT_COUNT - 1))
def test_the_shard_of_a_slot_owns_it(shard_count, slot):
    shard = shard_of(slot, shard_count)
    first, end = slot_range(shard, shard_count)
    assert first <= slot < end


@pytest.mark.parametrize("shard_count", [1, 3, 4, 1024])
def test_shards_of_an_array_do_not_overflow(shard_count):
    slots = np.arange(SLOT_COUNT, dtype=np.int16)
    expected = [shard_of(slot, shard_count) for slot in range(SLOT_COUNT)]
    assert shard_of(slots, shard_count).tolist() == expected
