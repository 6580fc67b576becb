"""Which rows of a table may go, and who must be told that they went?

An operation on a document may go once

- it was superseded, by a write or a deletion, so long ago that no answer in flight needs its rows,
  or it has expired besides;
- it is a tombstone, the last operation on its document, all that came before it is gone, and it is
  older than any follower or stored segment that is expected to catch up.

The first kind is missed by nobody: whoever is behind reads what superseded it. The second kind is
the only word of a deletion. So before a tombstone goes, its sequence is recorded in the table as
trimmed, and whoever stands before a trimmed sequence must start anew (`Trimmed.passed`).

Pure functions; `shoal.table.removal` does what they say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from shoal.table import schema

# What `plan_trim` is shown of each row.
COLUMNS: Final = (
    schema.DOCUMENT_ID,
    schema.SEQUENCE,
    schema.TOMBSTONE,
    schema.UPDATED_AT,
    schema.EXPIRES_AT,
)
# Microseconds since 1970 that no clock reaches: never.
NEVER_US: Final = 2**63 - 1

_Sequences = NDArray[np.int64]


@dataclass(frozen=True)
class Trimmed:
    """Up to which sequences deletions are forgotten. Only ever rises."""

    # In every slot; -1 if nothing was forgotten.
    floor: int = -1
    # In some slots further than that: those of purged documents.
    slots: Mapping[int, int] = field(default_factory=dict)

    @property
    def highest(self) -> int:
        """The highest sequence that was forgotten; -1 if none was."""
        return max(self.floor, *self.slots.values()) if self.slots else self.floor

    def passed(self, sequence: int, slots: tuple[int, int]) -> bool:
        """True if a follower that has seen up to `sequence` may have missed a deletion.

        slots: those that it follows, from the first to one before the last.
        """
        first, end = slots
        return sequence < self.floor or any(
            first <= slot < end and sequence < trimmed for slot, trimmed in self.slots.items()
        )

    def everywhere(self, sequence: int) -> Trimmed:
        """Deletions up to `sequence` forgotten in all slots."""
        floor = max(self.floor, sequence)
        return Trimmed(floor, {slot: each for slot, each in self.slots.items() if each > floor})

    def within(self, slots: Mapping[int, int]) -> Trimmed:
        """Deletions forgotten in some slots, up to a sequence each."""
        merged = dict(self.slots)
        for slot, sequence in slots.items():
            if sequence > max(self.floor, merged.get(slot, -1)):
                merged[slot] = sequence
        return Trimmed(self.floor, merged)

    def to_json(self) -> str:
        """Write it, for the table's configuration."""
        return json.dumps({"floor": self.floor, "slots": self.slots}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | None) -> Trimmed:
        """Read what `to_json` wrote; None is a table of which nothing was forgotten."""
        if text is None:
            return cls()
        fields = json.loads(text)
        return cls(
            int(fields["floor"]), {int(slot): int(each) for slot, each in fields["slots"].items()}
        )


@dataclass(frozen=True)
class Retention:
    """How long rows are kept, in microseconds."""

    # After they were superseded.
    superseded_us: int
    # Tombstones, after they were written.
    tombstones_us: int


@dataclass(frozen=True)
class TrimPlan:
    """What may go, by sequence: all rows of an operation share one, and no other has it."""

    superseded: _Sequences
    tombstones: _Sequences
    # Documents that have expired, and that nobody has deleted yet.
    expired: tuple[str, ...]


def plan_trim(rows: pa.Table, retention: Retention, now_us: int) -> TrimPlan:
    """Say what may go of some rows.

    rows: with `COLUMNS`, in any order; all rows of each document that is among them.
    """
    sequences, first = np.unique(rows.column(schema.SEQUENCE).to_numpy(), return_index=True)
    if len(sequences) == 0:
        return TrimPlan(sequences, sequences, ())
    operations = rows.take(pa.array(first))
    ids = operations.column(schema.DOCUMENT_ID).combine_chunks()
    documents = ids.dictionary_encode().indices.to_numpy(zero_copy_only=True)
    # Document by document, each in the order of its operations.
    order = np.lexsort((sequences, documents))
    documents, sequences = documents[order], sequences[order]
    tombstones: NDArray[np.bool_] = operations.column(schema.TOMBSTONE).to_numpy()[order]
    updated_us = _microseconds(operations, schema.UPDATED_AT)[order]
    expires_us = _microseconds(operations, schema.EXPIRES_AT)[order]

    last = np.append(documents[1:] != documents[:-1], True)
    superseded_us = np.append(updated_us[1:], now_us)
    needed = (superseded_us > now_us - retention.superseded_us) & (expires_us > now_us)
    superseded = ~last & ~needed
    old = tombstones & (updated_us <= now_us - retention.tombstones_us)
    forgotten = last & old & ~_has_any(documents, ~last & ~superseded)
    expired = last & ~tombstones & (expires_us <= now_us)
    return TrimPlan(
        np.sort(sequences[superseded]),
        np.sort(sequences[forgotten]),
        tuple(ids.take(pa.array(order[expired])).to_pylist()),
    )


def _has_any(documents: NDArray[np.int32], marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """For each operation, whether one of its document's is marked."""
    found = np.zeros(int(documents.max()) + 1, dtype=bool)
    found[documents[marked]] = True
    answer: NDArray[np.bool_] = found[documents]
    return answer


def _microseconds(rows: pa.Table, name: str) -> _Sequences:
    times: _Sequences = rows.column(name).cast(pa.int64()).fill_null(NEVER_US).to_numpy()
    return times
