"""Which of the passages that a question finds are wrong, and near enough to learn from?

Positive-aware mining: a candidate that scores nearly as well as the right passage, or better, is
likely to be right too and only not marked as such, so what counts is its distance to the right
passage's own score (Moreira et al., "NV-Retriever: Improving text embedding models with effective
hard-negative mining", arXiv:2407.15831, section 3). Pure: the hits of a search go in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """A question and the passage that answers it."""

    query: str
    positive: str
    document: str = ""
    """Id of the document that the passage is from; empty: its passages are known by their text."""
    source: str = ""
    """What the pair was made from: training holds out whole sources. Empty if nobody said."""
    weight: float | None = None
    """How much it counts in training; None if nobody said."""


@dataclass(frozen=True)
class Candidate:
    """A passage that the question found."""

    text: str
    document: str
    passage: int
    rank: int
    """Its place in the answer, from 1."""
    score: float
    """Inner product with the question, -1 to 1."""
    title: str = ""
    """Title of its document; may be empty."""

    @property
    def titled(self) -> str:
        """What an encoder reads of it: the title stands in front."""
        return f"{self.title}. {self.text}" if self.title else self.text


@dataclass(frozen=True)
class Rules:
    """What makes a candidate a negative."""

    count: int = 8
    """Negatives of a question, the hardest first."""
    skip: int = 0
    """Ranks at the top that are left out: where pairs are marked poorly, most of them are right."""
    margin: float = 0.05
    """A negative scores at least so much less than the positive does."""
    max_score: float = 1.0
    """A negative scores no more than this."""
    keep_unfound: bool = False
    """Whether a question whose positive was not found has negatives too. There is no score then to
    hold the margin against, only `max_score`."""


def choose(
    pair: Pair, found: Sequence[Candidate], rules: Rules, same_question: Sequence[Pair] = ()
) -> list[Candidate] | None:
    """The negatives among what a question found, hardest first.

    found: best first. same_question: pairs of the same question, whose passages are right too.
    None if the positive is not among what was found, and that is asked for.
    """
    positives = [each for each in found if is_positive(pair, each)]
    if not positives and not rules.keep_unfound:
        return None
    bound = rules.max_score
    if positives:
        bound = min(bound, max(each.score for each in positives) - rules.margin)
    seen = {flat(pair.positive)}
    chosen = []
    for each in found:
        text = flat(each.text)
        right = any(is_positive(known, each) for known in (pair, *same_question))
        wrong = not right and text not in seen
        if wrong and each.rank > rules.skip and each.score <= bound:
            seen.add(text)
            chosen.append(each)
            if len(chosen) == rules.count:
                break
    return chosen


def is_positive(pair: Pair, candidate: Candidate) -> bool:
    """True for a passage of the right document, or with the right text in it, or out of it."""
    if pair.document:
        return candidate.document == pair.document
    right, text = flat(pair.positive), flat(candidate.text)
    return bool(text) and (right in flat(candidate.titled) or text in right)


def flat(text: str) -> str:
    """What texts are compared by: their words, whatever the case and spacing."""
    return " ".join(text.split()).casefold()
