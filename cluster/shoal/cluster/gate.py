"""May a version that was compared with the one that serves take its place?

A pure function from what was measured to a verdict: every check that was made, and for each that
failed a sentence that says by how much. Thresholds are declared, and have defaults.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from shoal.cluster.config import ConfigError, explain


class GateThresholds(BaseModel):
    """What a candidate must reach. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_ndcg_loss: float = Field(default=0.005, ge=0, le=1)
    """Most that nDCG@10 on a judged set may fall, by vectors alone and with words beside them. The
    shipped model, in int8, encoded once more in other batches, was 0.004 better and 0.002 worse
    than itself on 300 questions: a bound below that stops at chance."""
    min_overlap: float = Field(default=0.3, ge=0, le=1)
    """Least mean part of the hits that both versions have in common. Another model has every right
    to find others; below a third it is a different search, which somebody should have looked at."""
    min_rank_biased_overlap: float = Field(default=0.3, ge=0, le=1)
    """Least mean rank-biased overlap: the same, with most weight on the first ranks."""
    min_kendall_tau: float = Field(default=0.0, ge=-1, le=1)
    """Least mean of Kendall's tau over the hits that both have."""
    max_latency_ratio: float = Field(default=1.5, gt=0)
    """Most times as long as the version that serves that the candidate may take, at the median."""
    max_failed_share: float = Field(default=0.01, ge=0, le=1)
    """Most of the compared queries that the candidate may leave unanswered, or half answered."""
    min_queries: int = Field(default=50, ge=0)
    """Fewest live queries that must have been compared. 0: none, as on a cluster without callers;
    then nothing is said about overlap and latency unless there were some."""
    min_canary_queries: int = Field(default=20, ge=0)
    """Fewest queries that a canary must have answered or failed, if there is one. Its share of
    failures may exceed that of the version that serves by `max_failed_share`, and its median time
    may be `max_latency_ratio` times as long."""
    require_judgments: bool = False
    """True: a candidate that was not judged on a set fails."""


@dataclass(frozen=True)
class Judged:
    """nDCG@10 of both versions on one judged set, ranked in one way."""

    name: str
    serving: float
    candidate: float


@dataclass(frozen=True)
class CanarySeen:
    """How the callers of a canary fared, beside all others at that time."""

    answered: int
    failed: int
    serving_failed_share: float
    """Part of the others' queries that were not answered, or not completely."""
    latency_ratio: float | None = None
    """Median of the candidate's time over that of the version that serves; None for too few."""


@dataclass(frozen=True)
class RolloutReport:
    """What is known of a candidate."""

    compared: int = 0
    failed: int = 0
    dropped: int = 0
    overlap: float | None = None
    """Means over the compared queries; None if there are none."""
    rank_biased_overlap: float | None = None
    kendall_tau: float | None = None
    latency_ratio: float | None = None
    """Median of the candidate's time over that of the version that serves."""
    recall: float | None = None
    """Recall@10 against exact search that its build measured."""
    recall_target: float | None = None
    judged: tuple[Judged, ...] = ()
    canary: CanarySeen | None = None
    """None before there is one."""


@dataclass(frozen=True)
class Check:
    """One comparison of a value with its bound."""

    name: str
    value: float
    bound: float
    passed: bool
    reason: str
    """What is wrong, if it did not pass."""


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate may serve."""

    checks: tuple[Check, ...] = field(default_factory=tuple)

    @property
    def passed(self) -> bool:
        """True if every check passed."""
        return all(each.passed for each in self.checks)

    @property
    def reasons(self) -> list[str]:
        """Why it did not pass, a sentence each."""
        return [each.reason for each in self.checks if not each.passed]


def decide(report: RolloutReport, thresholds: GateThresholds) -> Verdict:
    """Check a candidate against the thresholds."""
    checks = [_at_least("queries compared", report.compared, thresholds.min_queries)]
    tried = report.compared + report.failed
    if tried:
        failed = report.failed / tried
        checks.append(_at_most("failed share", failed, thresholds.max_failed_share))
    for name, value, bound in (
        ("overlap", report.overlap, thresholds.min_overlap),
        ("rank-biased overlap", report.rank_biased_overlap, thresholds.min_rank_biased_overlap),
        ("Kendall's tau", report.kendall_tau, thresholds.min_kendall_tau),
    ):
        if value is not None:
            checks.append(_at_least(name, value, bound))
    if report.latency_ratio is not None:
        bound = thresholds.max_latency_ratio
        checks.append(_at_most("latency ratio", report.latency_ratio, bound))
    if report.recall is not None and report.recall_target is not None:
        checks.append(_at_least("recall@10", report.recall, report.recall_target))
    checks += [_judged(each, thresholds.max_ndcg_loss) for each in report.judged]
    if thresholds.require_judgments and not report.judged:
        reason = "it was not judged, and that is required: give --queries and --qrels"
        checks.append(Check("judged sets", 0, 1, passed=False, reason=reason))
    if report.canary is not None:
        checks += decide_canary(report.canary, thresholds).checks
    return Verdict(tuple(checks))


def decide_canary(seen: CanarySeen, thresholds: GateThresholds) -> Verdict:
    """Check what a canary's callers noticed against the thresholds."""
    tried = seen.answered + seen.failed
    checks = [_at_least("queries of the canary", tried, thresholds.min_canary_queries)]
    if tried:
        bound = seen.serving_failed_share + thresholds.max_failed_share
        checks.append(_at_most("failed share of the canary", seen.failed / tried, bound))
    if seen.latency_ratio is not None:
        bound = thresholds.max_latency_ratio
        checks.append(_at_most("latency ratio of the canary", seen.latency_ratio, bound))
    return Verdict(tuple(checks))


def _judged(judged: Judged, max_loss: float) -> Check:
    loss = judged.serving - judged.candidate
    name = f"nDCG@10 {judged.name}"
    if judged.serving <= 0:
        reason = f"{name} is 0 for the version that serves: are the judged ids those of the index?"
        return Check(name, judged.candidate, 0, passed=False, reason=reason)
    reason = (
        f"{name} is {judged.candidate:.3f}, {loss:.3f} below the {judged.serving:.3f} of the "
        f"version that serves; at most {max_loss:.3f} are allowed"
    )
    return _check(name, judged.candidate, judged.serving - max_loss, loss <= max_loss, reason)


def _at_least(name: str, value: float, bound: float) -> Check:
    reason = f"{name} is {value:.3g}, below {bound:.3g}"
    return _check(name, value, bound, value >= bound, reason)


def _at_most(name: str, value: float, bound: float) -> Check:
    reason = f"{name} is {value:.3g}, above {bound:.3g}"
    return _check(name, value, bound, value <= bound, reason)


def _check(name: str, value: float, bound: float, passed: bool, reason: str) -> Check:
    return Check(name, value, bound, passed, "" if passed else reason)


def mean_of(values: Sequence[float]) -> float | None:
    """The mean of the values that are numbers; None if there is none."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else None


def latency_ratio_of(serving_ms: Sequence[float], candidate_ms: Sequence[float]) -> float | None:
    """How many times as long the candidate takes, by the medians; None without queries."""
    if not serving_ms or not candidate_ms:
        return None
    return float(np.median(candidate_ms) / max(float(np.median(serving_ms)), 1e-3))


def paired_latency_ratio(
    serving_ms: Sequence[float], candidate_ms: Sequence[float]
) -> float | None:
    """The same over the queries that both versions were timed with: neither is NaN."""
    pairs = [
        each
        for each in zip(serving_ms, candidate_ms, strict=True)
        if math.isfinite(each[0]) and math.isfinite(each[1])
    ]
    return latency_ratio_of([ours for ours, _ in pairs], [theirs for _, theirs in pairs])


def read_thresholds(path: Path | None) -> GateThresholds:
    """Read thresholds from YAML; None gives the defaults. Raises ConfigError."""
    if path is None:
        return GateThresholds()
    try:
        declared = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return GateThresholds.model_validate(declared)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the thresholds {path}: {error}") from error
    except ValidationError as error:
        raise ConfigError(explain(error, str(path), GateThresholds)) from error
