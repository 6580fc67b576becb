"""Does the gate say no to what it should, and why?"""

import dataclasses
import math

import pytest
from shoal.cli.rolling import Outcome, canary_of, has_failed
from shoal.cli.rollout import _print_checks
from shoal.cluster.config import ConfigError
from shoal.cluster.gate import (
    CanarySeen,
    GateThresholds,
    Judged,
    RolloutReport,
    decide,
    decide_canary,
    latency_ratio_of,
    mean_of,
    paired_latency_ratio,
    read_thresholds,
)
from shoal.v1.indexes_pb2 import CanaryReport, DescribeRolloutResponse, Rollout

GOOD = RolloutReport(
    compared=100,
    failed=0,
    overlap=0.8,
    rank_biased_overlap=0.7,
    kendall_tau=0.5,
    latency_ratio=1.1,
    recall=0.97,
    recall_target=0.95,
    judged=(Judged("by vectors", 0.90, 0.92),),
)
DEFAULTS = GateThresholds()


def test_a_good_candidate_passes_with_every_check_named():
    verdict = decide(GOOD, DEFAULTS)
    assert verdict.passed
    assert verdict.reasons == []
    assert len(verdict.checks) == 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compared": 49}, "queries compared is 49, below 50"),
        ({"failed": 2}, "failed share is 0.0196, above 0.01"),
        ({"overlap": 0.29}, "overlap is 0.29, below 0.3"),
        ({"rank_biased_overlap": 0.1}, "rank-biased overlap is 0.1, below 0.3"),
        ({"kendall_tau": -0.2}, "Kendall's tau is -0.2, below 0"),
        ({"latency_ratio": 1.6}, "latency ratio is 1.6, above 1.5"),
        ({"recall": 0.9}, "recall@10 is 0.9, below 0.95"),
        (
            {"judged": (Judged("by vectors", 0.9, 0.89),)},
            "nDCG@10 by vectors is 0.890, 0.010 below the 0.900 of the version that serves",
        ),
        (
            {"judged": (Judged("by vectors", 0.0, 0.0),)},
            "are the judged ids those of the index?",
        ),
    ],
)
def test_each_threshold_stops_by_itself_and_says_by_how_much(changes, said):
    verdict = decide(dataclasses.replace(GOOD, **changes), DEFAULTS)
    assert not verdict.passed
    assert len(verdict.reasons) == 1
    assert said in verdict.reasons[0]


CANARY = CanarySeen(answered=99, failed=1, serving_failed_share=0.0, latency_ratio=1.2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answered": 19, "failed": 0}, "queries of the canary is 19, below 20"),
        ({"failed": 2}, "failed share of the canary is 0.0198, above 0.01"),
        ({"latency_ratio": 1.6}, "latency ratio of the canary is 1.6, above 1.5"),
    ],
)
def test_a_canary_that_fails_or_is_slow_stops_a_good_candidate(changes, said):
    assert decide(dataclasses.replace(GOOD, canary=CANARY), DEFAULTS).passed
    seen = dataclasses.replace(CANARY, **changes)
    assert decide(dataclasses.replace(GOOD, canary=seen), DEFAULTS).reasons == [said]


def test_a_canary_may_fail_as_often_as_what_serves():
    busy = CanarySeen(answered=90, failed=10, serving_failed_share=0.095)
    assert decide_canary(busy, DEFAULTS).passed
    assert not decide_canary(dataclasses.replace(busy, serving_failed_share=0.05), DEFAULTS).passed


def test_a_canary_is_stopped_as_soon_as_enough_queries_say_so():
    def seen(answered, failed, times=0):
        canary = CanaryReport(
            answered=answered,
            failed=failed,
            serving_answered=100,
            candidate_ms=[30.0] * times,
            serving_ms=[10.0] * times,
        )
        return canary_of(DescribeRolloutResponse(rollout=Rollout(canary_share=0.1), canary=canary))

    assert canary_of(DescribeRolloutResponse(canary=CanaryReport(answered=3))) is None
    assert not has_failed(seen(10, 9), DEFAULTS)
    assert has_failed(seen(10, 10), DEFAULTS)
    assert not has_failed(seen(20, 0), DEFAULTS)
    assert not has_failed(seen(20, 0, times=19), DEFAULTS)
    assert has_failed(seen(20, 0, times=20), DEFAULTS)


def test_only_queries_that_both_were_timed_with_are_compared():
    assert paired_latency_ratio([10.0, math.nan, 10.0], [20.0, 900.0, 20.0]) == 2.0
    assert paired_latency_ratio([math.nan], [20.0]) is None


def test_bounds_themselves_pass():
    at_bounds = RolloutReport(
        compared=50,
        overlap=0.3,
        rank_biased_overlap=0.3,
        kendall_tau=0.0,
        latency_ratio=1.5,
        recall=0.95,
        recall_target=0.95,
        judged=(Judged("by words", 0.5, 0.5),),
    )
    assert decide(at_bounds, DEFAULTS).passed


def test_without_callers_and_judgments_nothing_but_their_lack_is_said():
    assert decide(RolloutReport(), DEFAULTS).reasons == ["queries compared is 0, below 50"]
    assert decide(RolloutReport(), GateThresholds(min_queries=0)).passed
    strict = GateThresholds(min_queries=0, require_judgments=True)
    assert "it was not judged" in decide(RolloutReport(), strict).reasons[0]


def test_means_leave_out_what_is_no_number():
    assert mean_of([1.0, math.nan, 3.0]) == 2.0
    assert mean_of([math.nan]) is None
    assert latency_ratio_of([10.0, 20.0, 900.0], [10.0, 30.0, 31.0]) == 1.5
    assert latency_ratio_of([], []) is None


def test_thresholds_are_read_and_wrong_ones_refused_by_name(tmp_path):
    path = tmp_path / "gate.yaml"
    path.write_text("min_overlap: 0.6\nmin_queries: 10\n")
    assert read_thresholds(path) == GateThresholds(min_overlap=0.6, min_queries=10)
    assert read_thresholds(None) == DEFAULTS
    path.write_text("min_overlaps: 0.6\n")
    with pytest.raises(ConfigError, match="min_overlaps: unknown key"):
        read_thresholds(path)
    path.write_text("max_latency_ratio: -1\n")
    with pytest.raises(ConfigError, match="max_latency_ratio"):
        read_thresholds(path)


@pytest.mark.parametrize(("ratio", "compared"), [(None, 60), (1.2, 60), (None, 0)])
def test_latency_that_was_not_compared_is_said(
    capsys: pytest.CaptureFixture[str], ratio: float | None, compared: int
) -> None:
    """Where every vector came from a cache there is nothing to time, and nothing to check."""
    report = RolloutReport(compared=compared, overlap=0.9, latency_ratio=ratio)
    outcome = Outcome(2, 1, report, decide(report, GateThresholds(min_queries=0)))
    _print_checks(outcome)
    said = " ".join(capsys.readouterr().err.split())
    assert ("Latency was not compared" in said) == (ratio is None and compared > 0)
    assert not compared or ratio or "all 60 queries" in said
