"""What do the timings of a round come to, and how do the rounds of several compositions compare?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Round:
    """What one round of load on one composition measured."""

    composition: str
    """What was asked: `shoal`, `ray-serve`, `echo`..."""
    callers: int
    """Callers, each with one call in flight."""
    answered: int
    """Calls that were answered OK."""
    failed: int
    """Calls that were not."""
    seconds: float
    """Time from the first call that counts to the end of the round."""
    p50_ms: float
    """Median latency of the calls that were answered."""
    p99_ms: float
    """Latency that one call in a hundred exceeds."""
    recall: float | None
    """Share of the exact answers that was returned. None for an echo."""
    incomplete: int
    """Answers whose coverage was not complete."""
    client_cpu_s: float
    """Processor time that the load generator took."""
    server_cpu_s: float
    """Processor time that all processes of the composition took."""
    failure: str
    """The first failure's status and message. Empty if none."""

    @property
    def per_second(self) -> float:
        """Calls answered a second."""
        return self.answered / self.seconds

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        return asdict(self) | {"per_second": round(self.per_second, 1)}


@dataclass(frozen=True)
class Summary:
    """The medians over a composition's rounds."""

    composition: str
    rounds: int
    per_second: float
    lowest_per_second: float
    highest_per_second: float
    p50_ms: float
    p99_ms: float
    recall: float | None
    failed: int
    incomplete: int
    client_cpu_ms_per_call: float
    server_cpu_ms_per_call: float


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the values do not exceed.

    NaN if there are no values.
    """
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summarise(rounds: Sequence[Round]) -> Summary:
    """The medians of rounds of one composition. At least one round."""
    names = {each.composition for each in rounds}
    assert len(names) == 1, f"rounds of several compositions: {names}"
    speeds = [each.per_second for each in rounds]
    recalls = [each.recall for each in rounds if each.recall is not None]
    return Summary(
        composition=rounds[0].composition,
        rounds=len(rounds),
        per_second=statistics.median(speeds),
        lowest_per_second=min(speeds),
        highest_per_second=max(speeds),
        p50_ms=statistics.median(each.p50_ms for each in rounds),
        p99_ms=statistics.median(each.p99_ms for each in rounds),
        # The lowest, as the target is one that every round must reach.
        recall=min(recalls) if recalls else None,
        failed=sum(each.failed for each in rounds),
        incomplete=sum(each.incomplete for each in rounds),
        client_cpu_ms_per_call=statistics.median(
            each.client_cpu_s * 1e3 / max(1, each.answered) for each in rounds
        ),
        server_cpu_ms_per_call=statistics.median(
            each.server_cpu_s * 1e3 / max(1, each.answered) for each in rounds
        ),
    )


def ratios(rounds: Sequence[Round], of: str, to: str) -> list[float]:
    """Throughput of one composition over that of another, round by round.

    Rounds are paired in the order they ran, so that a neighbour who takes the processor for a
    while spoils a pair, not the comparison.
    """
    mine = [each.per_second for each in rounds if each.composition == of]
    theirs = [each.per_second for each in rounds if each.composition == to]
    return [
        first / second if second else math.inf for first, second in zip(mine, theirs, strict=False)
    ]


def verdicts(
    summaries: Mapping[str, Summary],
    median_ratios: Mapping[str, float],
    targets: Mapping[str, float],
    *,
    min_recall: float,
) -> dict[str, bool]:
    """Which targets were met: a ratio for each name in `targets`, and the recall of all."""
    met = {name: median_ratios.get(name, 0.0) >= target for name, target in targets.items()}
    for name, summary in summaries.items():
        if summary.recall is not None:
            met[f"recall of {name}"] = summary.recall >= min_recall
        met[f"no failures of {name}"] = summary.failed == 0 and summary.incomplete == 0
    return met
