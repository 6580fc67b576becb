"""What has a follower of a table already seen?"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Cursor:
    """A place in the log: everything up to it has been seen.

    Fragments alone would not do, as compaction rewrites rows into new ones; sequences alone would
    mean to read the sequences of the whole table at every step. Together, a step costs the new
    rows, and after a compaction once the sequences of the rows that it moved.
    """

    version: int
    # Highest sequence seen; -1 before the first.
    sequence: int
    fragments: frozenset[int]

    def to_json(self) -> str:
        """Write it, for a snapshot."""
        return json.dumps(
            {
                "version": self.version,
                "sequence": self.sequence,
                "fragments": sorted(self.fragments),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Cursor:
        """Read what `to_json` wrote. Raises ValueError or KeyError for anything else."""
        fields = json.loads(text)
        return cls(
            int(fields["version"]),
            int(fields["sequence"]),
            frozenset(map(int, fields["fragments"])),
        )


EMPTY_CURSOR: Final = Cursor(version=0, sequence=-1, fragments=frozenset())
