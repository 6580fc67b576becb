"""Does the shipped reranker order passages by what answers the question, whatever it is given?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shoal.bundle import BundleInvalidError, EncoderModel, RerankerModel, load_bundle

BUNDLE = Path(__file__).resolve().parents[2] / "deploy" / "bundles" / "reranker-minilm-l12-int8"
QUESTION = "who built the first railway in Ireland"
PASSAGES = [
    "Railways. The first railway in Ireland was built by William Dargan and opened in 1834.",
    "Railways. The first railway in Japan ran from Tokyo to Yokohama and opened in 1872.",
    "Butter. Cream is churned until its fat comes together, then washed and salted.",
]


@pytest.fixture(scope="module")
def model() -> RerankerModel:
    return RerankerModel(load_bundle(BUNDLE), threads=1)


def test_what_answers_the_question_comes_first(model: RerankerModel) -> None:
    scores = model.score([(QUESTION, passage) for passage in PASSAGES])
    assert scores.dtype == np.float32
    assert list(np.argsort(-scores)) == [0, 1, 2]


def test_scores_are_blended_as_the_card_says(model: RerankerModel) -> None:
    assert model.bundle.card.blend is not None
    rerank, dense = np.array([2.0, -1.0], np.float32), np.array([0.5, 0.6], np.float32)
    expected = dense + model.bundle.card.blend.weight * rerank
    np.testing.assert_allclose(model.blend(rerank, dense), expected, rtol=1e-6)


def test_a_pair_keeps_its_score_in_any_batch(model: RerankerModel) -> None:
    # int8 activations are scaled over a batch, so scores move a little. The blend makes it less:
    # what is left is far below what lies between the dense scores of neighbouring hits.
    assert model.bundle.card.blend is not None
    pairs = [(QUESTION, passage * times) for passage in PASSAGES for times in (1, 2, 6)]
    together = model.score(pairs)
    alone = np.array([model.score([pair])[0] for pair in pairs])
    assert np.abs(together - alone).max() * model.bundle.card.blend.weight < 0.03


@pytest.mark.parametrize(
    "text",
    ["", "\x00\x01", "x" * 1_048_576, "语" * 300_000, "\U0001f600" * 50, "क्या"],
    ids=["empty", "controls", "1MB", "chinese", "emoji", "hindi"],
)
def test_any_pair_has_a_score(model: RerankerModel, text: str) -> None:
    scores = model.score([(text, PASSAGES[0]), (QUESTION, text), (text, text)])
    assert np.isfinite(scores).all()
    limit = model.bundle.card.max_length
    assert max(model.count_tokens([(text, PASSAGES[0]), (QUESTION, text)])) <= limit


def test_no_pairs_have_no_scores(model: RerankerModel) -> None:
    assert model.score([]).shape == (0,)


def test_a_reranker_is_no_encoder(model: RerankerModel) -> None:
    with pytest.raises(BundleInvalidError, match="not an encoder"):
        EncoderModel(model.bundle)
