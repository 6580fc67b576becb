"""Which passage is at a position, and where are the passages of a document?

What a shard keeps of each passage beside its vector: 111 bytes with an id of 15, of which the
record takes 68, the id 23, its hash 12, and the row id, once more, 8. Text, title and metadata stay
in the table; terms are in `shoal.shard.postings`. A directory that was read from a segment's files
lies in them, mapped: only what searches touch takes memory. They touch all row ids, which decide
between equal scores, and hardly any record, which are of passages in answers: so row ids lie by
themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from shoal.shard.field_columns import FieldColumns, TailColumns, gathered_fields
from shoal.shard.pace import pause
from shoal.table import schema
from shoal.table.slots import SLOT_COUNT
from shoal.table.trimming import NEVER_US

RECORD: Final = np.dtype(
    [
        ("row_id", "<u8"),
        # Microseconds since 1970, UTC.
        ("updated_us", "<i8"),
        # From when on it is not to be found; NEVER_US if that is never.
        ("expires_us", "<i8"),
        ("ordinal", "<u4"),
        ("span_start", "<u4"),
        ("span_end", "<u4"),
        ("content_hash", "u1", (schema.CONTENT_HASH_BYTES,)),
    ]
)
# Columns of the table that a directory is made of.
COLUMNS: Final = (
    schema.DOCUMENT_ID,
    schema.ORDINAL,
    schema.SPAN_START,
    schema.SPAN_END,
    schema.CONTENT_HASH,
    schema.UPDATED_AT,
    schema.EXPIRES_AT,
)
_NO_POSITION: Final = -1

Records = NDArray[Any]
Positions = NDArray[np.int64]


def hash_ids(document_ids: Sequence[str]) -> NDArray[np.uint64]:
    """Hash ids, to find them by. Two ids may share a hash: compare the ids too."""
    hashes = (xxhash.xxh3_64_intdigest(each.encode()) for each in document_ids)
    return np.fromiter(hashes, dtype=np.uint64, count=len(document_ids))


def records_of(rows: pa.Table) -> Records:
    """Read records from rows of the table, which hold `COLUMNS` and the row id; no tombstones."""
    records = np.empty(rows.num_rows, dtype=RECORD)
    records["row_id"] = rows.column(schema.ROW_ID).to_numpy()
    records["updated_us"] = rows.column(schema.UPDATED_AT).cast(pa.int64()).to_numpy()
    expires = rows.column(schema.EXPIRES_AT).cast(pa.int64()).fill_null(NEVER_US)
    records["expires_us"] = expires.to_numpy()
    records["ordinal"] = rows.column(schema.ORDINAL).to_numpy()
    records["span_start"] = rows.column(schema.SPAN_START).to_numpy()
    records["span_end"] = rows.column(schema.SPAN_END).to_numpy()
    if rows.num_rows:
        hashes = rows.column(schema.CONTENT_HASH).combine_chunks()
        assert hashes.null_count == 0
        width = schema.CONTENT_HASH_BYTES
        flat = np.frombuffer(hashes.buffers()[1], dtype=np.uint8)
        first = hashes.offset * width
        records["content_hash"] = flat[first : first + len(hashes) * width].reshape(-1, width)
    return records


class Directory:
    """The passages of a main segment. Never changes."""

    def __init__(
        self,
        records: Records,
        ids: pa.LargeStringArray,
        hashes: NDArray[np.uint64],
        columns: Mapping[str, NDArray[Any]] | None = None,
        fields: FieldColumns | None = None,
    ) -> None:
        """All by position; hashes: of the ids.

        columns: what `columns` gave of this directory before; then the hashes are not looked at.
        fields: the declared metadata; None if none is declared.
        """
        held = _columns(records, *_sorted(hashes)) if columns is None else columns
        self.records = records
        # uint64 [passages]. Looking for one in the records' own would copy those first, each time.
        row_ids = held.get("row_ids")
        self.row_ids: NDArray[np.uint64] = (
            np.ascontiguousarray(records["row_id"]) if row_ids is None else row_ids
        )
        self.ids = ids
        self.fields = fields
        self._sorted_hashes: NDArray[np.uint64] = held["sorted_hashes"]
        self._order: NDArray[np.uint32] = held["hash_order"]
        self._row_order: NDArray[np.uint32] | None = held.get("row_order")
        # Positions of what expires, by when; None if nothing does.
        self._expiry_order: NDArray[np.uint32] | None = held.get("expiry_order")
        self._expiries_us: NDArray[np.int64] = (
            np.empty(0, np.int64)
            if self._expiry_order is None
            else records["expires_us"][self._expiry_order]
        )
        assert len(records) == len(ids) == len(self._sorted_hashes) == len(self._order)
        assert len(self.row_ids) == len(records)
        assert fields is None or len(fields) == len(records)
        orders = (self._order, self._row_order, self._expiry_order, self._expiries_us)
        arrays = (records, ids, self.row_ids, self._sorted_hashes, *orders)
        columns_bytes = 0 if fields is None else fields.memory_bytes
        self.memory_bytes: int = columns_bytes + sum(
            each.nbytes for each in arrays if each is not None
        )
        """Bytes that it takes."""

    def columns(self) -> dict[str, NDArray[Any]]:
        """What is kept beside records and ids, to be stored with them."""
        kept: dict[str, NDArray[Any]] = {
            "sorted_hashes": self._sorted_hashes,
            "hash_order": self._order,
            "row_ids": self.row_ids,
        }
        further = {"row_order": self._row_order, "expiry_order": self._expiry_order}
        return kept | {name: each for name, each in further.items() if each is not None}

    @property
    def count(self) -> int:
        """Passages."""
        return len(self.records)

    def hashes(self) -> NDArray[np.uint64]:
        """Hashes of the document ids, by position."""
        hashes = np.empty_like(self._sorted_hashes)
        hashes[self._order] = self._sorted_hashes
        return hashes

    def run(self, mask: NDArray[np.bool_], first: int) -> _Run:
        """Hashes of the marked positions, ascending, and their positions in order from `first`."""
        numbers = np.cumsum(mask) - 1 + first
        chosen = mask[self._order]
        return self._sorted_hashes[chosen], numbers[self._order[chosen]]

    def document_count(self) -> int:
        """Documents, counted by their hashes."""
        hashes = self._sorted_hashes
        return int((hashes[1:] != hashes[:-1]).sum()) + (len(hashes) > 0)

    def slots(self) -> NDArray[np.uint64]:
        """Slots of the documents, by position."""
        return self.hashes() % np.uint64(SLOT_COUNT)

    def documents(
        self, document_ids: Sequence[str], hashes: NDArray[np.uint64]
    ) -> Iterator[tuple[int, Positions]]:
        """Find passages: the index of each id that has any, and their positions."""
        first = np.searchsorted(self._sorted_hashes, hashes, side="left")
        end = np.searchsorted(self._sorted_hashes, hashes, side="right")
        for at in np.flatnonzero(end > first).tolist():
            positions = self._order[first[at] : end[at]].astype(np.int64)
            wanted = document_ids[at]
            same = [position for position in positions.tolist() if self.id_at(position) == wanted]
            if same:
                yield at, np.array(same, dtype=np.int64)

    def id_at(self, position: int) -> str:
        """The document id at a position."""
        return cast(str, self.ids[position].as_py())

    def ids_at(self, positions: Positions) -> list[str]:
        """The document ids at positions."""
        return cast("list[str]", self.ids.take(pa.array(positions)).to_pylist())

    def find_rows(self, row_ids: NDArray[np.uint64]) -> Positions:
        """Positions of row ids; -1 for those that are not here."""
        return find_rows(self.row_ids, row_ids, self._row_order)

    def expiring(self, after_us: int, until_us: int) -> Positions:
        """Positions of what expires later than `after_us`, and at `until_us` at the latest."""
        if self._expiry_order is None:
            return np.empty(0, dtype=np.int64)
        first, end = np.searchsorted(self._expiries_us, (after_us, until_us), side="right")
        return self._expiry_order[first:end].astype(np.int64)

    def next_expiry_us(self, after_us: int) -> int:
        """When the first expires of what expires later than `after_us`; NEVER_US if nothing does.

        What expires then may be dead already.
        """
        at = int(np.searchsorted(self._expiries_us, after_us, side="right"))
        return int(self._expiries_us[at]) if at < len(self._expiries_us) else NEVER_US


# Hashes, ascending, and their positions.
_Run = tuple[NDArray[np.uint64], NDArray[np.integer[Any]]]


def _sorted(hashes: NDArray[np.uint64]) -> _Run:
    # NumPy's stable sort merges runs that are sorted already, in a fraction of a sort's time.
    order = np.argsort(hashes, kind="stable")
    return hashes[order], order


def _columns(
    records: Records, hashes: NDArray[np.uint64], order: NDArray[np.integer[Any]]
) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {
        "sorted_hashes": hashes,
        "hash_order": order.astype(np.uint32),
        "row_ids": np.ascontiguousarray(records["row_id"]),
    }
    row_ids = columns["row_ids"]
    # Rows mostly come in the order of their ids; then no order needs to be kept.
    if len(row_ids) > 1 and not (row_ids[1:] > row_ids[:-1]).all():
        columns["row_order"] = np.argsort(row_ids).astype(np.uint32)
    expires_us = records["expires_us"]
    expiring = np.flatnonzero(expires_us != NEVER_US)
    if len(expiring):
        in_order = expiring[np.argsort(expires_us[expiring], kind="stable")]
        columns["expiry_order"] = in_order.astype(np.uint32)
    return columns


def gathered(
    parts: Sequence[tuple[Directory, NDArray[np.bool_]]],
    added: Records | None = None,
    added_ids: Sequence[str] = (),
    added_fields: pa.Table | None = None,
) -> Directory:
    """Make a directory of the marked positions of others, one after another, and of further ones.

    Whatever a directory keeps of a passage must come along here, in folds and in moves alike.
    """
    further = np.empty(0, RECORD) if added is None else added
    count = sum(int(mask.sum()) for _, mask in parts)
    records = np.empty(count + len(further), RECORD)
    ids, runs, end = [], [], 0
    for directory, mask in parts:
        chosen = np.flatnonzero(mask)
        first, end = end, end + len(chosen)
        np.take(directory.records, chosen, out=records[first:end], mode="clip")
        pause()
        runs.append(directory.run(mask, first))
        pause()
        ids.append(directory.ids.filter(pa.array(mask)))
        pause()
    records[end:] = further
    hashes, order = _sorted(hash_ids(added_ids))
    runs.append((hashes, order + end))
    ids.append(pa.array(added_ids, pa.large_string()))
    joined = pa.chunked_array(ids, type=pa.large_string()).combine_chunks()
    pause()
    hashes, merged = _sorted(np.concatenate([each for each, _ in runs]))
    order = np.concatenate([each for _, each in runs])[merged]
    pause()
    fields = gathered_fields([(directory.fields, mask) for directory, mask in parts], added_fields)
    return Directory(records, joined, hashes, _columns(records, hashes, order), fields)


class TailDirectory:
    """The passages of a live tail. Grows; what is there stays as it is.

    One thread appends. Others may read positions below a count that they got after the append.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.records: Records = np.empty(0, dtype=RECORD)
        self.ids: list[str] = []
        self.fields = TailColumns()
        self._positions: dict[str, list[int]] = {}

    @property
    def row_ids(self) -> NDArray[np.uint64]:
        """By position, room for more behind them."""
        row_ids: NDArray[np.uint64] = self.records["row_id"]
        return row_ids

    @property
    def memory_bytes(self) -> int:
        """Bytes that it takes, about: a Python string takes 49 bytes beside its text."""
        return self.records.nbytes + 100 * len(self.ids) + self.fields.memory_bytes

    def append(self, records: Records, ids: Sequence[str], fields: pa.Table | None = None) -> None:
        """Add passages at the end. fields: their declared metadata, if any is declared."""
        count = len(self.ids)
        if fields is not None and len(ids):
            self.fields.append(fields)
        self.records = grown(self.records, count, len(records))
        self.records[count : count + len(records)] = records
        for position, document_id in enumerate(ids, count):
            self._positions.setdefault(document_id, []).append(position)
        self.ids.extend(ids)

    def documents(self, document_ids: Sequence[str]) -> Iterator[tuple[int, Positions]]:
        """Find passages: the index of each id that has any, and their positions."""
        for at, document_id in enumerate(document_ids):
            positions = self._positions.get(document_id)
            if positions is not None:
                yield at, np.array(positions, dtype=np.int64)

    def ids_at(self, positions: Positions) -> list[str]:
        """The document ids at positions."""
        return [self.ids[position] for position in positions.tolist()]

    def find_rows(self, row_ids: NDArray[np.uint64], count: int) -> Positions:
        """Positions of row ids among the first `count`; -1 for those that are not there."""
        held = self.row_ids[:count]
        return find_rows(held, row_ids, np.argsort(held).astype(np.uint32))


def grown(array: NDArray[Any], count: int, added: int) -> NDArray[Any]:
    """Give an array with room for more after `count`: the same one, or one twice as large.

    Who still holds the old one goes on reading it.
    """
    if count + added <= len(array):
        return array
    larger = np.empty((max(64, 2 * len(array), count + added), *array.shape[1:]), array.dtype)
    larger[:count] = array[:count]
    return larger


def find_rows(
    held: NDArray[np.uint64], wanted: NDArray[np.uint64], order: NDArray[np.uint32] | None
) -> Positions:
    """Find numbers in an array that `order` sorts (None: it is sorted); -1 where there is none."""
    if len(held) == 0:
        return np.full(len(wanted), _NO_POSITION, dtype=np.int64)
    places = np.searchsorted(held, wanted) if order is None else _places(held, wanted, order)
    places[places == len(held)] = 0
    positions = (places if order is None else order[places]).astype(np.int64)
    positions[held[positions] != wanted] = _NO_POSITION
    return positions


def _places(
    held: NDArray[np.uint64], wanted: NDArray[np.uint64], order: NDArray[np.uint32]
) -> NDArray[np.int64]:
    """Where each number would be inserted, among those that `order` sorts.

    As NumPy's `searchsorted`, which first would make `order` one of eight bytes a number: longer
    work than finding a few among half a million.
    """
    low = np.zeros(len(wanted), dtype=np.int64)
    high = np.full(len(wanted), len(held), dtype=np.int64)
    while (open_ := low < high).any():
        middle = (low + high) >> 1
        less = open_ & (held[order[np.minimum(middle, len(held) - 1)]] < wanted)
        low, high = np.where(less, middle + 1, low), np.where(open_ & ~less, middle, high)
    return low
