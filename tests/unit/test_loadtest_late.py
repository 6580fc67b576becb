"""Are tokens compared as late interaction says, and are their vectors those of the encoder?"""

from pathlib import Path

import numpy as np
import pytest
from shoal.bundle import EncoderModel, load_bundle
from shoal.training.blend_questions import Judged
from shoal.training.hybrid import Found

pytest.importorskip("onnx", reason="needs the training extra")
pytest.importorskip("torch", reason="needs the training extra")

from loadtest.late_interaction import interact, margin, scores_of, weights_of
from loadtest.token_vectors import (
    Space,
    TokenEncoder,
    max_sim,
    principal,
    restored,
    squeezed,
    unit,
)

BUNDLE = Path(__file__).parents[2] / "deploy/bundles/all-minilm-l6-v2-int8"
TEXTS = ["Who keeps bees?", "A beekeeper keeps bees in hives.", "Tides follow the moon.", ""]


@pytest.fixture(scope="module")
def encoder():
    return TokenEncoder(load_bundle(BUNDLE), (0, 2), threads=1)


def units(rng, *shape):
    return unit(rng.normal(size=shape).astype(np.float32))


def test_max_sim_equals_a_plain_loop():
    rng = np.random.default_rng(4)
    for lengths in ([1], [3, 1, 7], [2, 2, 2, 40]):
        question, weights = units(rng, 5, 16), rng.random(5).astype(np.float32)
        passages = [units(rng, count, 16) for count in lengths]
        expected = []
        for passage in passages:
            total = 0.0
            for token, weight in zip(question, weights, strict=True):
                total += weight * max(float(token @ other) for other in passage)
            expected.append(total / weights.sum())
        starts = np.cumsum([0, *lengths])[:-1]
        found = max_sim(question, weights, np.concatenate(passages), starts)
        assert found == pytest.approx(expected, abs=1e-5)


def test_eight_bits_keep_a_vector_to_half_a_step():
    vectors = units(np.random.default_rng(5), 200, 64)
    numbers, scales = squeezed(vectors)
    assert numbers.dtype == np.int8
    assert scales.dtype == np.float16
    steps = scales.astype(np.float32)
    # A scale of half precision errs by 2 ** -11, which at most 127 steps bear.
    assert (np.abs(restored(numbers, scales) - vectors) <= steps * (0.5 + 127 / 2048)).all()
    assert not restored(*squeezed(np.zeros((2, 4), np.float32))).any()


def test_principal_directions_keep_what_varies():
    rng = np.random.default_rng(6)
    basis = np.linalg.qr(rng.normal(size=(12, 12)))[0][:3].astype(np.float32)
    hidden = rng.normal(size=(500, 3)).astype(np.float32) @ basis + 2.0
    mean, directions = principal(hidden, 3, centred=True)
    assert mean == pytest.approx(hidden.mean(axis=0))
    centre = hidden - mean
    assert centre @ directions @ directions.T == pytest.approx(centre, abs=1e-4)
    assert not principal(hidden, 3, centred=False)[0].any()


def test_the_mean_of_a_texts_tokens_is_the_encoders_own_vector(encoder):
    model = EncoderModel(load_bundle(BUNDLE), threads=1)
    own = model.encode(TEXTS, "passage")
    counts = model.count_tokens(TEXTS)
    seen = set()
    for at, tokens, mean in encoder.encode(TEXTS):
        seen.add(at)
        assert mean == pytest.approx(own[at], abs=1e-5)
        assert len(tokens.ids) == max(counts[at] - 2, 1)
        assert {each.shape for each in tokens.hidden.values()} == {(len(tokens.ids), 384)}
        assert not np.allclose(tokens.hidden[0], tokens.hidden[2])
    assert seen == set(range(len(TEXTS)))


def test_questions_are_compared_with_the_candidates_that_are_theirs(encoder):
    zeros = np.zeros(384, np.float32)
    matrix = np.linalg.qr(np.random.default_rng(7).normal(size=(384, 384)))[0][:, :48]
    spaces = [
        Space("whole", 0, zeros, None),
        Space("narrow", 2, zeros, matrix.astype(np.float32), eight_bit=True),
    ]
    found = Found(np.arange(2), np.ones(2, np.float32), np.eye(2, dtype=np.float32))
    questions = [
        Judged("a", TEXTS[0], {0: 1}, found, [TEXTS[1], TEXTS[2]]),
        Judged("a", "when do tides turn", {0: 1}, found, [TEXTS[2], TEXTS[3]]),
    ]
    nears, mean_tokens = interact(questions, encoder, spaces)
    one_by_one = {}
    for text in {*TEXTS, questions[1].text}:
        ((_, one_by_one[text], _),) = encoder.encode([text])
    assert mean_tokens == pytest.approx(np.mean([len(one_by_one[text].ids) for text in TEXTS[1:]]))
    for number, space in enumerate(spaces):
        for rare in (False, True):
            for each, scores in zip(questions, scores_of(nears, number, rare=rare), strict=True):
                tokens = one_by_one[each.text]
                kept = [space.passage(one_by_one[text]) for text in each.passages]
                starts = np.cumsum([0, *map(len, kept)])[:-1]
                expected = max_sim(
                    space.question(tokens),
                    weights_of(tokens.ids, rare=rare),
                    np.concatenate(kept),
                    starts,
                )
                # Eight-bit activations are scaled by batch.
                assert scores == pytest.approx(expected, abs=0.05)
    plain = scores_of(nears, 0, rare=False)
    assert plain[0][0] > plain[0][1] + 0.1


def test_rare_tokens_weigh_more_and_no_question_weighs_nothing():
    # "the" and "beekeeper"'s first piece, in BERT's uncased vocabulary.
    weights = weights_of(np.array([1996, 10506]), rare=True)
    assert weights[1] > 100 * weights[0] > 0
    assert weights_of(np.array([1012, 1996]), rare=False).tolist() == [1.0, 1.0]


def test_a_margin_is_that_of_paired_differences():
    rng = np.random.default_rng(8)
    mean, half = margin(rng.normal(0.02, 0.1, size=10_000))
    assert mean == pytest.approx(0.02, abs=0.004)
    assert half == pytest.approx(1.96 * 0.1 / 100, abs=2e-4)
