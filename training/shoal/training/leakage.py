"""Is a text that judges a model among those that it learns from?

A judged set says something only of texts that training has not seen. Records that share a run of
words with one are left out: 13 words in a row, as Brown and others 2020 chose
(https://arxiv.org/abs/2005.14165, appendix C), or a whole text that is shorter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import regex
from shoal.training.pairs import Pair, normalised

RUN_WORDS: Final = 13
# Shorter questions are shared by chance: "what is it".
MIN_WORDS: Final = 5


class JudgedTexts:
    """Runs of words of judged questions and passages."""

    def __init__(self, texts: Iterable[str]) -> None:
        """texts: questions and passages of judged sets, of all that will be reported."""
        self._runs: set[str] = set()
        self._short: set[str] = set()
        for text in texts:
            words = _words(text)
            if len(words) >= RUN_WORDS:
                self._runs.update(_runs(words))
            elif len(words) >= MIN_WORDS:
                self._short.add(" ".join(words))

    def hold(self, pair: Pair) -> bool:
        """Whether a text of the record is judged, in part or whole."""
        for text in (pair.query, pair.positive, *pair.negatives):
            words = _words(text)
            if " ".join(words) in self._short:
                return True
            if any(run in self._runs for run in _runs(words)):
                return True
        return False

    def without(self, pairs: Iterable[Pair]) -> list[Pair]:
        """The records that share nothing with the judged texts."""
        return [pair for pair in pairs if not self.hold(pair)]


def _words(text: str) -> list[str]:
    return list(regex.findall(r"\w+", normalised(text)))


def _runs(words: Sequence[str]) -> Iterable[str]:
    return (" ".join(words[at : at + RUN_WORDS]) for at in range(len(words) - RUN_WORDS + 1))
