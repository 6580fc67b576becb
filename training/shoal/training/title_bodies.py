"""Which questions and passages does every Debian machine have?

A summary line asks for the description that it stands over; a heading asks for its section. So the
package lists, the manual pages and the documentation of a machine are training data that needs no
hub: a package's in debian.py, pages' here.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

from shoal.training.debian import Package
from shoal.training.pairs import Pair

MIN_PASSAGE_CHARACTERS: Final = 60
# About 300 tokens: what an encoder of 256 reads, and a little more.
MAX_PASSAGE_CHARACTERS: Final = 1200
# Larger pages are generated references, whose sections repeat each other.
MAX_PAGE_BYTES: Final = 1_000_000
MANUALS: Final = Path("/usr/share/man")
DOCUMENTATION: Final = Path("/usr/share/doc")

_WORD_MACROS: Final = "B|I|BI|BR|IB|IR|RB|RI|SM|SB|Nm|Nd|Fl|Ar|Pa|Em|Sy|Xr|Ql"
_ESCAPES: Final = (("\\-", "-"), ("\\(aq", "'"), ("\\(em", "—"), ("\\(bu", "•"), ("\\&", ""))
# Headings that say nothing of what stands under them.
_EMPTY_HEADINGS: Final = {
    *("authors", "author", "bugs", "contents", "copyright", "description", "example", "examples"),
    *("exit status", "files", "history", "index", "introduction", "name", "notes", "options"),
    *("overview", "return value", "see also", "synopsis", "table of contents", "top"),
}


def package_pairs(packages: Iterable[Package]) -> Iterator[Pair]:
    """Pair each package's summary with its description. Short descriptions are left out."""
    for package in packages:
        passage = clipped(package.description)
        if package.summary and len(passage) >= MIN_PASSAGE_CHARACTERS:
            yield Pair(query=package.summary, positive=passage, source=package.source)


def manual_pairs(folder: Path = MANUALS) -> Iterator[Pair]:
    """Pair the sections of manual pages with what they are about.

    The one-line purpose under NAME asks for DESCRIPTION; other headings, with the page's name in
    front, ask for their section. Untranslated pages only (man1 to man8). None if there are none.
    """
    for path in sorted(folder.glob("man[1-8]*/*")):
        page = _text_of(path)
        if page is not None and not page.startswith(".so "):
            yield from manual_sections(page, path.name.removesuffix(".gz"))


def manual_sections(page: str, name: str) -> Iterator[Pair]:
    """Read the pairs of a page in troff's man or mdoc macros. name: as in `ls.1`."""
    title = name.rpartition(".")[0]
    purpose = ""
    for heading, lines in _troff_sections(page):
        body = clipped(" ".join(filter(None, map(plain_troff, lines))))
        key = heading.casefold()
        if key == "name":
            purpose = re.split(r" -+ | — ", body, maxsplit=1)[-1]
        elif len(body) >= MIN_PASSAGE_CHARACTERS:
            asked = purpose if key == "description" else _asked(title, heading)
            if asked:
                yield Pair(query=asked, positive=body, source=f"man:{name}")


def documentation_pairs(folder: Path = DOCUMENTATION) -> Iterator[Pair]:
    """Pair headings with their sections, in HTML pages and Markdown or reStructuredText files.

    None if there are none.
    """
    for path in sorted(folder.rglob("*")):
        kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
        if kind not in ("html", "htm", "md", "rst") or not path.is_file():
            continue
        page = _text_of(path)
        if page is not None:
            sections = html_sections(page) if kind.startswith("htm") else marked_sections(page)
            yield from _section_pairs(sections, path, folder)


def _section_pairs(sections: Iterable[tuple[str, str]], path: Path, folder: Path) -> Iterator[Pair]:
    where = path.relative_to(folder)
    # A package's pages share a source, as they repeat each other's words.
    source = f"doc:{where.parts[0]}"
    for heading, body in sections:
        passage, asked = clipped(body), _asked(where.parts[0], heading)
        if asked and len(passage) >= MIN_PASSAGE_CHARACTERS:
            yield Pair(query=asked, positive=passage, source=source)


def html_sections(page: str) -> list[tuple[str, str]]:
    """Read headings and what follows each, up to the next: (heading, text)."""
    reader = _Headings()
    reader.feed(page)
    reader.close()
    return reader.sections


def marked_sections(page: str) -> list[tuple[str, str]]:
    """Read headings of Markdown (`# x`, or underlined) and reStructuredText (underlined)."""
    sections: list[tuple[str, list[str]]] = []
    lines = page.splitlines()
    for number, line in enumerate(lines):
        after = lines[number + 1] if number + 1 < len(lines) else ""
        if match := re.match(r"#{1,6}\s+(.*?)\s*#*$", line):
            sections.append((match[1], []))
        elif line.strip() and re.fullmatch(r"([=\-~^\"'+*])\1{2,}\s*", after):
            sections.append((line.strip(), []))
        elif sections and not re.fullmatch(r"([=\-~^\"'+*])\1{2,}\s*", line):
            sections[-1][1].append(line)
    return [(heading, " ".join(body)) for heading, body in sections]


def plain_troff(line: str) -> str:
    """Take a troff line's macros, fonts and escapes away; a comment or a bare macro leaves nothing.

    Of the macros only those that set words (fonts, and mdoc's names) keep their arguments:
    https://man7.org/linux/man-pages/man7/man.7.html
    """
    if line.startswith((".", "'")):
        match = re.match(rf"[.'](?:{_WORD_MACROS})\s+(.*)", line)
        if match is None:
            return ""
        line = match[1].replace('"', "")
    line = re.sub(r'\\".*', "", line)
    line = re.sub(r"\\f(?:\[[^\]]*\]|\(..|.)", "", line)
    line = re.sub(r"\\s[-+]?\d+", "", line)
    for escape, plain in _ESCAPES:
        line = line.replace(escape, plain)
    line = re.sub(r"\\\(..|\\\[[^\]]*\]|\\[*n]\S", "", line)
    return line.replace("\\e", "\x00").replace("\\", "").replace("\x00", "\\").strip()


def clipped(text: str) -> str:
    """Put a text on one line and cut it to MAX_PASSAGE_CHARACTERS, between words."""
    line = " ".join(text.split())
    if len(line) <= MAX_PASSAGE_CHARACTERS:
        return line
    return line[:MAX_PASSAGE_CHARACTERS].rpartition(" ")[0]


def _troff_sections(page: str) -> list[tuple[str, list[str]]]:
    sections: list[tuple[str, list[str]]] = []
    for line in page.splitlines():
        if match := re.match(r"\.S[HShs]\s+(.*)", line):
            sections.append((plain_troff(match[1].strip().strip('"')), []))
        elif sections:
            sections[-1][1].append(line)
    return sections


def _asked(title: str, heading: str) -> str:
    """Make a question of a heading: the title in front; nothing if the heading says nothing."""
    words = " ".join(re.sub(r"[¶#*`]|^[\d.]+\s", "", heading).split())
    if len(words) < 3 or words.casefold() in _EMPTY_HEADINGS:
        return ""
    return f"{title} {words}" if title.casefold() not in words.casefold() else words


def _text_of(path: Path) -> str | None:
    """Read a page; None if it is too large, no text or not readable."""
    try:
        if path.stat().st_size > MAX_PAGE_BYTES:
            return None
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                content = file.read(MAX_PAGE_BYTES)
        else:
            content = path.read_bytes()
        return content.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError):
        return None


class _Headings(HTMLParser):
    """Collects the text under each heading; scripts, styles and navigation are left out."""

    _HEADINGS: Final = frozenset(("h1", "h2", "h3", "h4"))
    _SKIPPED: Final = frozenset(("script", "style", "nav", "head", "footer"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._in_heading = False
        self._skipped = 0
        self._parts: list[tuple[list[str], list[str]]] = []

    @property
    def sections(self) -> list[tuple[str, str]]:
        """Heading and text of each, so far."""
        return [(" ".join("".join(head).split()), "".join(body)) for head, body in self._parts]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a section at a heading."""
        if tag in self._SKIPPED:
            self._skipped += 1
        elif tag in self._HEADINGS:
            self._in_heading = True
            self._parts.append(([], []))

    def handle_endtag(self, tag: str) -> None:
        """End a heading, or what is left out."""
        if tag in self._SKIPPED:
            self._skipped = max(0, self._skipped - 1)
        elif tag in self._HEADINGS:
            self._in_heading = False

    def handle_data(self, data: str) -> None:
        """Take the words."""
        if self._parts and not self._skipped:
            heading, body = self._parts[-1]
            (heading if self._in_heading else body).append(data)
