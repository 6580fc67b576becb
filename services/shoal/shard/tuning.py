"""How hard is an index to be searched, so that live queries reach its recall target?

A codebook's search parameters were measured on the vectors of its time. Where live queries show
that they fall short, all of them are multiplied by an `effort`. It rises only if recall is below
the target beyond chance, and comes down a step only if recall would be above it beyond chance:
between the two nothing changes. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from shoal.shard.live_recall import Estimate

NO_EFFORT: Final = 1.0
# What is tried: finer steps differ by less than recall can be told apart.
EFFORTS: Final = (NO_EFFORT, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
# Less is not known well enough to act upon: with 50 queries recall is known within about 0.03.
MIN_QUERIES: Final = 50
# Where the target is out of reach, recall that more effort would gain and that is not worth it.
_GAIN: Final = 0.005

Measure = Callable[[float], Estimate]


@dataclass(frozen=True)
class Verdict:
    """What to do."""

    effort: float
    # At that effort, and at none.
    reached: Estimate
    measured: Estimate
    # False if the target is out of reach.
    enough: bool


def tune(effort: float, target: float, max_effort: float, measure: Measure) -> Verdict:
    """Choose the effort to go on with.

    effort: the present one. measure: gives the recall at an effort, over at least `MIN_QUERIES`
    queries; it is asked for few.
    """
    present = measure(effort)
    plain = present if effort == NO_EFFORT else measure(NO_EFFORT)
    if present.upper < target:
        return _raised(effort, plain, target, max_effort, measure)
    if effort > NO_EFFORT:
        less = max(each for each in EFFORTS if each < effort)
        recall = plain if less == NO_EFFORT else measure(less)
        if recall.lower >= target:
            return Verdict(less, recall, plain, enough=True)
    return Verdict(effort, present, plain, enough=True)


def _raised(
    effort: float, plain: Estimate, target: float, max_effort: float, measure: Measure
) -> Verdict:
    """The least effort that surely reaches the target; else that probably does; else that helps."""
    tried: list[tuple[float, Estimate]] = []
    for each in EFFORTS:
        if effort <= each <= max(max_effort, effort):
            tried.append((each, measure(each)))
            if tried[-1][1].lower >= target:
                return Verdict(*tried[-1], plain, enough=True)
    best = max(recall.mean for _, recall in tried)
    least = min(target, best - _GAIN)
    chosen, reached = next(each for each in tried if each[1].mean >= least)
    return Verdict(chosen, reached, plain, enough=reached.upper >= target)


def alert_of(verdict: Verdict, target: float, since: str) -> str:
    """What an operator has to know, and to do; empty if all is well.

    since: when it began to be searched harder.
    """
    if verdict.enough and verdict.effort == NO_EFFORT:
        return ""
    reached = verdict.reached
    build = "build a new version: `shoal index build INDEX --promote`"
    if verdict.enough:
        return (
            f"recall of live queries is {_shown(verdict.measured)} with the search parameters of "
            f"its codebook, below its target {target:g}: it is searched {verdict.effort:g} times "
            f"as hard since {since}, and reaches {reached.mean:.3f}; to search less again, {build}"
        )
    if verdict.effort == NO_EFFORT:
        return (
            f"recall of live queries is {_shown(reached)}, below its target {target:g}, and "
            f"searching harder does not help: {build}"
        )
    return (
        f"recall of live queries is {_shown(reached)}, below its target {target:g}, although it is "
        f"searched {verdict.effort:g} times as hard since {since}: {build}"
    )


def _shown(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} ± {estimate.half_width:.3f} over {estimate.query_count} queries"
