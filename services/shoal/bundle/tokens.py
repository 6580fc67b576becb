"""How does text become the tokens that a model reads?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from shoal.bundle.errors import BundleInvalidError

# No natural script has longer tokens than this many characters on average, so that a text that is
# cut here still fills the model; without the cut, a megabyte would be tokenised to be thrown away.
MAX_CHARACTERS_PER_TOKEN: Final = 16
# Control characters carry no meaning and confuse some normalisers: the models see spaces.
_CONTROLS: Final = {
    number: " " for number in (*range(0x20), *range(0x7F, 0xA0)) if chr(number) not in "\t\n\r"
}


@dataclass(frozen=True)
class PairFrame:
    """The special tokens around and between the texts of a pair, with their types: int32."""

    before: NDArray[np.int32]
    between: NDArray[np.int32]
    after: NDArray[np.int32]
    # Of the tokens of the first text and of the second.
    types: tuple[int, int]
    special_types: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]

    @property
    def special_count(self) -> int:
        """Special tokens in a pair."""
        return len(self.before) + len(self.between) + len(self.after)

    def around(
        self, first: NDArray[np.int32], second: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """A pair's tokens and their types: int32 [tokens] each."""
        before, between, after = self.special_types
        ids = np.concatenate([self.before, first, self.between, second, self.after])
        types = np.concatenate(
            [
                before,
                np.full(len(first), self.types[0], np.int32),
                between,
                np.full(len(second), self.types[1], np.int32),
                after,
            ]
        )
        return ids, types


class BundleTokenizer:
    """A bundle's tokenizer. Thread-safe; releases the GIL while it works."""

    def __init__(self, path: Path, max_length: int) -> None:
        """path: of tokenizer.json. Raises BundleInvalidError."""
        # Else the first batch starts a thread for each core of the machine, whatever the budget,
        # and gains nothing at these sizes. Whoever sets the variable is obeyed.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from tokenizers import Tokenizer

        self.max_length = max_length
        self._characters = max_length * MAX_CHARACTERS_PER_TOKEN
        try:
            self._cutting = Tokenizer.from_file(str(path))
            self._whole = Tokenizer.from_file(str(path))
        except Exception as error:
            raise BundleInvalidError(f"{path} is no tokenizer: {error}") from error
        self._cutting.enable_truncation(max_length)
        self._cutting.no_padding()
        self._whole.no_truncation()
        self._whole.no_padding()
        model = self._whole.model
        unknown = getattr(model, "unk_token", None)
        # A model over pieces of text has a number for it, the others a token.
        self._unknown: int | None = (
            getattr(model, "unk_id", None) if unknown is None else self._whole.token_to_id(unknown)
        )

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """Tokenise texts: one encoding each (`ids`, `type_ids`), cut at the maximum length."""
        return list(self._cutting.encode_batch([self._visible(text) for text in texts]))

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Any]:
        """Tokenise pairs as the model reads them; the longer text of a pair is cut first."""
        visible = [(self._visible(first), self._visible(second)) for first, second in pairs]
        return list(self._cutting.encode_batch(visible))

    def ids(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The tokens of texts without special ones, uncut but for absurd lengths: int32 each."""
        visible = [self._visible(text) for text in texts]
        encodings = self._whole.encode_batch(visible, add_special_tokens=False)
        return [np.array(each.ids, dtype=np.int32) for each in encodings]

    def pair_frame(self) -> PairFrame:
        """What stands around the texts of a pair."""
        whole = self._whole.encode("a", "b")
        special = np.flatnonzero(whole.special_tokens_mask)
        texts = np.flatnonzero(np.array(whole.special_tokens_mask) == 0)
        sides = np.array(whole.sequence_ids)[texts]
        first, second = texts[sides == 0], texts[sides == 1]
        ids, types = (np.array(each, dtype=np.int32) for each in (whole.ids, whole.type_ids))
        parts = (
            special[special < first[0]],
            special[(special > first[-1]) & (special < second[0])],
            special[special > second[-1]],
        )
        return PairFrame(
            ids[parts[0]],
            ids[parts[1]],
            ids[parts[2]],
            types=(int(types[first[0]]), int(types[second[0]])),
            special_types=(types[parts[0]], types[parts[1]], types[parts[2]]),
        )

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where the tokens of a text stand, as code points [start, end), uncut, unspecial.

        Work grows with the text: callers bound it.
        """
        encoding = self._whole.encode(text.translate(_CONTROLS), add_special_tokens=False)
        return list(encoding.offsets)

    def pieces(self, text: str) -> list[tuple[int, bool]]:
        """Where each token of a text begins, and whether it is the one for what is not known.

        As for `offsets`.
        """
        encoding = self._whole.encode(text.translate(_CONTROLS), add_special_tokens=False)
        return [
            (start, number == self._unknown)
            for (start, _), number in zip(encoding.offsets, encoding.ids, strict=True)
        ]

    def _visible(self, text: str) -> str:
        return text[: self._characters].translate(_CONTROLS)
