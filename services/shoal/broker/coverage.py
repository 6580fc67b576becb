"""How much of an index does an answer rest on?

    every shard answered, no stage cut      complete
    a group of shards failed or was late    its shards are not counted, and a cut says why
    nobody answered                         no answer: an error

Totals come from what the broker last knew of each shard, so that a server that is down is still
counted as missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from shoal.internal.v1.shard_pb2 import ShardState
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import Coverage, Stage, StageCut
from shoal.v1.status import reason_name


def cut(stage: Stage.ValueType, reason: Reason.ValueType, message: str) -> StageCut:
    """Say that a stage did less than it was asked to."""
    return StageCut(stage=stage, reason=reason_name(reason), message=message)


def coverage_of(
    shard_count: int,
    states: Iterable[ShardState],
    known_counts: Callable[[], Mapping[int, int]],
    cuts: Sequence[StageCut],
) -> Coverage:
    """State the coverage of an answer.

    states: of the shards that were asked; known_counts: passages of each shard, as last known;
    looked up only if one is missing.
    """
    searched = {state.shard: state.passage_count for state in states if state.ready}
    counts = searched if len(searched) == shard_count else {**known_counts(), **searched}
    return Coverage(
        complete=len(searched) == shard_count and not cuts,
        shards_searched=len(searched),
        shards_total=shard_count,
        passages_searched=sum(searched.values()),
        passages_total=sum(counts.values()),
        cuts=cuts,
    )


def shards_text(shards: Iterable[int]) -> str:
    """Name shards: `shard 3`, `shards 0, 1, 2`."""
    numbers = sorted(shards)
    return f"shard{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
