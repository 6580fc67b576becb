"""Is a directory that is gathered the one that would be made anew?"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from shoal.shard.directory import RECORD, Directory, Records, gathered, hash_ids
from shoal.table.trimming import NEVER_US


def records_of(count: int, first: int, random: np.random.Generator) -> Records:
    records = np.zeros(count, RECORD)
    records["row_id"] = np.arange(first, first + count)
    records["ordinal"] = random.integers(0, 9, count)
    records["content_hash"] = random.integers(0, 256, (count, records["content_hash"].shape[1]))
    records["expires_us"] = np.where(
        random.random(count) < 0.2, random.integers(1, 1000, count), NEVER_US
    )
    return records


def directory_of(records: Records, ids: list[str]) -> Directory:
    return Directory(records, pa.array(ids, pa.large_string()), hash_ids(ids))


def names(count: int, name: str) -> list[str]:
    # Documents of up to three passages.
    return [f"{name}-{at // 3}" for at in range(count)]


@pytest.mark.parametrize("kept_part", [0.0, 0.5, 1.0])
# Of the second part: before those of the first one, or after them.
@pytest.mark.parametrize("first_row", [0, 5000])
def test_it_is_as_made_anew(kept_part: float, first_row: int) -> None:
    random = np.random.default_rng(4)
    counts, firsts = (400, 300), (1000, first_row)
    parts: list[tuple[Directory, NDArray[np.bool_]]] = []
    records, ids = [], []
    for name, count, first in zip("ab", counts, firsts, strict=True):
        own, own_ids = records_of(count, first, random), names(count, name)
        mask = random.random(count) < kept_part
        parts.append((directory_of(own, own_ids), mask))
        records.append(own[mask])
        ids += np.array(own_ids)[mask].tolist()
    further, further_ids = records_of(50, 9000, random), names(50, "c")
    moved = gathered(parts, further, further_ids)
    whole, whole_ids = np.concatenate([*records, further]), ids + further_ids
    anew = directory_of(whole, whole_ids)
    np.testing.assert_array_equal(moved.records, anew.records)
    assert moved.ids.to_pylist() == whole_ids
    assert moved.columns().keys() == anew.columns().keys()
    for name, column in anew.columns().items():
        np.testing.assert_array_equal(moved.columns()[name], column, name)
        assert moved.columns()[name].dtype == column.dtype
    assert moved.memory_bytes == anew.memory_bytes
    found = dict(moved.documents(["a-3", "c-0"], hash_ids(["a-3", "c-0"])))
    for at, wanted in enumerate(("a-3", "c-0")):
        expected = [place for place, each in enumerate(whole_ids) if each == wanted]
        assert found.get(at, np.empty(0)).tolist() == expected


def test_of_nothing_there_is_nothing() -> None:
    assert gathered([]).count == 0
