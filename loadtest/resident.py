"""What does a process hold in memory, and what of it is for what?

By the mappings that Linux lists in `smaps`: pages of a segment's files, by the file's name, and all
others together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

# Files of a stored segment, by what they are for. All other memory is the process's own.
PARTS: Final = {
    "lists.bin": "codes and ids",
    "wide.npy": "wide codes",
    "records.npy": "directory",
    "row_ids.npy": "directory",
    "ids.arrow": "directory",
    "sorted_hashes.npy": "directory",
    "hash_order.npy": "directory",
    "row_order.npy": "directory",
}
OWN: Final = "process"
_MAPPING: Final = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)$")
_RESIDENT: Final = re.compile(r"^Rss: +(\d+) kB$")


def resident_bytes(pid: int) -> dict[str, int]:
    """Resident memory of a process, by part: those of `PARTS`, and `OWN`."""
    with Path(f"/proc/{pid}/smaps").open(encoding="utf-8", errors="replace") as lines:
        return by_part(lines)


def by_part(lines: Iterable[str]) -> dict[str, int]:
    """Add up the lines of a `smaps`."""
    found = dict.fromkeys((*PARTS.values(), OWN), 0)
    part = OWN
    for line in lines:
        if mapping := _MAPPING.match(line):
            name = mapping[1].removesuffix(" (deleted)").rpartition("/")[2].strip()
            part = PARTS.get(name, OWN)
        elif resident := _RESIDENT.match(line.rstrip()):
            found[part] += 1024 * int(resident[1])
    return found


def per_vector(
    found: Mapping[str, int], empty: Mapping[str, int], vectors: int
) -> dict[str, float]:
    """Bytes a vector of each part, without what a process takes that holds none."""
    return {part: (found[part] - empty.get(part, 0)) / vectors for part in found}
