"""What is a training record, and which records are held out?

A record is a question, the passage that answers it, perhaps passages that do not, and the source
that all of it was made from. Sources decide the side: what is held out shares none with what is
learnt.
"""

from __future__ import annotations

import hashlib
import random
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

# Copies of a record of mean weight among weighted ones, so that lighter ones have fewer, not none.
MEAN_COPIES: Final = 4
# One source in this many is held out; the reranker's packages are divided by the same rule.
DEV_PART: Final = 20


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and the passage that answers it."""

    query: str
    positive: str
    source: str
    """What it was made from: a source package, a manual page, a document's id."""
    negatives: tuple[str, ...] = ()
    """Passages that do not answer it, the hardest first."""
    weight: float = 1.0
    """How often it is learnt from, relative to others: above 0."""
    made_from: str = ""
    """The passage that `positive` was cut from; empty if it is whole."""

    @property
    def whole(self) -> str:
        """The passage, whole: right for all questions that were made from it."""
        return self.made_from or self.positive


@dataclass(frozen=True)
class Split:
    """Records on two sides that share neither a source nor a text."""

    train: list[Pair]
    dev: list[Pair]
    dropped: int
    """Records of train that were left out, as a text of theirs is in dev too."""


def held_out(source: str, part: int = DEV_PART) -> bool:
    """Whether a source belongs to dev: one in `part` does, by its hash, always the same ones."""
    return int(hashlib.sha256(source.encode()).hexdigest(), 16) % part == 0


def split(pairs: Iterable[Pair], part: int = DEV_PART) -> Split:
    """Divide records by source; what stands word for word in dev is left out of train.

    Negatives too: a passage of dev that was mined for a question of train goes, its record stays.
    """
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        sides[held_out(pair.source, part)].append(pair)
    learnt, dev = sides
    texts = {normalised(text) for pair in dev for text in (pair.query, pair.positive)}
    train = [
        _without(pair, texts)
        for pair in learnt
        if normalised(pair.query) not in texts and normalised(pair.positive) not in texts
    ]
    return Split(train, dev, dropped=len(learnt) - len(train))


def normalised(text: str) -> str:
    """Say what a text is compared by: its words, whatever the case, spacing and Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def distinct(pairs: Iterable[Pair]) -> list[Pair]:
    """Keep the first record of each question and of each passage.

    In a batch the passages of others count as wrong: one passage twice would be wrong and right.
    """
    queries: set[str] = set()
    positives: set[str] = set()
    kept = []
    for pair in pairs:
        query, positive = normalised(pair.query), normalised(pair.positive)
        if query not in queries and positive not in positives:
            queries.add(query)
            positives.add(positive)
            kept.append(pair)
    return kept


def with_negatives(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """Keep the records that have `count` negatives or more, and that many of each.

    The trainer takes a table: each record has as many columns as the others.
    """
    return [
        replace(pair, negatives=pair.negatives[:count])
        for pair in pairs
        if len(pair.negatives) >= count
    ]


def repeated(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """Repeat records by their weights, at least once each; as they are if all weigh the same.

    What is left of a weight after whole copies is one more by chance, which the seed decides. The
    trainer puts no text into a batch twice: a record is learnt from once a step at most.
    """
    if len({pair.weight for pair in pairs}) < 2:
        return list(pairs)
    rng = random.Random(seed)
    copies_per_weight = MEAN_COPIES * len(pairs) / sum(pair.weight for pair in pairs)
    return [
        pair
        for pair in pairs
        for _ in range(max(1, int(pair.weight * copies_per_weight + rng.random())))
    ]


def _without(pair: Pair, texts: set[str]) -> Pair:
    if not pair.negatives:
        return pair
    kept = tuple(each for each in pair.negatives if normalised(each) not in texts)
    return pair if len(kept) == len(pair.negatives) else replace(pair, negatives=kept)
