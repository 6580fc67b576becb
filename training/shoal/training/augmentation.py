"""What can be made of a record so that a model learns more from it?

Queries as people type them (words missing), and further questions that a passage answers: its first
sentence, or one from within it (inverse cloze: Lee and others 2019, https://arxiv.org/abs/1906.00300).
Everything follows from the seed and the record, so that training which goes on reads the same.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from shoal.training.pairs import Pair
from shoal.training.settings import AugmentationSettings

MIN_SENTENCE_WORDS: Final = 4
# What is left of a passage must still say something.
MIN_REST_CHARACTERS: Final = 60
# Share of inverse cloze records that keep their sentence in the passage, so that words that both
# share still count: 0.1 in the paper.
KEPT_SENTENCES: Final = 0.1

Thesaurus = Mapping[str, Sequence[str]]


class ThesaurusError(ValueError):
    """A thesaurus that cannot be read; the message names file and line."""


def augmented(pairs: Sequence[Pair], settings: AugmentationSettings, seed: int) -> list[Pair]:
    """Change queries and add records as the settings say. The records' order is kept."""
    thesaurus = read_thesaurus(settings.thesaurus) if settings.thesaurus is not None else {}
    made: list[Pair] = []
    for at, pair in enumerate(pairs):
        rng = random.Random(f"{seed}:{at}:{pair.source}")
        query = drop_words(pair.query, settings.word_dropout, rng)
        if rng.random() < settings.span_deletion:
            query = delete_span(query, rng)
        query = swap_words(query, thesaurus, settings.synonyms, rng)
        made.append(replace(pair, query=query))
        made.extend(_further(pair, settings, rng))
    return made


def _further(pair: Pair, settings: AugmentationSettings, rng: random.Random) -> Iterator[Pair]:
    if rng.random() < settings.first_sentences and (asked := first_sentence(pair)):
        yield asked
    if rng.random() < settings.inverse_cloze and (asked := inverse_cloze(pair, rng)):
        yield asked


def drop_words(text: str, chance: float, rng: random.Random) -> str:
    """Leave each word out by chance; one at least stays."""
    if not chance:
        return text
    words = text.split()
    kept = [word for word in words if rng.random() >= chance]
    return " ".join(kept or words[:1])


def delete_span(text: str, rng: random.Random) -> str:
    """Leave out a third of the words, in a row; texts of fewer than three stay."""
    words = text.split()
    length = len(words) // 3
    start = rng.randrange(len(words) - length + 1) if length else 0
    return " ".join(words[:start] + words[start + length :])


def swap_words(text: str, thesaurus: Thesaurus, chance: float, rng: random.Random) -> str:
    """Put another word of the same meaning in a word's place, by chance."""
    if not chance:
        return text
    return " ".join(
        rng.choice(thesaurus[word.lower()])
        if word.lower() in thesaurus and rng.random() < chance
        else word
        for word in text.split()
    )


def first_sentence(pair: Pair) -> Pair | None:
    """Ask by a passage's first sentence for the rest of it; None if there is no rest."""
    sentences = _sentences(pair.positive)
    rest = " ".join(sentences[1:])
    if len(rest) < MIN_REST_CHARACTERS or len(sentences[0].split()) < MIN_SENTENCE_WORDS:
        return None
    return replace(pair, query=sentences[0], positive=rest, made_from=pair.whole)


def inverse_cloze(pair: Pair, rng: random.Random) -> Pair | None:
    """Ask by one of a passage's sentences for the others; None if it has too few."""
    sentences = _sentences(pair.positive)
    asking = [at for at, each in enumerate(sentences) if len(each.split()) >= MIN_SENTENCE_WORDS]
    if len(sentences) < 3 or not asking:
        return None
    chosen = rng.choice(asking)
    kept = rng.random() < KEPT_SENTENCES
    rest = " ".join(each for at, each in enumerate(sentences) if kept or at != chosen)
    if len(rest) < MIN_REST_CHARACTERS:
        return None
    return replace(pair, query=sentences[chosen], positive=rest, made_from=pair.whole)


def read_thesaurus(path: Path) -> dict[str, tuple[str, ...]]:
    """Read single words and their synonyms from a file in MyThes' format.

    Its first line names the encoding; then come `word|meanings` and for each meaning a line
    `(kind)|synonym|...`: https://github.com/hunspell/mythes. Raises ThesaurusError.
    """
    try:
        encoding, _, body = path.read_bytes().partition(b"\n")
        lines = body.decode(encoding.decode("ascii").strip() or "utf-8").splitlines()
    except (OSError, LookupError, UnicodeDecodeError) as error:
        raise ThesaurusError(f"{path}: {error}") from error
    found: dict[str, tuple[str, ...]] = {}
    at = 0
    while at < len(lines):
        word, _, count = lines[at].partition("|")
        if not count.strip().isdigit():
            raise ThesaurusError(f"{path}:{at + 2}: `word|number of meanings` was expected")
        meanings = lines[at + 1 : at + 1 + int(count)]
        others = [each for line in meanings for each in line.split("|")[1:]]
        plain = tuple(each for each in others if re.fullmatch(r"[a-z]+", each) and each != word)
        if plain and re.fullmatch(r"[a-z]+", word):
            found[word] = plain
        at += 1 + int(count)
    return found


def _sentences(text: str) -> list[str]:
    return [each.strip() for each in re.split(r"(?<=[.!?])\s+", text) if each.strip()]
