"""Which questions, with which wrong passages, is a reranker trained on?

Passages are descriptions of Debian packages. Questions are made from their own sentences: cut
short, holes torn into them, a question word put in front, as a person remembers half of what was
read. The wrong passages are those that the encoder ranks near the question, so that the reranker
learns what the dense score leaves open. No evaluation set is read here.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.bundle import EncoderModel
from shoal.training.debian import Package

MIN_DESCRIPTION_CHARACTERS: Final = 200
MAX_PASSAGE_CHARACTERS: Final = 900
CANDIDATES: Final = 20
MINED_RANKS: Final = 60
# A passage this near to the right one (cosine) may answer the question too: it is no negative.
TWIN_COSINE: Final = 0.82
# Nor is one that the encoder puts this far (cosine) above the right one.
SUSPICIOUS_LEAD: Final = 0.12
DEV_PART: Final = 20
_QUESTION_WORDS: Final = ("what", "which", "how", "who", "when", "where", "why")
_FILLERS: Final = ("is", "does", "do", "are", "was", "did", "of the", "the", "")
_ENCODE_CHUNK: Final = 512

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Question:
    """A question, the passage it was made from, and what the encoder takes for it."""

    text: str
    passage: int
    """Position of the right passage."""
    dense: float
    """The encoder's score of it."""
    top: tuple[int, ...]
    """The encoder's first CANDIDATES passages, best first, the right one perhaps among them."""
    top_dense: tuple[float, ...]
    negatives: tuple[int, ...]
    """Passages near the question that do not answer it, best first."""
    negatives_dense: tuple[float, ...]


@dataclass(frozen=True)
class TrainingSet:
    """Passages and questions; no source package has questions on both sides."""

    passages: list[str]
    train: list[Question]
    dev: list[Question]
    """Of held-out packages: only those whose right passage is among the first CANDIDATES."""


def build_training_set(
    packages: Iterable[Package],
    encoder: EncoderModel,
    *,
    passage_count: int,
    seed: int,
    progress: Progress = lambda *_: None,
) -> TrainingSet:
    """Make questions, encode everything, mine the wrong passages.

    One package a source, since packages of one source repeat each other. Deterministic for the same
    packages, seed and encoder. progress: called with what, how many done, of how many.
    """
    rng = random.Random(seed)
    chosen = _one_a_source(packages, rng)[:passage_count]
    passages: list[str] = []
    drafts: list[tuple[str, int, bool]] = []
    for position, package in enumerate(chosen):
        passage, questions = _draft(package, rng)
        passages.append(passage)
        drafts.extend((text, position, held_out(package.source)) for text in questions)
    passage_vectors = _encode(encoder, passages, "passage", progress)
    question_vectors = _encode(encoder, [text for text, _, _ in drafts], "query", progress)
    train: list[Question] = []
    dev: list[Question] = []
    for (text, position, apart), vector in zip(drafts, question_vectors, strict=True):
        question = _mine(text, position, vector, passage_vectors)
        if apart:
            dev.append(question)
        elif len(question.negatives) >= CANDIDATES // 2:
            train.append(question)
    rng.shuffle(train)
    rng.shuffle(dev)
    # Where the encoder did not find the right passage, no order of what it found is right.
    return TrainingSet(passages, train, [each for each in dev if each.passage in each.top])


def _one_a_source(packages: Iterable[Package], rng: random.Random) -> list[Package]:
    long = [each for each in packages if len(each.description) >= MIN_DESCRIPTION_CHARACTERS]
    rng.shuffle(long)
    seen: set[str] = set()
    kept = []
    for package in long:
        opening = package.description[:80]
        if package.source not in seen and opening not in seen:
            seen |= {package.source, opening}
            kept.append(package)
    return kept


def held_out(source: str) -> bool:
    """Whether the packages of a source decide, and are not learnt from: one source in DEV_PART."""
    return int(hashlib.sha256(source.encode()).hexdigest(), 16) % DEV_PART == 0


def _draft(package: Package, rng: random.Random) -> tuple[str, list[str]]:
    """Make a passage (`title. text`, as a broker sends it) and one or two questions of it."""
    body = " ".join(package.description.split())
    sentences = [
        sentence.strip()
        for sentence in re.split(r"(?<=[.!?])\s+|\n+", package.description)
        if 30 <= len(sentence.strip()) <= 220
    ]
    title = package.name if rng.random() < 0.5 else f"{package.name}, {package.summary}"
    questions = []
    if title == package.name and rng.random() < 0.4:
        questions.append(package.summary if rng.random() < 0.5 else _ask(package.summary, rng))
    for sentence in rng.sample(sentences, min(len(sentences), 2 - len(questions))):
        questions.append(_ask(sentence, rng))
        # Inverse cloze: without its sentence a passage is found by what it is about.
        rest = body.replace(" ".join(sentence.split()), " ")
        if rng.random() < 0.25 and len(rest) >= MIN_DESCRIPTION_CHARACTERS // 2:
            body = rest
    return f"{title}. {body[:MAX_PASSAGE_CHARACTERS]}", questions


def _ask(sentence: str, rng: random.Random) -> str:
    """Make a question, a few keywords or a torn piece of a sentence."""
    words = sentence.rstrip(".").split()
    form = rng.random()
    if form < 0.2:
        kept = [word for word in words if len(word) > 3 and rng.random() < 0.5] or words[:5]
        return " ".join(kept[:10]).lower()
    if form < 0.8:
        # The hole is the answer that the question asks for.
        start = rng.randrange(len(words))
        hole = rng.randint(1, max(1, len(words) // 3))
        kept = [word for word in words[:start] + words[start + hole :] if rng.random() < 0.85][:14]
        asked = [rng.choice(_QUESTION_WORDS), rng.choice(_FILLERS), *kept]
        return " ".join(word for word in asked if word) + "?"
    kept = [word for word in words if rng.random() < 0.8] or words
    start = rng.randrange(max(1, len(kept) - 8))
    return " ".join(kept[start : start + rng.randint(5, 12)])


def _encode(
    encoder: EncoderModel, texts: Sequence[str], purpose: str, progress: Progress
) -> NDArray[np.float32]:
    what = "encoding passages" if purpose == "passage" else "encoding questions"
    parts = []
    for start in range(0, len(texts), _ENCODE_CHUNK):
        progress(what, start, len(texts))
        chunk = texts[start : start + _ENCODE_CHUNK]
        parts.append(encoder.encode(chunk, "passage" if purpose == "passage" else "query"))
    progress(what, len(texts), len(texts))
    return np.concatenate(parts)


def _mine(
    text: str, position: int, vector: NDArray[np.float32], passages: NDArray[np.float32]
) -> Question:
    scores = passages @ vector
    near = np.argsort(-scores, kind="stable")[:MINED_RANKS]
    twins = passages[near] @ passages[position]
    right = float(scores[position])
    negatives = [
        int(each)
        for each, twin in zip(near, twins, strict=True)
        if each != position and twin < TWIN_COSINE and scores[each] < right + SUSPICIOUS_LEAD
    ]
    top = [int(each) for each in near[:CANDIDATES]]
    return Question(
        text=text,
        passage=position,
        dense=right,
        top=tuple(top),
        top_dense=tuple(float(scores[each]) for each in top),
        negatives=tuple(negatives),
        negatives_dense=tuple(float(scores[each]) for each in negatives),
    )
