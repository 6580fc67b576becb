"""Which kind suits an index, from its size, its dimension and the memory that it may take?

A pure function, so that `shoal index plan` says what a build would choose. HNSW is never chosen by
itself: live updates and a change of the number of shards make its graph again; it is for those who
ask for it by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shoal.shard.footprint import Footprint, footprint
from shoal.shard.kind_names import DEFAULT_KIND, KindName

# Kinds whose searches can leave the codes that only rank in mapped files.
_NARROW: Final[tuple[KindName, ...]] = ("ivf-pq", "ivf-rabitq")


@dataclass(frozen=True)
class Choice:
    """A kind, and why."""

    kind: KindName
    reason: str
    # False if not even this kind fits in the memory: searches will wait for a disk.
    fits: bool = True


def choose_kind(passage_count: int, dimension: int, memory_bytes: int | None = None) -> Choice:
    """Choose the kind of a version that is built.

    memory_bytes: that one copy of the index may take over all its shard servers; None: no bound.
    """
    if memory_bytes is None:
        return Choice(DEFAULT_KIND, "no bound of memory is set, and its scan is the cheapest")
    feet = {kind: footprint(kind, dimension) for kind in (*_NARROW, "ivf-sq8")}
    if feet[DEFAULT_KIND].total * passage_count <= memory_bytes:
        return Choice(
            DEFAULT_KIND,
            f"all of it fits in {_size(memory_bytes)}, and its scan is the cheapest",
        )
    if feet["ivf-sq8"].total * passage_count <= memory_bytes:
        return Choice(
            "ivf-sq8",
            f"{DEFAULT_KIND} would take {_needed(feet[DEFAULT_KIND], passage_count)} of "
            f"{_size(memory_bytes)}, and one code alone fits",
        )
    kind = min(_NARROW, key=lambda each: feet[each].hot)
    hot = feet[kind].hot * passage_count
    if hot <= memory_bytes:
        return Choice(
            kind,
            f"one byte a number does not fit in {_size(memory_bytes)}: the {_size(hot)} that find "
            "candidates stay in memory, and the codes that rank them in mapped files",
        )
    return Choice(
        kind,
        f"no kind fits in {_size(memory_bytes)}: this one needs the least, {_size(hot)}; searches "
        "wait for the disk unless there is more memory",
        fits=False,
    )


def _needed(foot: Footprint, passage_count: int) -> str:
    return _size(foot.total * passage_count)


def _size(count_bytes: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if count_bytes >= size:
            return f"{count_bytes / size:.1f} {unit}"
    return f"{count_bytes / 2**10:.0f} KiB"
