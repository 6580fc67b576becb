"""How does a pair of question and passage become the tokens that a reranker reads?

A passage is tokenised once, however often it is asked for: its tokens are kept, so many of the last
ones. Of a long passage only the best window is read (window.py).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray
from shoal.bundle.tokens import BundleTokenizer
from shoal.bundle.window import best_window

# Texts whose tokens are kept: with 160 tokens each about 12 MB.
KEPT_TEXTS: Final = 16_384


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A pair as the model reads it, special tokens included."""

    ids: NDArray[np.int32]
    # 0 for the question, 1 for the passage, or whatever the tokenizer says.
    type_ids: NDArray[np.int32]


class PairReader:
    """Makes token pairs. Thread-safe."""

    def __init__(self, tokenizer: BundleTokenizer, passage_tokens: int) -> None:
        """passage_tokens: most tokens of a passage in a pair."""
        self._tokenizer, self._passage_tokens = tokenizer, passage_tokens
        self._frame = tokenizer.pair_frame()
        self._question_tokens = max(
            1, tokenizer.max_length - passage_tokens - self._frame.special_count
        )
        self._kept: OrderedDict[bytes, NDArray[np.int32]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, pairs: Sequence[tuple[str, str]]) -> list[TokenPair]:
        """Tokenise pairs."""
        return [self._pair(*each) for each in self._tokenised(pairs)]

    def lengths(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        """How many tokens each pair will have; which window is the best need not be known."""
        return [
            min(len(question), self._question_tokens)
            + min(len(passage), self._passage_tokens)
            + self._frame.special_count
            for question, passage in self._tokenised(pairs)
        ]

    def _tokenised(
        self, pairs: Sequence[tuple[str, str]]
    ) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        texts = dict.fromkeys(text for pair in pairs for text in pair)
        tokens = dict(zip(texts, self._tokens(list(texts)), strict=True))
        return [(tokens[question], tokens[passage]) for question, passage in pairs]

    def _pair(self, question: NDArray[np.int32], passage: NDArray[np.int32]) -> TokenPair:
        asked = question[: self._question_tokens]
        ids, type_ids = self._frame.around(asked, best_window(asked, passage, self._passage_tokens))
        return TokenPair(ids, type_ids)

    def _tokens(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The tokens of each text, without special ones: int32 [tokens]."""
        keys = [xxhash.xxh3_128_digest(text.encode("utf-8", "replace")) for text in texts]
        with self._lock:
            found = {key: self._kept[key] for key in keys if key in self._kept}
            for key in found:
                self._kept.move_to_end(key)
        missing = [at for at, key in enumerate(keys) if key not in found]
        for at, ids in zip(
            missing, self._tokenizer.ids([texts[at] for at in missing]), strict=True
        ):
            found[keys[at]] = ids
        with self._lock:
            for at in missing:
                self._kept[keys[at]] = found[keys[at]]
            while len(self._kept) > KEPT_TEXTS:
                self._kept.popitem(last=False)
        return [found[key] for key in keys]
