"""How does one index move from the layout it has to the layout it should have?

        (created)                 every shard ready somewhere
    nothing ──────────> preparing ─────────────────────────────> serving
                            ^                                       │
                            │   scale, or a new index version       │
                            └───────────────────────────────────────┘
                              serving goes on until all of the new
                              layout is ready; then it is replaced

Pure functions; the controller calls them for each index in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from shoal.cluster.config import Scale
from shoal.cluster.placement import place
from shoal.internal.v1.topology_pb2 import IndexPlacement, Layout, PublishTopologyResponse
from shoal.internal.v1.writer_pb2 import CatalogEntry

# An index is trained when it has stopped growing, as a codebook fits the data it has seen.
SETTLED_S: Final = 5.0
SETTLED_GROWTH: Final = 1.02
# One that never stops is trained at this many times the threshold.
IMPATIENT_FACTOR: Final = 10
# A failed training is tried again after so long.
RETRY_S: Final = 60.0


@dataclass(frozen=True)
class Growth:
    """How an index has grown of late."""

    row_count: int
    since_s: float
    """Since when it has had about that many rows."""

    def seen(self, row_count: int, now_s: float) -> Growth:
        """Take note of a count; the time starts anew if it has grown by more than a little."""
        if row_count > self.row_count * SETTLED_GROWTH or row_count < self.row_count:
            return Growth(row_count, now_s)
        return self


@dataclass(frozen=True)
class Training:
    """A codebook that is being trained, or failed to be."""

    failed_s: float | None = None
    """When it failed; None while it runs."""
    error: str = ""


def training_due(
    entry: CatalogEntry,
    growth: Growth,
    training: Training | None,
    train_at_passages: int,
    now_s: float,
) -> bool:
    """True if the index should get its first codebook now."""
    if entry.index_version > 0 or entry.row_count < train_at_passages:
        return False
    if training is not None:
        return training.failed_s is not None and now_s - training.failed_s >= RETRY_S
    settled = now_s - growth.since_s >= SETTLED_S
    return settled or entry.row_count >= train_at_passages * IMPATIENT_FACTOR


def plan_index(
    entry: CatalogEntry,
    before: IndexPlacement | None,
    scale: Scale,
    answers: Mapping[str, PublishTopologyResponse],
) -> IndexPlacement:
    """Decide an index's layouts.

    answers: the last answers of the instances that are ready, by id.
    """
    index = IndexPlacement(
        name=entry.name,
        uid=entry.uid,
        table_uri=entry.table_uri,
        encoder_model=entry.encoder_model,
        dimension=entry.dimension,
        create_time=entry.create_time,
    )
    wanted = place(scale, index_version=entry.index_version, codebook_uri=entry.codebook_uri)
    if before is None or not before.HasField("serving"):
        # The first time, an answer from one replica of each shard is better than none.
        field = index.serving if serves(wanted, entry.uid, answers) else index.preparing
        field.CopyFrom(wanted)
        return index
    if before.serving == wanted or _is_ready(wanted, entry.uid, answers):
        index.serving.CopyFrom(wanted)
        return index
    index.serving.CopyFrom(before.serving)
    index.preparing.CopyFrom(wanted)
    return index


def _is_ready(layout: Layout, uid: str, answers: Mapping[str, PublishTopologyResponse]) -> bool:
    """True if every copy of every shard can be searched."""
    return all(
        set(placement.shards) <= _ready_shards(layout, uid, answers.get(placement.shard_server))
        for placement in layout.placements
    )


def serves(layout: Layout, uid: str, answers: Mapping[str, PublishTopologyResponse]) -> bool:
    """True if some copy of every shard can be searched."""
    ready: set[int] = set()
    for placement in layout.placements:
        ready |= _ready_shards(layout, uid, answers.get(placement.shard_server))
    return ready >= set(range(layout.shard_count))


def _ready_shards(layout: Layout, uid: str, answer: PublishTopologyResponse | None) -> set[int]:
    states: Iterable[int] = (
        state.shard
        for state in (answer.shards if answer is not None else ())
        if state.ready
        and state.layout.index_uid == uid
        and state.layout.index_version == layout.index_version
        and state.layout.shard_count == layout.shard_count
    )
    return set(states)
