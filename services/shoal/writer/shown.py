"""What does an encoder read of a passage?

The same when a document is written and when another model encodes what is stored: the passage's
text behind its title, without control characters.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.writer.tokens import Measure
from shoal.writer.validation import shown_to_models


@dataclass(frozen=True)
class ShownTexts:
    """Makes what an encoder reads."""

    measure: Measure
    # Most tokens, and most code points, of a title.
    title_tokens: int
    title_chars: int

    def title(self, title: str) -> tuple[str, int]:
        """A title as it is to be read, and its tokens."""
        shown = " ".join(shown_to_models(title).split())
        if not shown:
            return "", 0
        tokens = self.measure.tokens(shown)
        if len(tokens) <= self.title_tokens:
            return shown[: self.title_chars], len(tokens)
        return shown[: tokens[self.title_tokens][0]].rstrip(), self.title_tokens

    def passage(self, shown_title: str, text: str) -> str:
        """A passage as it is to be read behind its title, which `title` has made."""
        shown = shown_to_models(text).strip()
        return f"{shown_title}. {shown}" if shown_title else shown
