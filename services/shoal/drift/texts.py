"""What of a text tells of its language, without keeping the text?

The script of its letters, and how much of it the model's tokenizer knows. Scripts need no model,
are never unsure, and say at once that Greek or Arabic has come; a language that shares a script
with the old one shows in the vectors and in the share of unknown words instead. (Tools that name
languages are unsure of a question of three words, and know nothing of names and codes.)
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

OTHER: Final = "other"
# As the names of characters begin.
SCRIPTS: Final = (
    "LATIN",
    "CYRILLIC",
    "GREEK",
    "ARABIC",
    "HEBREW",
    "DEVANAGARI",
    "BENGALI",
    "TAMIL",
    "THAI",
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "HANGUL",
    OTHER,
)
# Characters that are looked at: what comes later speaks the same language.
MAX_CHARACTERS: Final = 400
# Tokens that a word is broken into from which the tokenizer does not know it: names and compounds
# are often broken into two or three.
UNKNOWN_PIECES: Final = 4

Pieces = Callable[[str], Sequence[tuple[int, bool]]]
"""Where each token of a text begins, and whether it is the one for what is not known."""


@lru_cache(maxsize=4096)
def _script(letter: str) -> int:
    first = unicodedata.name(letter, OTHER).partition(" ")[0]
    return SCRIPTS.index(first) if first in SCRIPTS else len(SCRIPTS) - 1


def script_counts(text: str) -> NDArray[np.int64]:
    """How many letters of each of `SCRIPTS` a text begins with: int64 [scripts]."""
    counts = np.zeros(len(SCRIPTS), np.int64)
    for letter in text[:MAX_CHARACTERS]:
        if letter.isalpha():
            counts[_script(letter)] += 1
    return counts


def main_script(text: str) -> int:
    """The script that most letters of a text are of, as an index into `SCRIPTS`."""
    return int(script_counts(text).argmax())


def unknown_words(text: str, tokenize: Pieces) -> tuple[int, int]:
    """How many words of a text a tokenizer does not know, and how many there are.

    A word is a run without white space. It is unknown if one of its tokens is, or if it is broken
    into `UNKNOWN_PIECES` tokens or more.
    """
    text = text[:MAX_CHARACTERS]
    word_of = np.cumsum([1] + [each.isspace() for each in text])
    pieces: dict[int, int] = {}
    for start, unknown in tokenize(text):
        word = int(word_of[start])
        pieces[word] = pieces.get(word, 0) + (UNKNOWN_PIECES if unknown else 1)
    return sum(count >= UNKNOWN_PIECES for count in pieces.values()), len(pieces)
