"""Is an index searched harder when live queries fall short, and never for a whim?"""

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from shoal.shard.codes import OperatingPoint
from shoal.shard.live_recall import Estimate, Outcome, QueryWindow
from shoal.shard.tuning import EFFORTS, MIN_QUERIES, alert_of, tune

TARGET = 0.95
SINCE = "2026-11-24 10:00 UTC"


def known(mean, half_width=0.01, count=256):
    return Estimate(mean, half_width, count)


class Scripted:
    """Recall by effort; remembers what was asked for."""

    def __init__(self, **recalls):
        self.recalls = {float(name[1:].replace("_", ".")): each for name, each in recalls.items()}
        self.asked = []

    def __call__(self, effort):
        self.asked.append(effort)
        below = [each for each in self.recalls if each <= effort]
        return known(self.recalls[max(below)])


# The policy


def test_nothing_changes_while_recall_may_be_at_its_target():
    for recall in (0.942, 0.95, 0.99):
        measure = Scripted(e1=recall)
        verdict = tune(1.0, TARGET, 8.0, measure)
        assert (verdict.effort, verdict.enough) == (1.0, True)
        assert alert_of(verdict, TARGET, "") == ""
        assert measure.asked == [1.0]


def test_a_drift_is_met_with_the_least_effort_that_surely_suffices():
    measure = Scripted(e1=0.91, e1_5=0.945, e2=0.955, e3=0.962, e4=0.97)
    verdict = tune(1.0, TARGET, 8.0, measure)
    assert (verdict.effort, verdict.enough) == (3.0, True)
    assert max(measure.asked) == 3.0
    alert = alert_of(verdict, TARGET, SINCE)
    assert "recall of live queries is 0.910 ± 0.010 over 256 queries" in alert
    assert "below its target 0.95: it is searched 3 times as hard since 2026-11-24 10:00" in alert
    assert "reaches 0.962" in alert
    assert "`shoal index build INDEX --promote`" in alert


def test_what_only_just_suffices_is_taken_where_nothing_surely_does():
    verdict = tune(1.0, TARGET, 8.0, Scripted(e1=0.91, e2=0.951, e3=0.953))
    assert (verdict.effort, verdict.enough) == (2.0, True)


def test_no_flapping_between_the_bounds():
    effort, seen = 1.0, []
    random = np.random.default_rng(3)
    for _ in range(200):  # The truth does not change; what is measured of it does.
        truth = {1.0: 0.93, 1.5: 0.948, 2.0: 0.962}

        def measure(at, truth=truth):
            below = [each for each in truth if each <= at]
            return known(truth[max(below)] + float(random.normal(0, 0.004)))

        verdict = tune(effort, TARGET, 8.0, measure)
        effort = verdict.effort
        seen.append(effort)
    changes = sum(before != after for before, after in pairwise(seen))
    assert changes <= 1, seen
    assert seen[-1] in (1.5, 2.0)


def test_effort_comes_down_step_by_step_once_the_data_allows():
    measure, seen = Scripted(e1=0.97), [6.0]
    while seen[-1] > 1.0:
        verdict = tune(seen[-1], TARGET, 8.0, measure)
        assert verdict.enough
        seen.append(verdict.effort)
    assert seen == [6.0, 4.0, 3.0, 2.0, 1.5, 1.0]
    assert alert_of(verdict, TARGET, "") == ""
    # Not while less effort would only probably do.
    assert tune(2.0, TARGET, 8.0, Scripted(e1=0.955)).effort == 2.0


@pytest.mark.parametrize("most", [1.0, 4.0, 16.0])
def test_effort_is_bounded_and_the_alert_says_when_it_does_not_suffice(most):
    rising = Scripted(**{f"e{str(each).replace('.', '_')}": 0.7 + each / 100 for each in EFFORTS})
    verdict = tune(1.0, TARGET, most, rising)
    assert (verdict.effort, verdict.enough) == (most, False)
    alert = alert_of(verdict, TARGET, SINCE)
    assert "below its target 0.95" in alert
    assert "`shoal index build INDEX --promote`" in alert
    said = "harder does not help" if most == 1.0 else f"searched {most:g} times as hard since"
    assert said in alert


def test_effort_that_gains_nothing_is_not_spent():
    verdict = tune(1.0, TARGET, 8.0, Scripted(e1=0.80, e2=0.90, e4=0.902))
    assert (verdict.effort, verdict.enough) == (2.0, False)
    again = tune(verdict.effort, TARGET, 8.0, Scripted(e1=0.80, e2=0.90, e4=0.902))
    assert (again.effort, again.enough) == (2.0, False)


def test_an_effort_above_a_bound_that_was_lowered_is_kept_until_it_can_come_down():
    assert tune(6.0, TARGET, 2.0, Scripted(e1=0.90, e6=0.93)).effort == 6.0
    assert tune(6.0, TARGET, 2.0, Scripted(e1=0.97)).effort == 4.0


def test_search_parameters_grow_within_the_lists_that_there_are():
    point = OperatingPoint(top_k=10, nprobe=6, refine_factor=3, recall=0.96)
    assert point.harder(1.0, 64) is point
    harder = point.harder(1.5, 64)
    assert (harder.nprobe, harder.refine_factor, harder.candidate_count()) == (9, 5, 50)
    assert point.harder(16.0, 64).nprobe == 64
    assert point.harder(16.0, 64).candidate_count(growth=16.0) <= 8_000


# What is known


def test_an_estimate_says_how_sure_it_is():
    random = np.random.default_rng(5)
    truth, beyond = 0.9, 0
    for _ in range(400):
        estimate = Estimate.of(random.binomial(10, truth, 256) / 10)
        beyond += not estimate.lower <= truth <= estimate.upper
    assert 20 <= beyond <= 62  # One in ten.
    assert Estimate.of(np.ones(MIN_QUERIES)).upper == 1.0
    assert Estimate.of(np.array([0.5])).half_width > 1.0  # One query says nothing.


def test_recall_is_counted_by_shard_and_over_all():
    expected = np.array([[6, 4, 0], [10, 0, 0], [0, 0, 0], [3, 7, 0]])
    found = np.array([[6, 2, 0], [9, 0, 0], [0, 0, 0], [3, 6, 0]])
    outcome = Outcome(expected, found)
    estimate = outcome.estimate()
    assert (estimate.mean, estimate.query_count) == (pytest.approx((0.8 + 0.9 + 0.9) / 3), 3)
    shards = outcome.by_shard([2, 5, 7])
    assert shards.keys() == {2, 5}
    assert shards[2] == (pytest.approx(18 / 19), 3, 19)
    assert shards[5] == (pytest.approx(8 / 11), 2, 11)
    assert Outcome(expected * 0, found * 0).estimate() is None


# Which queries


def numbered(first, count):
    return np.arange(first, first + count, dtype=np.float32)[:, None]


def test_all_queries_are_kept_until_the_window_is_full_and_then_a_share():
    window = QueryWindow(100, 0.05, Random(1))
    window.offer(numbered(0, 100), [10] * 100)
    assert [each.vector[0] for each in window.queries()] == list(range(100))
    for call in range(2_000):
        window.offer(numbered(100 + 10 * call, 10), [10] * 10)
    assert len(window) == 100
    kept = window.added_count - 100
    assert abs(kept - 1_000) < 150  # 5% of 20,000.
    assert [each.vector[0] for each in window.queries()] == sorted(
        each.vector[0] for each in window.queries()
    )
    # Evenly among a call's places.
    places = {int(each.vector[0]) % 10 for each in window.queries()}
    assert len(places) == 10


def test_what_is_kept_is_a_copy_and_queries_for_too_many_results_are_not():
    window = QueryWindow(100, 1.0, Random(1))
    queries = numbered(0, 3)
    window.offer(queries, [10, 101, 100])
    queries[:] = -1
    assert [(each.vector[0], each.top_k) for each in window.queries()] == [(0, 10), (2, 100)]


def test_a_share_of_nothing_keeps_nothing():
    window = QueryWindow(100, 0.0, Random(1))
    window.offer(numbered(0, 50), [10] * 50)
    assert len(window) == 0
