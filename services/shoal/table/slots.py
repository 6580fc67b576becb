"""Which slot, and so which shard, does a document belong to?

A slot is a hash of the document's id and never changes. A shard owns a run of slots, so the number
of shards can change without touching an id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

# Also the largest number of shards. Part of the stored format: it cannot change.
SLOT_COUNT: Final = 1024

_Slots = TypeVar("_Slots", int, NDArray[np.integer[Any]])


def slot_of(document_id: str) -> int:
    """Slot of a document: 0 to 1,023."""
    return xxhash.xxh3_64_intdigest(document_id.encode()) % SLOT_COUNT


def slots_of(document_ids: Sequence[str] | pa.Array | pa.ChunkedArray) -> NDArray[np.int16]:
    """Slots of many documents: int16 of the same length."""
    ids = (
        document_ids.to_pylist()
        if isinstance(document_ids, (pa.Array, pa.ChunkedArray))
        else document_ids
    )
    return np.fromiter(map(slot_of, ids), dtype=np.int16, count=len(ids))


def shard_of(slot: _Slots, shard_count: int) -> _Slots:
    """Shard that owns a slot, or, for an array of slots, the shard of each."""
    if isinstance(slot, np.ndarray):
        # In int64: a slot times the number of shards overflows int16.
        return slot.astype(np.int64) * shard_count // SLOT_COUNT
    return slot * shard_count // SLOT_COUNT


def slot_range(shard: int, shard_count: int) -> tuple[int, int]:
    """First slot that a shard owns, and one past its last."""
    assert 0 <= shard < shard_count <= SLOT_COUNT
    # The smallest slot s with s * shard_count // SLOT_COUNT >= shard.
    first = -(-shard * SLOT_COUNT // shard_count)
    return first, -(-(shard + 1) * SLOT_COUNT // shard_count)
