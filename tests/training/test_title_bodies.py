"""Are a machine's own pages turned into questions and passages?"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from shoal.training.debian import Package
from shoal.training.title_bodies import (
    MAX_PASSAGE_CHARACTERS,
    documentation_pairs,
    html_sections,
    manual_pairs,
    manual_sections,
    marked_sections,
    package_pairs,
    plain_troff,
)

LONG = "It prints every name in the folder, sorted, in columns if that is a terminal. "
MANUAL = rf""".\" A comment.
.TH LS 1 "2026" "tools"
.SH NAME
ls \- list directory contents
.SH SYNOPSIS
.B ls
[\fIOPTION\fR]...
.SH DESCRIPTION
.PP
{LONG}
.B \-\-all
shows hidden ones, too.
.SH "EXIT STATUS"
.TP
0 if all went well, 1 on small problems, 2 on serious trouble, and so on.
.SH "COLOURS OF NAMES"
{LONG}
"""


def test_a_packages_summary_asks_for_its_description() -> None:
    package = Package("x", "source-x", "lists folders", LONG * 30, "misc", "")
    short = Package("y", "y", "short", "Too short.", "misc", "")
    (pair,) = package_pairs([package, short])
    assert (pair.query, pair.source) == ("lists folders", "source-x")
    assert pair.positive.startswith("It prints every name")
    assert len(pair.positive) <= MAX_PASSAGE_CHARACTERS


def test_a_manual_page() -> None:
    first, second = manual_sections(MANUAL, "ls.1")
    assert first.query == "list directory contents"
    assert first.positive == f"{LONG.strip()} --all shows hidden ones, too."
    assert second.query == "ls COLOURS OF NAMES"
    assert {first.source, second.source} == {"man:ls.1"}


def test_manual_pages_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "man1"
    folder.mkdir()
    (folder / "ls.1.gz").write_bytes(gzip.compress(MANUAL.encode()))
    (folder / "dir.1").write_text(".so man1/ls.1\n")
    (folder / "broken.1.gz").write_bytes(b"no gzip")
    (tmp_path / "de" / "man1").mkdir(parents=True)
    (tmp_path / "de" / "man1" / "ls.1").write_text(MANUAL)
    assert [pair.source for pair in manual_pairs(tmp_path)] == ["man:ls.1"] * 2
    assert list(manual_pairs(tmp_path / "none")) == []


@pytest.mark.parametrize(
    ("line", "plain"),
    [
        (r"\fB\-a\fR, \fI\-\-all\fP", "-a, --all"),
        (r".BR printf (3),", "printf (3),"),
        (r".TH X 1", ""),
        (r".\" a comment", ""),
        (r"a \(em b \(aq c\(aq", "a — b ' c'"),
        (r"back\eslash", r"back\slash"),
    ],
)
def test_troff_becomes_words(line: str, plain: str) -> None:
    assert plain_troff(line) == plain


def test_documentation(tmp_path: Path) -> None:
    folder = tmp_path / "brewer" / "html"
    folder.mkdir(parents=True)
    page = (
        f"<h1>Brewing</h1><p>x</p><h2>How to <b>mash</b></h2><p>{LONG}</p><script>var a;</script>"
    )
    (folder / "index.html").write_text(page)
    (tmp_path / "brewer" / "NEWS.md.gz").write_bytes(
        gzip.compress(
            f"# News\n\nnone\n\n## Notes\n\n{LONG}\n\n## Keeping yeast\n\n{LONG}\n".encode()
        )
    )
    (tmp_path / "brewer" / "binary.html").write_bytes(b"\xff\xfe\x00")
    pairs = list(documentation_pairs(tmp_path))
    assert [pair.query for pair in pairs] == ["brewer Keeping yeast", "brewer How to mash"]
    assert {pair.source for pair in pairs} == {"doc:brewer"}
    assert all(pair.positive == LONG.strip() for pair in pairs)


def test_sections_of_marked_text() -> None:
    page = "Title\n=====\nabove\n\nPart one\n--------\nwords\nmore\n\n## Part two ##\nlast\n"
    sections = [(head, body.split()) for head, body in marked_sections(page)]
    assert sections == [
        ("Title", ["above"]),
        ("Part one", ["words", "more"]),
        ("Part two", ["last"]),
    ]


def test_sections_of_html_that_is_not_closed() -> None:
    assert html_sections("<nav>away</nav><h2>One &amp; two<p>words") == [("One & twowords", "")]
