"""How much do a reranker's score and the passages' affinity weigh, and how much does it read?

All of it is chosen on questions that have nothing to do with any evaluation set
(blend_questions.py). A choice is as good as the mean of what it gains over the hybrid order in each
kind of question, so that no kind is bought with another's loss unless it gains more.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.bundle import BlendCard, Bundle, RerankerModel, blend_scores
from shoal.training.blend_questions import DEPTH, Judged, Progress

WEIGHTS: Final = (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05)
AFFINITIES: Final = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
# Choices within this nDCG@10 of the best are as good as it; of those, that which moves least.
TOLERANCE: Final = 0.001
THREADS: Final = 2
_TOP: Final = 10


@dataclass(frozen=True)
class Shape:
    """How much a reranker reads for a question."""

    read: int
    """Passages."""
    passage_tokens: int
    """Of each, at most."""


@dataclass(frozen=True)
class Chosen:
    """A blend, and what it gains."""

    blend: BlendCard
    gained: float
    """nDCG@10 over the hybrid order, mean over the kinds of question."""


def choose_shape(
    bundle: Bundle,
    shapes: Sequence[Shape],
    questions: Sequence[Judged],
    progress: Progress = lambda _: None,
) -> tuple[Shape, BlendCard]:
    """Choose among shapes that cost alike, each with its own best blend; the best, then the first.

    bundle: of a reranker, whose own shape does not count.
    """
    assert bundle.card.blend is not None
    found: list[tuple[Shape, Chosen]] = []
    for shape in shapes:
        blend = bundle.card.blend.model_copy(update={"read": shape.read})
        card = bundle.card.model_copy(
            update={"passage_tokens": shape.passage_tokens, "blend": blend}
        )
        model = RerankerModel(Bundle(bundle.folder, card, bundle.fingerprint), threads=THREADS)
        chosen = choose(blend, questions, [rerank(model, each) for each in questions])
        progress(
            f"{shape.read} passages of {shape.passage_tokens} tokens: nDCG@10 +{chosen.gained:.4f} "
            f"with weight {chosen.blend.weight}, affinity {chosen.blend.affinity}"
        )
        found.append((shape, chosen))
    shape, chosen = max(found, key=lambda each: each[1].gained)
    return shape, chosen.blend


def choose_blend(model: RerankerModel, questions: Sequence[Judged]) -> BlendCard:
    """Choose weight and affinity for a model; how many passages it reads is as its card says."""
    assert model.bundle.card.blend is not None
    scores = [rerank(model, each) for each in questions]
    return choose(model.bundle.card.blend, questions, scores).blend


def choose(
    card: BlendCard, questions: Sequence[Judged], scores: Sequence[NDArray[np.float32]]
) -> Chosen:
    """Choose weight and affinity for scores of the candidates; NaN for what was not read."""
    plain = means(questions, [each.found.scores for each in questions])
    before = float(np.mean(list(plain.values())))
    values: dict[tuple[float, float], dict[str, float]] = {}
    for weight, affinity in itertools.product(WEIGHTS, AFFINITIES):
        blended = [
            blend(each, read, weight, affinity)
            for each, read in zip(questions, scores, strict=True)
        ]
        values[weight, affinity] = means(questions, blended)
    found = {choice: float(np.mean(list(value.values()))) for choice, value in values.items()}
    enough = max(found.values()) - TOLERANCE
    weight, affinity = min(
        (choice for choice, value in found.items() if value >= enough),
        key=lambda choice: choice[0] / WEIGHTS[-1] + choice[1] / AFFINITIES[-1],
    )
    told = ", ".join(
        f"{kind} {plain[kind]:.3f} -> {value:.3f}"
        for kind, value in values[weight, affinity].items()
    )
    chosen_on = (
        f"{len(questions)} questions of Debian's packages and manual pages, {DEPTH} candidates of "
        f"a hybrid search each; nDCG@10 of it, and reranked: {told}"
    )
    update = {"weight": weight, "affinity": affinity, "chosen_on": chosen_on}
    return Chosen(card.model_copy(update=update), found[weight, affinity] - before)


def blend(
    question: Judged, read: NDArray[np.float32], weight: float, affinity: float
) -> NDArray[np.float32]:
    """What candidates are ordered by under a choice, as a bundle would with such a card."""
    card = BlendCard(weight=weight, affinity=affinity, chosen_on="being chosen")
    found = question.found
    return blend_scores(card, read, found.scores, found.similarities)


def means(questions: Sequence[Judged], scores: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    """nDCG@10 of each kind, under scores of the candidates."""
    found: dict[str, list[float]] = {}
    for each, score in zip(questions, scores, strict=True):
        found.setdefault(each.kind, []).append(ndcg(each, score))
    return {kind: float(np.mean(values)) for kind, values in found.items()}


def ndcg(question: Judged, scores: NDArray[np.float32]) -> float:
    """nDCG@10 of a question's candidates, ordered by `scores`; 0 if nothing right was found."""
    order = np.argsort(-scores, kind="stable")[:_TOP]
    gains = [question.relevant.get(int(question.found.places[at]), 0) for at in order]
    ideal = sorted(question.relevant.values(), reverse=True)[:_TOP]
    return _discounted(gains) / _discounted(ideal)


def rerank(model: RerankerModel, question: Judged) -> NDArray[np.float32]:
    """The model's scores of what it reads of a question's candidates; NaN for the others."""
    places = model.readable(question.found.scores)
    scores = np.full(len(question.passages), np.nan, dtype=np.float32)
    scores[places] = model.score([(question.text, question.passages[at]) for at in places])
    return scores


def _discounted(gains: Sequence[int]) -> float:
    return float(sum(gain / np.log2(rank + 2) for rank, gain in enumerate(gains)))
