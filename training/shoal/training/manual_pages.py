"""What do a machine's manual pages say, and which of them belong together?

A page's purpose, the line under NAME, asks for its DESCRIPTION; the pages under SEE ALSO are those
that its author thinks belong to it. So they are judged data that needs no hub: one right page, and
some more of the same matter.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MANUALS: Final = Path("/usr/share/man")
# Larger pages are generated references.
MAX_PAGE_BYTES: Final = 400_000
MIN_DESCRIPTION_CHARACTERS: Final = 250
MAX_DESCRIPTION_CHARACTERS: Final = 1_200
MIN_PURPOSE_WORDS: Final = 4

# Macros that set words; all others leave nothing. https://man7.org/linux/man-pages/man7/man.7.html
_WORDS: Final = re.compile(
    r"[.']\s*(?:B|I|BI|BR|IB|IR|RB|RI|SM|SB|Nm|Nd|Fl|Ar|Pa|Em|Xr|Cm|Ql|Li|Dq)\s+(.*)"
)
_REFERENCE: Final = re.compile(r"([A-Za-z_][\w.+:-]*)\s?\(\s?\d")


@dataclass(frozen=True)
class ManualPage:
    """A page in English."""

    name: str
    purpose: str
    description: str
    related: tuple[str, ...]
    """Names under SEE ALSO."""


def iter_manual_pages(folder: Path = MANUALS) -> Iterator[ManualPage]:
    """Read the pages that have a purpose and a description, each name once; none without a folder.

    Deterministic for the same files.
    """
    seen: set[str] = set()
    for path in sorted(folder.glob("man[1-8]/*")):
        name = path.name.partition(".")[0]
        if name in seen or path.is_symlink():
            continue
        page = _parsed(name, _text_of(path))
        if page is not None and page.description[:80] not in seen:
            seen |= {name, page.description[:80]}
            yield page


def _parsed(name: str, text: str) -> ManualPage | None:
    sections = sections_of(text)
    purpose = re.split(r"\s-+\s", sections.get("NAME", ""), maxsplit=1)[-1]
    description = sections.get("DESCRIPTION", "")
    if len(description) < MIN_DESCRIPTION_CHARACTERS or len(purpose.split()) < MIN_PURPOSE_WORDS:
        return None
    related = dict.fromkeys(_REFERENCE.findall(sections.get("SEE ALSO", "")))
    related.pop(name, None)
    return ManualPage(name, purpose, description[:MAX_DESCRIPTION_CHARACTERS], tuple(related))


def sections_of(text: str) -> dict[str, str]:
    """Read a page in troff's man or mdoc macros: plain text by heading, in capitals."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"\.S[Hh]\s+(.*)", line):
            lines = sections.setdefault(_plain(match[1]).strip('" ').upper(), [])
        elif match := _WORDS.match(line):
            dash = "- " if line.startswith(".Nd") else ""
            lines.append(dash + match[1].replace('"', ""))
        elif not line.startswith((".", "'")):
            lines.append(line)
    return {heading: _plain(" ".join(body)) for heading, body in sections.items()}


def _plain(text: str) -> str:
    """Take fonts, sizes and escapes away."""
    text = re.sub(r"\\f(?:\[[^\]]*\]|\(..|.)|\\s[-+]?\d|\\&", "", text)
    text = text.replace("\\-", "-").replace("\\(aq", "'").replace("\\ ", " ")
    text = re.sub(r"\\\(..|\\\[[^\]]*\]|\\.", "", text)
    return " ".join(text.split())


def _text_of(path: Path) -> str:
    """A page's text; empty if it is too large or cannot be read."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                content = file.read(MAX_PAGE_BYTES + 1)
        return content.decode("utf-8") if len(content) <= MAX_PAGE_BYTES else ""
    except (OSError, EOFError, UnicodeDecodeError):
        return ""
