"""Do the parts of the load tests count, choose and judge right?"""

import json
import math
from collections import Counter

import numpy as np
import pytest

from loadtest.compositions import parse
from loadtest.freshness import divide, folds_of
from loadtest.measures import Round, percentile, ratios, summarise, verdicts
from loadtest.report import by_processor_time
from loadtest.thresholds import Observed, Thresholds, misses
from loadtest.vectors import Vectors, VectorSet, document_id, row_of
from loadtest.zipf import ZipfianChoice, read_questions


def a_round(composition, answered, seconds=2.0, **changes):
    values = {
        "composition": composition,
        "callers": 4,
        "answered": answered,
        "failed": 0,
        "seconds": seconds,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "recall": 0.97,
        "incomplete": 0,
        "client_cpu_s": 0.5,
        "server_cpu_s": 1.0,
        "failure": "",
    }
    return Round(**(values | changes))


def test_zipfian_choice_follows_its_law():
    choice = ZipfianChoice(range(50), exponent=1.0, seed=3)
    counts = Counter(choice.next() for _ in range(40_000))
    shares = [count / 40_000 for _, count in counts.most_common()]
    harmonic = sum(1 / rank for rank in range(1, 51))
    for rank in (1, 2, 5, 10):
        expected = 1 / rank / harmonic
        assert shares[rank - 1] == pytest.approx(expected, rel=0.12)


def test_zipfian_choice_of_exponent_zero_is_uniform_and_reaches_all():
    choice = ZipfianChoice("abcde", exponent=0.0, seed=1)
    counts = Counter(choice.next() for _ in range(10_000))
    assert set(counts) == set("abcde")
    assert min(counts.values()) > 1_700


def test_zipfian_choice_repeats_itself_and_reseeds():
    one, two = (ZipfianChoice(range(100), exponent=1.1, seed=5) for _ in range(2))
    assert [one.next() for _ in range(50)] == [two.next() for _ in range(50)]
    many = Counter(one.next() for _ in range(5_000))
    one.reseed(99)
    others = Counter(one.next() for _ in range(5_000))
    # Other choices, but the same favourite.
    assert many != others
    assert many.most_common(1)[0][0] == others.most_common(1)[0][0]


@pytest.mark.parametrize(("items", "exponent"), [([], 1.0), ([1], -0.1)])
def test_zipfian_choice_refuses(items, exponent):
    with pytest.raises(ValueError, match=r"nothing|exponent"):
        ZipfianChoice(items, exponent=exponent, seed=1)


def test_questions_are_read_and_bad_lines_named(tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_text('{"_id": "1", "text": "Who?"}\n\n{"_id": "2", "text": "Où ça ?"}\n')
    assert read_questions(path) == ["Who?", "Où ça ?"]
    for bad in ("{", '{"_id": "3"}', '{"text": " "}', "[1]", '{"text": 3}'):
        path.write_text('{"text": "Who?"}\n' + bad + "\n")
        with pytest.raises(ValueError, match=r"queries\.jsonl:2"):
            read_questions(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no questions"):
        read_questions(path)


def test_thresholds_that_are_not_asked_for_are_not_missed():
    observed = Observed(calls=10, failures=10, complete=0, p99_ms=1e6)
    assert misses(Thresholds(), observed) == []


def test_thresholds_name_what_was_missed():
    asked = Thresholds(max_p99_ms=100.0, max_failures=0.1, min_coverage=0.9)
    within = Observed(calls=100, failures=10, complete=81, p99_ms=100.0)
    assert misses(asked, within) == []
    beyond = Observed(calls=100, failures=11, complete=80, p99_ms=101.0)
    assert [sentence.split()[0] for sentence in misses(asked, beyond)] == [
        "p99",
        "11.00%",
        "89.89%",
    ]


def test_thresholds_are_missed_by_silence():
    assert "no call" in misses(Thresholds(), Observed(0, 0, 0, 0.0))[0]
    all_failed = Observed(calls=5, failures=5, complete=0, p99_ms=1.0)
    assert "complete" in misses(Thresholds(min_coverage=0.5), all_failed)[0]


def test_percentile_is_the_nearest_rank():
    values = [float(value) for value in range(100, 0, -1)]
    assert percentile(values, 0.5) == 50.0
    assert percentile(values, 0.99) == 99.0
    assert percentile(values, 1.0) == 100.0
    assert percentile([7.0], 0.0) == 7.0
    assert math.isnan(percentile([], 0.5))


def test_summary_takes_medians_and_the_lowest_recall():
    rounds = [
        a_round("shoal", 100, recall=0.96, failed=1),
        a_round("shoal", 300, recall=0.98),
        a_round("shoal", 200, recall=0.97, incomplete=2),
    ]
    found = summarise(rounds)
    assert (found.per_second, found.lowest_per_second, found.highest_per_second) == (100, 50, 150)
    assert (found.recall, found.failed, found.incomplete) == (0.96, 1, 2)
    assert found.server_cpu_ms_per_call == 5.0
    assert summarise([a_round("echo", 10, recall=None)]).recall is None


def test_ratios_pair_the_rounds_in_order():
    rounds = [a_round("a", 200), a_round("b", 100), a_round("b", 50), a_round("a", 200)]
    assert ratios(rounds, "a", "b") == [2.0, 4.0]
    assert ratios([a_round("a", 1), a_round("b", 0)], "a", "b") == [math.inf]
    assert ratios(rounds, "a", "c") == []


def test_verdicts_hold_every_target_recall_and_failure():
    summaries = {
        "shoal": summarise([a_round("shoal", 100, recall=0.94)]),
        "echo": summarise([a_round("echo", 100, recall=None, failed=1)]),
    }
    met = verdicts(
        summaries,
        {"shoal / echo": 0.5},
        {"shoal / echo": 0.4, "shoal / ray-serve": 15.0},
        min_recall=0.95,
    )
    assert met == {
        "shoal / echo": True,
        "shoal / ray-serve": False,
        "recall of shoal": False,
        "no failures of shoal": True,
        "no failures of echo": False,
    }


def test_ratio_by_processor_time_counts_client_and_servers():
    summaries = {
        "shoal": {"client_cpu_ms_per_call": 0.2, "server_cpu_ms_per_call": 0.8},
        "echo": {"client_cpu_ms_per_call": 0.2, "server_cpu_ms_per_call": 0.3},
    }
    assert by_processor_time(summaries) == {"shoal / echo": pytest.approx(0.5)}
    assert by_processor_time({}) == {}


def test_vectors_are_unit_and_kept_and_nearest_is_exact(tmp_path):
    chosen = VectorSet(count=3_000, dimension=16, query_count=20, cluster_count=30)
    vectors = Vectors(chosen, tmp_path)
    np.testing.assert_allclose(np.linalg.norm(vectors.rows, axis=1), 1.0, rtol=1e-5)
    again = Vectors(chosen, tmp_path)
    np.testing.assert_array_equal(vectors.rows, again.rows)
    other = Vectors(VectorSet(count=3_000, dimension=16, query_count=20, seed=8), tmp_path)
    assert not np.array_equal(vectors.rows, other.rows)
    scores = vectors.queries @ np.asarray(vectors.rows).T
    expected = np.argsort(-scores, axis=1)[:, :5]
    np.testing.assert_array_equal(vectors.nearest(20, 5), expected)


def test_document_ids_and_rows_are_inverse():
    assert [row_of(document_id(row)) for row in (0, 7, 499_999, 12_345_678)] == [
        0,
        7,
        499_999,
        12_345_678,
    ]


def test_command_line_states_the_issue_s_setting_by_default(tmp_path):
    chosen = parse(["--cache", str(tmp_path)])
    assert (chosen.vectors, chosen.shards, chosen.callers) == (500_000, 4, 64)
    with pytest.raises(SystemExit):
        parse([])


def test_a_round_is_json():
    stored = json.loads(json.dumps(a_round("echo", 30, recall=None).as_json()))
    assert stored["per_second"] == 15.0
    assert stored["recall"] is None


def test_folds_are_read_from_a_log_and_queries_divided_by_them():
    log = (
        "2026-11-24 23:50:10,500 INFO shoal.shard.upkeep: loaded LayoutId(...) in 1.2 s\n"
        "2026-11-24 23:50:12,500 INFO shoal.shard.upkeep: folded 1024 passages of LayoutId("
        "index_uid='a', index_version=1, shard_count=2), shard 1, into 51024 in 0.50 s\n"
    )
    ((first, last),) = folds_of(log)
    assert last - first == pytest.approx(0.5)
    queries = [
        (first - 0.01, 0.1),  # Before it.
        (first + 0.01, 0.1),  # Into it.
        (last + 0.05, 0.2),  # Out of it.
        (last + 0.5, 0.7),  # All over it.
        (last + 0.5, 0.3),  # After it.
    ]
    assert divide(queries, [(first, last)]) == ([0.1, 0.2, 0.7], [0.1, 0.3])
