"""Is a shift told from chance: no alarm where nothing moved, one where something did?"""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.bundle import load_bundle
from shoal.drift.comparison import alert_of, compare, compare_choices
from shoal.drift.discrepancy import discrepancy
from shoal.drift.samples import Sampled, Window, sampled
from shoal.drift.stability import (
    CHANCE,
    Components,
    chi_squared_quantile,
    counts_of,
    edges_of,
    shift,
    shift_of_rates,
    shift_of_values,
    shifts_of_vectors,
)
from shoal.drift.texts import SCRIPTS, main_script, script_counts, unknown_words

SEEDS = 50
TOKENIZER = load_bundle(
    Path(__file__).parents[2] / "deploy" / "bundles" / "all-minilm-l6-v2-int8"
).tokenizer()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def vectors(seed, count, away=0.0, dimension=32):
    """Unit vectors around a few topics; `away` moves a part of them to another topic."""
    topics = np.random.default_rng(7).normal(size=(5, dimension))
    random = np.random.default_rng(seed)
    topic = np.where(random.random(count) < away, 4, random.integers(0, 4, count))
    return unit(topics[topic] + random.normal(size=(count, dimension)))


def test_where_nothing_moved_there_is_no_alarm():
    alarms = values = 0
    for seed in range(SEEDS):
        before, after = vectors(2 * seed, 400), vectors(2 * seed + 1, 250)
        alarms += any(each.alarming for each in shifts_of_vectors(before, after))
        found = discrepancy(before[:100], after[:80], seed, permutations=1000)
        values += found.p_value <= CHANCE
    # Once in a thousand is allowed, of either kind: three in a hundred happen once in 6,000 runs.
    assert alarms + values <= 2


def test_where_something_moved_there_is_an_alarm_each_time():
    for seed in range(SEEDS // 3):
        before, after = vectors(2 * seed, 400), vectors(2 * seed + 1, 250, away=0.6)
        assert any(each.alarming for each in shifts_of_vectors(before, after)), seed
        found = discrepancy(before[:150], after[:150], seed, permutations=1000)
        assert found.p_value <= CHANCE, seed


def test_p_values_are_spread_evenly_where_nothing_moved():
    found = [
        discrepancy(vectors(2 * s, 60), vectors(2 * s + 1, 40), s, permutations=199).p_value
        for s in range(200)
    ]
    # Kolmogorov and Smirnov's distance from even; 0.138 is exceeded once in a thousand times.
    steps = np.arange(1, 201) / 200
    assert np.abs(np.sort(found) - steps).max() < 0.138


def test_the_discrepancy_is_unbiased_about_nothing_and_grows_with_the_shift():
    null = [
        discrepancy(vectors(2 * s, 80), vectors(2 * s + 1, 80), s, permutations=1).squared
        for s in range(100)
    ]
    assert abs(np.mean(null)) < 3 * np.std(null) / 10
    grown = [
        np.mean(
            [
                discrepancy(vectors(s, 80), vectors(s + 500, 80, away), s, permutations=1).squared
                for s in range(20)
            ]
        )
        for away in (0.0, 0.3, 0.6, 0.9)
    ]
    assert grown == sorted(grown)
    # Where the spread alone changes, too: no mean moves.
    wide = np.random.default_rng(1).normal(size=(200, 4))
    narrow = np.random.default_rng(2).normal(size=(200, 4)) / 3
    assert discrepancy(wide, narrow).p_value <= CHANCE


def test_the_discrepancy_is_that_of_the_definition():
    random = np.random.default_rng(5)
    x, y = random.normal(size=(5, 3)), random.normal(1, 1, size=(7, 3))
    pooled = np.concatenate([x, y])
    distances = ((pooled[:, None] - pooled[None]) ** 2).sum(-1)
    median = np.median(distances[np.triu_indices(12, 1)])

    def k(a, b):
        return math.exp(-((a - b) ** 2).sum() / median)

    expected = (
        sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / 20
        + sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / 42
        - 2 * sum(k(a, b) for a in x for b in y) / 35
    )
    assert discrepancy(x, y).squared == pytest.approx(expected)


counted = st.lists(st.integers(0, 1000), min_size=2, max_size=12)


@given(counted)
def test_the_index_is_zero_of_like_shares_and_never_below(counts):
    reference = np.array(counts, float) + 1
    assert shift(reference, 3 * reference).index == pytest.approx(0)
    assert not shift(reference, 3 * reference).alarming
    assert shift(reference, reference[::-1].copy()).index >= 0


def test_the_index_is_that_of_the_definition():
    found = shift(np.array([50.0, 50.0]), np.array([80.0, 20.0]))
    assert found.index == pytest.approx(0.3 * math.log(0.8 / 0.5) - 0.3 * math.log(0.2 / 0.5))
    assert found.alarming
    # The same shares of few are chance.
    assert not shift(np.array([5.0, 5.0]), np.array([8.0, 2.0])).alarming


@settings(max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_bins_hold_every_value_once(values):
    rows = np.array(values)
    edges = edges_of(rows)
    assert counts_of(rows, edges).sum() == len(values)
    assert len(edges) <= 9
    assert np.all(np.diff(edges) > 0)


def test_scores_and_rates_that_move_are_told():
    random = np.random.default_rng(0)
    before = random.normal(0.6, 0.1, 500)
    assert not shift_of_values(before, random.normal(0.6, 0.1, 300)).alarming
    assert shift_of_values(before, random.normal(0.4, 0.1, 300)).alarming
    assert shift_of_values(np.full(300, 0.5), np.full(300, 0.7)).index >= 0
    assert not shift_of_rates((100, 1000), (12, 100)).alarming
    assert shift_of_rates((500, 1000), (100, 1000)).alarming


@pytest.mark.parametrize(
    ("freedom", "exact"), [(1, 10.828), (4, 18.467), (9, 27.877), (13, 34.528)]
)
def test_quantiles_of_chi_squared_are_those_of_the_tables(freedom, exact):
    assert chi_squared_quantile(0.999, freedom) == pytest.approx(exact, rel=0.02)


def test_components_keep_what_varies_most():
    random = np.random.default_rng(3)
    rows = random.normal(size=(300, 6)) * [1, 9, 1, 1, 5, 1] + 100
    found = Components.of(rows, 2)
    assert np.abs(found.axes @ np.eye(6)[[1, 4]].T).round(1).tolist() == [[1, 0], [0, 1]]
    assert np.abs(found.project(rows).mean(axis=0)).max() < 1e-9


def test_scripts_are_told_apart():
    texts = {
        "Which animal is the largest?": "LATIN",
        "Какое животное самое большое?": "CYRILLIC",
        "ποιο ζώο είναι το μεγαλύτερο": "GREEK",
        "ما هو أكبر حيوان": "ARABIC",
        "सबसे बड़ा जानवर कौन सा है": "DEVANAGARI",
        "最大的动物是什么": "CJK",
        "สัตว์ที่ใหญ่ที่สุด": "THAI",
        "가장 큰 동물은": "HANGUL",
    }
    for text, script in texts.items():
        assert SCRIPTS[main_script(text)] == script
    assert script_counts("12 + 3 = ?").sum() == 0
    assert script_counts("a" * 10_000).sum() == 400


def test_words_that_the_tokenizer_does_not_know_are_counted():
    known = "Which animal is the largest ever to have lived?"
    assert unknown_words(known, TOKENIZER.pieces) == (0, 9)
    assert unknown_words("the zxqvbnmkl of ελληνικά", TOKENIZER.pieces) == (2, 4)
    # Of a script that the vocabulary lacks: each word holds what is not known.
    unknown, words = unknown_words("这是 一个测试", TOKENIZER.pieces)
    assert (unknown, words) == (2, 2)
    assert unknown_words("", TOKENIZER.pieces) == (0, 0)


def batch(values):
    rows = np.asarray(values, np.float32)[:, None]
    return sampled(rows, [""] * len(rows), None)


def test_a_window_is_bounded_and_even_over_all_that_was_asked():
    # Three batches of ten stand for 10, 100 and 1,000 questions.
    shares = np.zeros(3)
    for seed in range(300):
        window, random = Window("m", 0, 0.0, Sampled.none(1)), np.random.default_rng(seed)
        for number, asked in enumerate((10, 100, 1000)):
            window.add(batch([number] * 10), asked, 5, random)
        assert len(window.kept) == len(window.keys) == 5
        assert window.asked_count == 1110
        shares += np.bincount(window.kept.vectors[:, 0].astype(int), minlength=3)
    # Ten questions stand for a thousand, so that they are drawn almost all the time.
    shares /= shares.sum()
    assert shares[2] > 0.8
    assert shares[1] > 3 * shares[0]


def test_what_is_kept_of_a_question_is_no_text():
    kept = sampled(np.ones((2, 3), np.float32), ["Where is Άργος?", "42"], TOKENIZER.pieces)
    assert kept.scripts.tolist() == [SCRIPTS.index("LATIN"), -1]
    assert kept.words.tolist() == [3, 1]
    assert kept.unknown.tolist() == [1, 0]
    assert np.isnan(kept.best_scores).all()
    assert not any(each.dtype.kind in "OUS" for each in vars(kept).values())


def test_a_discrepancy_beyond_chance_that_is_small_is_no_alarm():
    def of(seed, away):
        return sampled(vectors(seed, 1000, away).astype(np.float32), ["some words"] * 1000, None)

    (small, *_), _ = compare("query", of(1, 0.0), of(2, 0.25))
    assert small.p_value <= CHANCE
    assert not small.alarming
    (large, *_), _ = compare("query", of(1, 0.0), of(2, 0.9))
    assert large.alarming


def test_an_alert_says_what_moved_and_what_to_do():
    def of(seed, away):
        return sampled(vectors(seed, 300, away).astype(np.float32), ["some words"] * 300, None)

    measures, points = compare("query", of(1, 0.0), of(2, 0.9))
    said = alert_of(measures, "yesterday")
    assert said.startswith("drift since yesterday: questions (vectors: discrepancy 0.")
    assert "more)" in said
    assert "`shoal drift INDEX --set-reference`" in said
    assert {each.reference: each.places.shape for each in points} == {
        True: (300, 2),
        False: (300, 2),
    }
    measures, _ = compare("query", of(3, 0.0), of(4, 0.0))
    assert alert_of(measures, "yesterday") == ""
    assert compare_choices((10, 20), (5, 20)) is None
    assert compare_choices((90, 100), (20, 100)).alarming
    assert not compare_choices((90, 100), (88, 100)).alarming
