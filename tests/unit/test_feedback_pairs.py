"""Is what the debiased weights say nearer to the truth than the raw choices are?"""

import numpy as np
import pytest
from shoal.training.feedback_pairs import (
    CLIP,
    Impression,
    Passage,
    Propensities,
    as_record,
    count_callers,
    deserving,
    estimate_propensities,
    weigh,
)

QUERIES, PASSAGES, RANKS = 30, 12, 10


class World:
    """Questions whose passages are relevant to a degree that is known, and readers who look at a
    rank with a chance that is known."""

    def __init__(self, seed, strength=1.0, answers=120):
        self.random = random = np.random.default_rng(seed)
        self.relevance = random.beta(0.5, 1.5, (QUERIES, PASSAGES))
        self.examined = 1.0 / np.arange(1, RANKS + 1) ** strength
        # Rankings that know something of the truth; a version now and then has another.
        rankings = [
            np.argsort(-(self.relevance + random.normal(0, 0.5, self.relevance.shape)), axis=1)
            for _ in range(4)
        ]
        self.impressions = [
            self.answer(query, rankings[random.integers(len(rankings))][query])
            for query in range(QUERIES)
            for _ in range(answers)
        ]

    def answer(self, query, order):
        shown = order[:RANKS]
        chances = self.examined * self.relevance[query, shown]
        chosen = np.flatnonzero(self.random.random(RANKS) < chances)
        return Impression(
            f"q{query}",
            tuple(Passage(f"d{each}", 0) for each in shown),
            {int(each) + 1: None for each in chosen},
        )

    def truth(self, pairs):
        queries = [int(each.query[1:]) for each in pairs]
        return self.relevance[queries, [int(each.passage.document_id[1:]) for each in pairs]]

    def errors(self):
        """Error of the debiased estimate and of the rate of choices, over pairs that were chosen.

        A rate says nothing of its scale: both are brought to the truth's by the best factor.
        """
        pairs = weigh(self.impressions)
        truth = self.truth(pairs)
        debiased = np.array([each.relevance for each in pairs])
        raw = np.array([each.choices / each.seen for each in pairs])
        return tuple(
            np.sqrt(np.mean((estimate * (estimate @ truth) / (estimate @ estimate) - truth) ** 2))
            for estimate in (debiased, raw)
        )


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
def test_debiased_relevance_is_nearer_to_the_truth_than_raw_choices(strength):
    errors = np.array([World(seed, strength).errors() for seed in range(8)])
    # Of every world, and by far on average.
    assert (errors[:, 0] < errors[:, 1]).all(), errors
    assert errors[:, 0].mean() < 0.8 * errors[:, 1].mean(), errors.mean(axis=0)


def test_the_ranking_by_weight_is_nearer_too():
    def agreement(estimate, truth):
        first, second = np.argsort(np.argsort(estimate)), np.argsort(np.argsort(truth))
        return np.corrcoef(first, second)[0, 1]

    for seed in range(8):
        world = World(seed, answers=300)
        pairs = weigh(world.impressions)
        truth = world.truth(pairs)
        debiased = agreement([each.relevance for each in pairs], truth)
        assert debiased > agreement([each.choices / each.seen for each in pairs], truth)


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
def test_propensities_are_found_where_passages_have_moved(strength):
    for seed in range(2):
        world = World(seed, strength, answers=300)
        found = estimate_propensities(world.impressions)
        assert found.learnt.all()
        assert found.values[0] == 1.0
        assert np.abs(found.values - world.examined).max() < 0.12, (seed, found.values)


def few_answers(seed, singletons=0):
    """Sixty questions of ten answers each, shuffled anew; and questions that were asked once."""
    world = World(seed, answers=0)
    random = world.random
    world.relevance = random.beta(0.5, 1.5, (60 + singletons, RANKS))
    asked = [query for query in range(60) for _ in range(10)]
    asked += range(60, 60 + singletons)
    return [world.answer(query, random.permutation(RANKS)) for query in asked]


def test_few_answers_and_what_never_moved_do_not_inflate_propensities():
    truth = 1.0 / np.arange(1, RANKS + 1)
    found = [
        np.array([estimate_propensities(few_answers(s, more)).values for s in range(8)])
        for more in (0, 1000)
    ]
    for values in found:
        assert np.abs(values.mean(axis=0) - truth).max() < 0.08, values.mean(axis=0)
        assert np.abs(values - truth).max() < 0.25


def test_each_rank_is_learnt_by_itself():
    shown = tuple(Passage(f"d{at}", 0) for at in range(3))
    swapped = (shown[1], shown[0], shown[2])
    impressions = [
        each
        for at in range(20)
        for each in (
            Impression(f"q{at}", shown, {1: None}),
            Impression(f"q{at}", swapped, {2: None} if at % 2 else {}),
        )
    ]
    found = estimate_propensities(impressions)
    assert found.learnt.tolist() == [True, True, False]
    assert found.values.tolist() == pytest.approx([1, 1 / 2, 1 / 3])


def test_without_bias_none_is_found():
    found = estimate_propensities(World(3, strength=0.0, answers=300).impressions)
    assert np.abs(found.values - 1.0).max() < 0.1


def test_where_nothing_moved_one_over_the_rank_is_assumed_and_said():
    same = tuple(Passage(f"d{at}", 0) for at in range(4))
    found = estimate_propensities([Impression(f"q{at}", same, {1: None}) for at in range(50)])
    assert found.learnt.tolist() == [True, False, False, False]
    assert found.values.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert estimate_propensities([]).values.tolist() == []
    assert weigh([]) == []


def test_a_choice_far_down_counts_more_but_never_more_than_the_clip_allows():
    shown = tuple(Passage(f"d{at}", 0) for at in range(100))
    assumed = Propensities(1.0 / np.arange(1, 101), np.zeros(100, np.int64))
    pairs = weigh([Impression("q", shown, {1: None, 10: None, 100: None})], assumed)
    weights = {each.passage.document_id: each.relevance for each in pairs}
    assert weights == pytest.approx({"d0": 1.0, "d9": 10.0, "d99": 1 / CLIP})
    assert np.mean([each.weight for each in pairs]) == pytest.approx(1.0)
    assert [each.passage.document_id for each in pairs] == ["d99", "d9", "d0"]


def hashed(epoch, *names):
    """Hashes of some principals under one salt."""
    return [epoch.to_bytes(4, "little") + each.ljust(12).encode() for each in names]


def test_callers_are_counted_within_a_salt_and_never_added_up():
    once, later = hashed(1, "ann"), hashed(2, "ann")
    assert count_callers([]) == 0
    assert count_callers([*once, *once]) == 1
    # Ann under two salts is one principal.
    assert count_callers([*once, *later]) == 1
    assert count_callers([*hashed(1, "ann", "bob"), *hashed(2, "ann", "bob", "eve")]) == 3
    # One that nobody knows may be Ann.
    assert count_callers([b"", b""]) == count_callers([b"", *once]) == 1

    shown = (Passage("a", 0), Passage("b", 0))
    impressions = [
        Impression("q", shown, {1: None}, principal) for principal in (*once, *later)
    ] + [Impression("q", shown, {2: None}, each) for each in hashed(2, "bob", "eve")]
    (pair,) = weigh(impressions, min_callers=2)
    assert (pair.passage.document_id, pair.callers) == ("b", 2)
    assert {each.passage.document_id: each.callers for each in weigh(impressions)} == {
        "a": 1,
        "b": 2,
    }


def test_what_should_not_count_does_not():
    shown = (Passage("a", 0), Passage("b", 1))
    glance = Impression("q", shown, {1: 0.5, 2: 20.0}, hashed(1, "ann")[0], "1 e@1")
    again = Impression("q", shown, {1: 99.0}, hashed(1, "ann")[0], "1 e@1")
    untimed = Impression("q", shown, {2: None}, hashed(1, "bob")[0], "2 e@1")
    unknown = [Impression("q", shown, {1: 30.0})] * 2
    kept = deserving([glance, again, untimed, *unknown], min_dwell_s=1.0)
    assert [dict(each.chosen) for each in kept] == [{2: 20.0}, {2: None}, {1: 30.0}, {1: 30.0}]
    pairs = weigh(kept, min_callers=2)
    (pair,) = pairs
    assert pair.passage == ("b", 1, b"")
    assert (pair.choices, pair.seen, pair.callers, pair.sources) == (2, 4, 2, ("1 e@1", "2 e@1"))
    record = as_record(pair, "the text")
    assert (record["query"], record["positive"], record["weight"]) == ("q", "the text", 1.0)
