"""What did a living index do in each phase, and was it good enough?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from loadtest.measures import percentile
from loadtest.oracle import Judged
from loadtest.traffic import Kept, Outcome, WriteTally
from loadtest.witness import Standstill, met_one

REST: Final = "rest"
# Part of the writes that were asked for, at least: with fewer the load was another one.
MIN_WRITE_RATE: Final = 0.95


@dataclass(frozen=True)
class Phase:
    """A part of the run. Times are monotonic, in seconds."""

    name: str
    """`rest`, or the change that was made in it."""
    from_s: float
    until_s: float
    took_s: float = 0.0
    """What the change took, of the phase's time."""
    note: str = ""


@dataclass(frozen=True)
class Targets:
    """What issue 3 asks for."""

    recall: float = 0.95
    """Of the index."""
    recall_slack: float = 0.01
    """How far below it a window's recall may be."""
    p99_ratio: float = 2.0
    """Highest p99 of a change over that at rest."""


@dataclass(frozen=True)
class Figures:
    """What the queries of a phase saw."""

    phase: str
    seconds: float
    took_s: float
    queries: int
    failed: int
    incomplete: int
    outdated: int
    """Hits on what had been deleted or replaced, beyond the time that a write may take to show."""
    recall: float
    """Recall at k of all answers. NaN if there were none."""
    lowest_recall: float
    """Of the windows."""
    p50_ms: float
    p99_ms: float
    worst_ms: float
    fresh_p99_ms: float
    """Of the queries that named a table version, and wait for it; they count in p99 too."""
    undisturbed_p99_ms: float | None = None
    """Of the queries that did not fall into a standstill of the machine; None if those are not
    known."""
    disturbed: int | None = None
    """Queries that did."""
    failure: str = ""
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """Which targets were met, and by what."""

    met: dict[str, bool] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    """p99 of each change over that at rest."""
    undisturbed_ratios: dict[str, float] | None = None
    """The same of the queries that did not fall into a standstill of the machine."""

    @property
    def exit_code(self) -> int:
        """1 if a target was missed."""
        return 0 if all(self.met.values()) else 1


def figures_of(
    phase: Phase,
    judged: Sequence[tuple[Outcome, Judged]],
    *,
    window_s: float,
    standstills: Sequence[Standstill] | None = None,
) -> Figures:
    """What the queries that were due in a phase saw. judged: all of them, of all phases.

    standstills: of the machine; None if they are not known.
    """
    mine = [each for each in judged if phase.from_s <= each[0].due_s < phase.until_s]
    answered = [(outcome, worth) for outcome, worth in mine if not outcome.failure]
    latencies = [outcome.latency_ms for outcome, _ in answered]
    fresh = [outcome.latency_ms for outcome, _ in answered if outcome.fresh]
    failures = [outcome.failure for outcome, _ in mine if outcome.failure]
    quiet = undisturbed([outcome for outcome, _ in answered], standstills or ())
    recalls = [(outcome.due_s - phase.from_s, worth.recall) for outcome, worth in answered]
    return Figures(
        phase=phase.name,
        seconds=phase.until_s - phase.from_s,
        took_s=phase.took_s,
        queries=len(mine),
        failed=len(failures),
        incomplete=sum(not outcome.complete for outcome, _ in answered),
        outdated=sum(worth.outdated for _, worth in answered),
        recall=_mean([recall for _, recall in recalls]),
        lowest_recall=min(window_means(recalls, window_s), default=math.nan),
        p50_ms=percentile(latencies, 0.5),
        p99_ms=percentile(latencies, 0.99),
        worst_ms=max(latencies, default=math.nan),
        fresh_p99_ms=percentile(fresh, 0.99),
        undisturbed_p99_ms=None
        if standstills is None
        else percentile([each.latency_ms for each in quiet], 0.99),
        disturbed=None if standstills is None else len(answered) - len(quiet),
        failure=failures[0] if failures else "",
        note=phase.note,
    )


def undisturbed(outcomes: Sequence[Outcome], standstills: Sequence[Standstill]) -> list[Outcome]:
    """Those that did not fall into a standstill."""
    return [each for each in outcomes if not met_one(each.due_s, standstills)]


def window_means(values: Sequence[tuple[float, float]], window_s: float) -> list[float]:
    """Means over windows of (time, value) pairs, times from 0 on.

    The last window takes in what is left, as the mean of a few values says nothing.
    """
    if not values:
        return []
    count = max(1, int(max(at_s for at_s, _ in values) // window_s))
    windows: list[list[float]] = [[] for _ in range(count)]
    for at_s, value in values:
        windows[min(count - 1, int(at_s // window_s))].append(value)
    return [_mean(each) for each in windows if each]


def judge(
    figures: Sequence[Figures],
    *,
    resting_ms: Sequence[float],
    undisturbed_ms: Sequence[float] = (),
    writes: WriteTally,
    wanted_writes: float,
    kept: Kept,
    targets: Targets,
) -> Verdict:
    """Compare a run with its targets.

    resting_ms: latencies of all rests. undisturbed_ms: those of them that did not fall into a
    standstill of the machine, if that is known. wanted_writes: operations that should have been
    made.
    """
    at_rest_ms, quiet_ms = percentile(resting_ms, 0.99), percentile(undisturbed_ms, 0.99)
    changes = [each for each in figures if each.phase != REST]
    ratios = {each.phase: each.p99_ms / at_rest_ms for each in changes}
    quiet = {
        each.phase: each.undisturbed_p99_ms / quiet_ms
        for each in changes
        if each.undisturbed_p99_ms is not None
    }
    lowest = targets.recall - targets.recall_slack
    done = writes.upserts + writes.deletes
    met = {
        "queries that failed: 0": sum(each.failed for each in figures) == 0,
        "answers that were incomplete: 0": sum(each.incomplete for each in figures) == 0,
        "hits on what was deleted or replaced: 0": sum(each.outdated for each in figures) == 0,
        # Written so that NaN, of a phase without an answer, is a miss.
        f"recall of every window at least {lowest:.3f}": bool(figures)
        and all(each.lowest_recall >= lowest for each in figures),
        f"p99 of every change over that at rest at most {targets.p99_ratio:g}": bool(ratios)
        and all(ratio <= targets.p99_ratio for ratio in ratios.values()),
        "writes that failed: 0": writes.failed == 0,
        "acknowledged writes lost: 0": kept.lost == 0 and kept.checked > 0,
        "deleted documents that came back: 0": kept.resurrected == 0,
        f"writes made: at least {MIN_WRITE_RATE:.0%}": done >= MIN_WRITE_RATE * wanted_writes,
    }
    return Verdict(met, ratios, quiet or None)


def as_json(figures: Figures) -> dict[str, Any]:
    """All figures, rounded to what can be believed."""
    return rounded(asdict(figures))


def rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers with four decimals."""
    return {
        key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
