"""What is kept of questions and passages to measure drift with?

Vectors of half precision, and numbers; no text. A window keeps a bounded sample that is even over
all that was asked in its time, however unevenly it came: each batch stands for as many questions as
were asked while it was drawn, and a question is kept by the key u ** (1 / weight), u drawn evenly
(Efraimidis, Spirakis: Weighted random sampling with a reservoir. IPL 97, 2006).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shoal.drift.texts import Pieces, main_script, unknown_words

NO_SCRIPT = -1


@dataclass(frozen=True)
class Sampled:
    """Questions or passages: parallel arrays."""

    vectors: NDArray[np.float16]
    """[n, dimension]"""
    best_scores: NDArray[np.float32]
    """[n] Dense score of the best hit; NaN if there was none, and for passages."""
    scripts: NDArray[np.int16]
    """[n] As `shoal.drift.texts.SCRIPTS` has them; -1 without a letter."""
    unknown: NDArray[np.int32]
    """[n] Words that the tokenizer does not know."""
    words: NDArray[np.int32]
    """[n] Words; 0 where there is no tokenizer."""

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, places: NDArray[Any]) -> Sampled:
        """Some of them, by place or by mask."""
        return Sampled(*(getattr(self, each.name)[places] for each in fields(self)))

    def joined(self, other: Sampled) -> Sampled:
        """These and others of the same dimension."""
        return Sampled(
            *(
                np.concatenate([getattr(self, each.name), getattr(other, each.name)])
                for each in fields(self)
            )
        )

    @classmethod
    def none(cls, dimension: int) -> Sampled:
        """No question."""
        return sampled(np.empty((0, dimension), np.float32), [], None)


def sampled(
    vectors: NDArray[np.float32],
    texts: Sequence[str],
    tokenize: Pieces | None,
    best_scores: NDArray[np.float32] | None = None,
) -> Sampled:
    """Look at questions or passages, and keep what may be kept.

    vectors: float32 [n, dimension]. texts: [n]; may be empty, for a question by vector. tokenize:
    None where there is no tokenizer.
    """
    counts = [(0, 0) if tokenize is None else unknown_words(text, tokenize) for text in texts]
    scripts = [main_script(text) if any(map(str.isalpha, text)) else NO_SCRIPT for text in texts]
    scores = np.full(len(vectors), np.nan, np.float32) if best_scores is None else best_scores
    return Sampled(
        vectors.astype(np.float16),
        scores.astype(np.float32),
        np.array(scripts, np.int16),
        np.array([unknown for unknown, _ in counts], np.int32),
        np.array([words for _, words in counts], np.int32),
    )


@dataclass
class Window:
    """A sample of the questions of some time, of one model and index version."""

    model: str
    index_version: int
    begun_s: float
    """Seconds since 1970."""
    kept: Sampled
    keys: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    asked_count: int = 0

    def add(
        self, questions: Sampled, asked_count: int, capacity: int, random: np.random.Generator
    ) -> None:
        """Take a batch that was drawn evenly from `asked_count` questions, at least its size."""
        weight = max(asked_count, len(questions)) / max(1, len(questions))
        # The logarithm of the key, which has the same order and does not run out of digits.
        keys = np.log(1.0 - random.random(len(questions))) / weight
        kept, keys = self.kept.joined(questions), np.concatenate([self.keys, keys])
        best = np.sort(np.argsort(-keys, kind="stable")[:capacity])
        self.kept, self.keys = kept.take(best), keys[best]
        self.asked_count += max(asked_count, len(questions))


@dataclass(frozen=True)
class Reference:
    """What is compared with."""

    model: str
    index_version: int
    taken_s: float
    """Seconds since 1970."""
    queries: Sampled
    passages: Sampled
    passage_digests: NDArray[np.uint64]
    """[passages] Of their documents' ids, so that what is purged can be taken out."""
    answers: tuple[int, int]
    """Answers in which something was chosen, of those that feedback came on."""

    def without(self, digests: NDArray[np.uint64]) -> Reference:
        """Without the passages of some documents."""
        stays = ~np.isin(self.passage_digests, digests)
        return Reference(
            self.model,
            self.index_version,
            self.taken_s,
            self.queries,
            self.passages.take(stays),
            self.passage_digests[stays],
            self.answers,
        )
