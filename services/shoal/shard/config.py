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
    """Loads, folds and snapshots that run at once. Each may hold a second copy of one shard, so
    this also bounds memory."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the inverted lists of trained indexes are. `cuda` needs the `gpu` extra, and loading a
    trained index fails without it; exact search stays on the CPU."""

    follow_interval_s: float = Field(default=0.15, gt=0, le=60)
    """Seconds between looks at the table. A write is found so long after its commit, and a look
    costs 0.1 ms. A search that waits for a version has the table looked at at once."""
    fold_at_passages: int = Field(default=1024, ge=1)
    """Passages in a shard's live tail from which it is folded into the main segment. A search pays
    about 25 ns for each of them and query; a fold costs about 50 ms for 100,000 passages."""

    snapshot_dir: Path | None = None
    """Folder of this instance alone, for copies of its segments, so that a restart reads them and
    what changed since. None: a restart builds from the table."""
    snapshot_interval_s: float = Field(default=60.0, ge=0)
    """Least seconds between two snapshots of one shard: a fold follows every thousand passages, and
    a snapshot writes the whole segment."""

    max_waiting_queries: int = Field(default=2048, ge=1)
    """Queries that may be searched or wait for it; more are refused with OVERLOADED. About half a
    second's work for half a million passages."""
