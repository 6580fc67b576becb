"""Where does a long text part into passages?

At paragraphs if possible, else at sentences, else between words, else anywhere but within a
character that the reader sees as one. The passages tile the text, or each repeats the last
sentences of the one before. Their lengths are even: a text of 230 tokens becomes two of about 115,
not one of 220 and a rest that says nothing. Positions are code points. Time and memory are linear
in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# Offsets of the tokens of a text: (start, end) in code points, ascending.
TokenOffsets = Callable[[str], Sequence[tuple[int, int]]]

# A passage may end this much before its even share is reached, for the sake of a better boundary.
SLACK: Final = 0.5
# Code points that are looked back over for the start of a character. Longer sequences of
# combining marks are no writing.
MAX_CLUSTER: Final = 32

_PARAGRAPH: Final = re.compile(r"\n[ \t\r\f\v]*\n\s*")
# An ending, closing quotes and brackets, and white space; or an ending of a script that puts no
# space after it; or a line. The escapes are full-width marks, which look like ASCII.
_SENTENCE: Final = re.compile(
    r"[.!?\u2026\u0964\u0965\u061f\u06d4\u1362\u17d4\u104b]+[\"'\u201d\u2019\u00bb)\]]*\s+"
    r"|[\u3002\uff01\uff1f\uff61]+[\u300d\u300f\u201d\u2019\uff09\u3011]*\s*"
    r"|\n\s*"
)
_WORD: Final = re.compile(r"\s+|[\uff0c\u3001\uff1b\uff1a]\s*")


@dataclass(frozen=True)
class SplitBounds:
    """How large a passage may be."""

    max_tokens: int
    # Code points.
    max_chars: int
    # Tokens of the passage before that a passage begins with, at most; part of its own bounds.
    overlap_tokens: int = 0


def split_text(text: str, bounds: SplitBounds, tokens: TokenOffsets) -> list[tuple[int, int]]:
    """Split a text into passages: (start, end) in code points, which cover it.

    text: not empty. No passage is empty; one exceeds a bound only where a single character does.
    They tile the text, but for the overlap that each has with the one before.
    """
    starts = np.fromiter((start for start, _ in tokens(text)), dtype=np.int64)
    if len(starts) <= bounds.max_tokens and len(text) <= bounds.max_chars:
        return [(0, len(text))]
    boundaries = [_ends(pattern, text) for pattern in (_PARAGRAPH, _SENTENCE, _WORD)]
    room = replace(bounds, max_tokens=max(1, bounds.max_tokens - bounds.overlap_tokens))
    tiles: list[tuple[int, int]] = []
    position = 0
    while position < len(text):
        end = _next_end(text, position, room, starts, boundaries)
        tiles.append((position, end))
        position = end
    if bounds.overlap_tokens == 0 or len(starts) == 0:
        return tiles
    return tiles[:1] + [
        (_reach_back(text, before, tile, bounds, starts, boundaries), tile[1])
        for (before, _), tile in pairwise(tiles)
    ]


def _reach_back(
    text: str,
    before: int,
    tile: tuple[int, int],
    bounds: SplitBounds,
    starts: NDArray[np.int64],
    boundaries: Sequence[NDArray[np.int64]],
) -> int:
    """Where a passage begins that repeats the end of the one before, which begins at `before`.

    At a sentence if one begins within the overlap, else at a word, else at a character.
    """
    start, end = tile
    first = int(np.searchsorted(starts, start))
    earliest = int(starts[max(0, first - bounds.overlap_tokens)])
    earliest = max(earliest, before, end - bounds.max_chars)
    if earliest >= start:
        return start
    for ends in boundaries[1:]:
        inside = ends[np.searchsorted(ends, earliest) : np.searchsorted(ends, start)]
        if len(inside):
            return _whole_character(text, int(inside[0]), before)
    return start


def _ends(pattern: re.Pattern[str], text: str) -> NDArray[np.int64]:
    return np.fromiter((match.end() for match in pattern.finditer(text)), dtype=np.int64)


def _next_end(
    text: str,
    position: int,
    bounds: SplitBounds,
    starts: NDArray[np.int64],
    boundaries: Sequence[NDArray[np.int64]],
) -> int:
    first = int(np.searchsorted(starts, position))
    tokens_left = len(starts) - first
    chars_left = len(text) - position
    passages_left = max(-(-tokens_left // bounds.max_tokens), -(-chars_left // bounds.max_chars), 1)
    if passages_left == 1:
        return len(text)
    latest = position + bounds.max_chars
    if tokens_left > bounds.max_tokens:
        latest = min(latest, int(starts[first + bounds.max_tokens]))
    latest = min(latest, len(text) - 1)
    even = _even_share(position, first, passages_left, starts, len(text))
    even = min(max(even, position + 1), latest)
    earliest = position + max(1, int((even - position) * SLACK))
    for ends in boundaries:
        end = _nearest(ends, even, earliest, latest)
        if end is not None:
            return _whole_character(text, end, position)
    return _whole_character(text, even, position)


def _even_share(
    position: int, first: int, passages: int, starts: NDArray[np.int64], length: int
) -> int:
    """Where the passage would end if all that are left were of one length."""
    by_tokens = first + -(-(len(starts) - first) // passages)
    # Where tokens say little, as in a text that is one of them, characters decide.
    by_chars = position + -(-(length - position) // passages)
    return int(starts[by_tokens]) if first < by_tokens < len(starts) else by_chars


def _nearest(ends: NDArray[np.int64], wanted: int, earliest: int, latest: int) -> int | None:
    low, high = np.searchsorted(ends, earliest), np.searchsorted(ends, latest, side="right")
    if low >= high:
        return None
    inside: NDArray[Any] = ends[low:high]
    return int(inside[np.argmin(np.abs(inside - wanted))])


def _whole_character(text: str, end: int, position: int) -> int:
    """Move an end back out of a character that is made of several code points."""
    for candidate in range(end, max(position, end - MAX_CLUSTER), -1):
        if candidate == len(text) or not _joins(text[candidate - 1], text[candidate]):
            return candidate
    return end


def _joins(before: str, after: str) -> bool:
    """True if two code points belong to one character: marks, joiners, modifiers, line ends."""
    if before == "\r":
        return after == "\n"
    if before == "\u200d" or after == "\u200d":
        return True
    if unicodedata.category(after) in ("Mn", "Mc", "Me"):
        return True
    return "\U0001f3fb" <= after <= "\U0001f3ff"
