"""Was the load served well enough?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """What the load must stay within. None: not asked for."""

    max_p99_ms: float | None = None
    """Highest latency that 99 of 100 calls may reach, in milliseconds."""
    max_failures: float | None = None
    """Highest share of failed calls, 0 to 1."""
    min_coverage: float | None = None
    """Lowest share of answers whose coverage was complete, 0 to 1."""


@dataclass(frozen=True)
class Observed:
    """What the load saw."""

    calls: int
    """Calls made, failed ones too."""
    failures: int
    """Calls that failed."""
    complete: int
    """Answers whose coverage was complete."""
    p99_ms: float
    """Latency that 99 of 100 calls reached, in milliseconds."""


def misses(thresholds: Thresholds, observed: Observed) -> list[str]:
    """Say which thresholds were missed, a sentence each. A load without a call misses all."""
    if observed.calls == 0:
        return ["no call was made: is the broker's address right, and the run long enough?"]
    found = []
    if thresholds.max_p99_ms is not None and observed.p99_ms > thresholds.max_p99_ms:
        found.append(f"p99 is {observed.p99_ms:.0f} ms, above {thresholds.max_p99_ms:g} ms")
    failed = observed.failures / observed.calls
    if thresholds.max_failures is not None and failed > thresholds.max_failures:
        found.append(
            f"{failed:.2%} of the calls failed ({observed.failures} of {observed.calls}), above "
            f"{thresholds.max_failures:.2%}"
        )
    answered = observed.calls - observed.failures
    covered = observed.complete / answered if answered else 0.0
    if thresholds.min_coverage is not None and covered < thresholds.min_coverage:
        found.append(
            f"{covered:.2%} of the answers were complete ({observed.complete} of {answered}), "
            f"below {thresholds.min_coverage:.2%}"
        )
    return found
