"""Does the system get back what was used?"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from shoal.shard import allocator

MIB = 1 << 20


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(allocator._malloc_trim is None, reason="this C library keeps what it wants")
def test_free_memory_between_used_memory_is_given_back():
    # Small enough to come from a heap, which cannot shrink as its last array is kept.
    arrays = [np.ones(8 * 1024, dtype=np.uint64) for _ in range(3 * 1024)]
    kept = arrays[:: len(arrays) - 1]
    before = resident_bytes()
    del arrays
    allocator.give_back()
    assert before - resident_bytes() > 64 * MIB
    assert all((each == 1).all() for each in kept)


def test_what_arrow_uses_is_kept():
    kept = pa.array(range(100_000))
    allocator.give_back()
    assert kept.to_pylist() == list(range(100_000))
