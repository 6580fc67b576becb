"""How many tokens has a text, for whom there is no tokenizer?"""

from __future__ import annotations

import re
from typing import Final

# Letters of scripts that a tokenizer takes one by one, pieces of words, and single marks.
_ROUGH_TOKEN: Final = re.compile(
    r"[\u2e80-\u9fff\uac00-\ud7af\u3040-\u30ff\U00020000-\U0003ffff]|[A-Za-z0-9]{1,7}|[^\W_]{1,3}|[^\w\s]|_"
)


def rough_tokens(text: str) -> list[tuple[int, int]]:
    """Guess the tokens of a text, rather too many than too few: (start, end) in code points."""
    return [match.span() for match in _ROUGH_TOKEN.finditer(text)]


def rough_token_count(text: str) -> int:
    """Count them. That of two texts put together is no larger than the sum of theirs."""
    return sum(1 for _ in _ROUGH_TOKEN.finditer(text))
