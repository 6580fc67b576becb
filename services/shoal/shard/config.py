"""What can be set of a shard server?"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ShardSettings(BaseModel):
    """Settings of a shard server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int = Field(default=2, ge=1, le=256)
    """Searches that run at once, each on one core; a large batch is divided among them. Two: on a
    laptop the other processes need the rest."""
    background_threads: int = Field(default=1, ge=1, le=64)
    """Loads, folds, moves and snapshots that run at once: the budget of all upkeep. Once something
    serves, each is one thread. Each may hold a second copy of one shard, until the last search in
    the old one has ended: so many times the largest shard bound the memory. One: full tails are
    folded one after another."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the inverted lists of trained indexes are. `cuda` needs the `gpu` extra, and loading a
    trained index fails without it; exact search stays on the CPU."""

    follow_interval_s: float = Field(default=0.15, gt=0, le=60)
    """Seconds between looks at the table. A write is found so long after its commit, and a look
    costs 0.1 ms. A search that waits for a version has the table looked at at once."""
    fold_at_passages: int = Field(default=1024, ge=1)
    """Passages in a shard's live tail from which it is folded into the main segment. A search pays
    about 25 ns for each of them and query; a fold costs about 50 ms for 100,000 passages."""

    recall_sample_share: float = Field(default=0.01, ge=0, le=1)
    """Part of the live queries of a trained index that are kept, to be searched exactly later; the
    first ones are all kept, until the window is full. 1 in 100: at 100 queries a second the window
    is of the last four minutes. To keep one costs a microsecond. 0: recall is not watched."""
    recall_window: int = Field(default=256, ge=64, le=4096)
    """Queries that recall is measured with, the newest that were kept: 256 tell recall apart by
    about 0.01, and take 0.4 MB at 384 numbers a vector."""
    recall_interval_s: float = Field(default=60.0, ge=0)
    """Least seconds between two checks of one layout: drift is slower than that."""
    recall_core_share: float = Field(default=0.02, gt=0, le=1)
    """Part of one core's time that checks take of all indexes together, over time. A check is one
    thread, resting half of the time, that reads all vectors of the index, about 20 s for a million
    of 384 numbers and 256 queries; it then rests for 50 times as long. It takes about 50 MB, and
    a main segment that is folded meanwhile stays in memory until its end."""
    max_search_effort: float = Field(default=8.0, ge=1, le=16)
    """Most times as hard as measured that an index is searched whose recall falls below its target.
    A search then costs up to so many times as much: an index that needs more needs a new version.
    1: it is never searched harder, and an alert says that it falls short."""

    snapshot_dir: Path | None = None
    """Folder of this instance alone, for its segments, so that a restart maps them and reads what
    changed since. None: a restart builds from the table, and segments are held in memory."""
    snapshot_interval_s: float = Field(default=60.0, ge=0)
    """Least seconds between two snapshots of one shard: a fold follows every thousand passages, and
    a snapshot writes the whole segment."""
    shared_snapshot_dir: Path | None = None
    """Folder in which each instance has its `snapshot_dir`, if they share storage: a shard that is
    new to this instance is read, or put together, from what others have stored. None: what this
    instance lacks is read from the index's storage if it has segments, else from the table."""
    map_segments: bool = True
    """Whether segments are searched in their files, which the system may take out of memory when it
    is short of it. False: they are held in memory of the process, whatever the disk is like."""

    max_waiting_queries: int = Field(default=2048, ge=1)
    """Queries that may be searched or wait for it; more are refused with OVERLOADED. About half a
    second's work for half a million passages."""
