"""How much do a reranker's score and the passages' affinity weigh beside the hybrid score?

Both are chosen on questions that have nothing to do with any evaluation set, of three kinds that
want different things of a ranking:

- packages: the summary of a Debian package asks for its description, without the summary;
- manuals: the purpose of a manual page asks for the page;
- topics: the same asks for the page and those that its SEE ALSO names.

The first two have one right answer, as questions of fact do. The last has many, as a matter that
is looked into does. A choice is as good as the mean of what it gains over the hybrid order in each
kind, so that no kind is bought with another's loss unless it gains more.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.bundle import BlendCard, EncoderModel, RerankerModel, affinities
from shoal.training.debian import Package
from shoal.training.hybrid import Found, HybridCorpus
from shoal.training.manual_pages import ManualPage

DEPTH: Final = 50
WEIGHTS: Final = (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05)
AFFINITIES: Final = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)
# Choices within this nDCG@10 of the best are as good as it; of those, that which moves least.
TOLERANCE: Final = 0.001
MIN_DESCRIPTION_CHARACTERS: Final = 200
MAX_DESCRIPTION_CHARACTERS: Final = 1_200
# A page names so many of the others: with more, it is a list and no matter of its own.
RELATED: Final = range(2, 16)
_TOP: Final = 10

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Judged:
    """A question, what is right, and what the hybrid search found."""

    kind: str
    text: str
    relevant: dict[int, int]
    """Gain by position of the passage."""
    found: Found
    passages: Sequence[str]
    """Of the candidates, in order."""


def build_questions(
    packages: Iterable[Package],
    pages: Iterable[ManualPage],
    encoder: EncoderModel,
    *,
    passage_count: int,
    question_count: int,
    seed: int,
    progress: Progress = lambda _: None,
) -> list[Judged]:
    """Make the questions of all kinds, and search for each.

    passage_count: of packages and of pages, at most. question_count: of each kind, at most.
    Deterministic for the same machine, encoder and seed.
    """
    rng = random.Random(seed)
    chosen = _one_a_source(packages, rng)[:passage_count]
    progress(f"encoding {len(chosen)} descriptions of packages")
    corpus = HybridCorpus(
        [f"{each.name}. {_clipped(each.description)}" for each in chosen], encoder
    )
    asked = [(each.summary, {place: 1}) for place, each in enumerate(chosen)]
    judged = _search("packages", corpus, asked[:question_count])
    pages = sorted(pages, key=lambda each: each.name)
    rng.shuffle(pages)
    del pages[passage_count:]
    progress(f"encoding {len(pages)} manual pages")
    corpus = HybridCorpus([f"{each.name}. {each.description}" for each in pages], encoder)
    asked = [(each.purpose, {place: 1}) for place, each in enumerate(pages)]
    judged += _search("manuals", corpus, asked[:question_count])
    asked = list(_topics(pages))
    return judged + _search("topics", corpus, asked[-question_count:])


def choose_blend(model: RerankerModel, questions: Sequence[Judged]) -> BlendCard:
    """Choose weight and affinity for a model; how many passages it reads is as its card says."""
    assert model.bundle.card.blend is not None
    scores = [_rerank(model, each) for each in questions]
    return choose(model.bundle.card.blend, questions, scores)


def choose(
    card: BlendCard, questions: Sequence[Judged], scores: Sequence[NDArray[np.float32]]
) -> BlendCard:
    """Choose weight and affinity for scores of the candidates; NaN for what was not read."""
    plain = means(questions, [each.found.scores for each in questions])
    values: dict[tuple[float, float], dict[str, float]] = {}
    for weight, affinity in itertools.product(WEIGHTS, AFFINITIES):
        blended = [
            blend(each.found, rerank, weight, affinity)
            for each, rerank in zip(questions, scores, strict=True)
        ]
        values[weight, affinity] = means(questions, blended)
    gained = {choice: float(np.mean(list(value.values()))) for choice, value in values.items()}
    enough = max(gained.values()) - TOLERANCE
    weight, affinity = min(
        (choice for choice, value in gained.items() if value >= enough),
        key=lambda choice: choice[0] / WEIGHTS[-1] + choice[1] / AFFINITIES[-1],
    )
    told = ", ".join(
        f"{kind} {plain[kind]:.3f} -> {value:.3f}"
        for kind, value in values[weight, affinity].items()
    )
    return card.model_copy(
        update={
            "weight": weight,
            "affinity": affinity,
            "chosen_on": f"{len(questions)} questions of Debian's packages and manual pages, "
            f"{DEPTH} candidates of a hybrid search each; nDCG@10 of it, and reranked: {told}",
        }
    )


def blend(
    found: Found, rerank: NDArray[np.float32], weight: float, affinity: float
) -> NDArray[np.float32]:
    """What candidates are ordered by under a choice, as a bundle would with such a card."""
    scores = np.asarray(found.scores + weight * rerank, dtype=np.float32)
    unread = np.isnan(rerank)
    scores[unread] = np.minimum(found.scores[unread], scores[~unread].min(initial=np.inf))
    return scores + np.float32(affinity) * affinities(scores, found.similarities)


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


def _discounted(gains: Sequence[int]) -> float:
    return float(sum(gain / np.log2(rank + 2) for rank, gain in enumerate(gains)))


def _rerank(model: RerankerModel, question: Judged) -> NDArray[np.float32]:
    places = model.readable(question.found.scores)
    scores = np.full(len(question.passages), np.nan, dtype=np.float32)
    scores[places] = model.score([(question.text, question.passages[at]) for at in places])
    return scores


def _search(
    kind: str, corpus: HybridCorpus, asked: Iterable[tuple[str, dict[int, int]]]
) -> list[Judged]:
    judged = []
    for text, relevant in asked:
        found = corpus.search(text, DEPTH)
        passages = [corpus.passages[place] for place in found.places]
        judged.append(Judged(kind, text, relevant, found, passages))
    return judged


def _topics(pages: Sequence[ManualPage]) -> Iterable[tuple[str, dict[int, int]]]:
    """The page itself gains twice what a related one does."""
    places = {each.name: place for place, each in enumerate(pages)}
    for place, page in enumerate(pages):
        related = {places[name] for name in page.related if name in places}
        if len(related) in RELATED:
            yield page.purpose, {place: 2} | dict.fromkeys(related, 1)


def _one_a_source(packages: Iterable[Package], rng: random.Random) -> list[Package]:
    """Packages of one source repeat each other."""
    long = [each for each in packages if len(each.description) >= MIN_DESCRIPTION_CHARACTERS]
    rng.shuffle(long)
    return list({each.source: each for each in long}.values())


def _clipped(text: str) -> str:
    return " ".join(text.split())[:MAX_DESCRIPTION_CHARACTERS]
