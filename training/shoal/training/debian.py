"""Which texts does every Debian machine have, for training and for trying things out?

The package lists describe about 60,000 packages, each in a line and in a few paragraphs:
https://www.debian.org/doc/debian-policy/ch-controlfields.html#description
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

# Slim machines fetch no descriptions unless they are told to.
_ENGLISH: Final = ("-o", "Acquire::Languages=en")
UPDATE_COMMAND: Final = "apt-get -o Acquire::Languages=en update"


class PackageListsError(Exception):
    """No package lists on this machine; the message says what to do."""


@dataclass(frozen=True)
class Package:
    """A package and what its maintainers say of it."""

    name: str
    source: str
    """The source package: its binary packages often share most of their description."""
    summary: str
    description: str
    """Paragraphs, separated by empty lines. May be empty."""
    section: str
    homepage: str


def iter_packages() -> Iterator[Package]:
    """Read this machine's package lists, each name once, with its long description.

    Raises PackageListsError if there are none.
    """
    if shutil.which("apt-cache") is None:
        raise PackageListsError("there is no apt-cache here: this corpus needs a Debian machine")
    long_texts = {
        fields["Description-md5"]: fields["Description-en"]
        for fields in _stanzas(_translations())
        if "Description-md5" in fields and "Description-en" in fields
    }
    found = False
    for package in parse_packages(_output("apt-cache", "dumpavail"), long_texts):
        found = True
        yield package
    if not found:
        raise PackageListsError(f"the package lists are empty: run `{UPDATE_COMMAND}` first")


def _translations() -> Iterator[str]:
    """Lines of the lists that hold the long descriptions; none if they were not fetched."""
    targets = _output(
        "apt-get", *_ENGLISH, "indextargets", "--format", "$(FILENAME)", "Created-By: Translations"
    )
    for path in targets:
        yield from _output("/usr/lib/apt/apt-helper", "cat-file", path)
        yield ""


def _output(*command: str) -> Iterator[str]:
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield line.rstrip("\n")


def parse_packages(lines: Iterable[str], long_texts: Mapping[str, str]) -> Iterator[Package]:
    """Read stanzas of a Packages file; a name that comes again is left out.

    long_texts: summary and description by the MD5 that the stanza names.
    """
    seen: set[str] = set()
    for fields in _stanzas(lines):
        name = fields.get("Package", "")
        text = long_texts.get(fields.get("Description-md5", "")) or fields.get("Description", "")
        if not name or not text or name in seen:
            continue
        seen.add(name)
        summary, _, body = text.partition("\n")
        yield Package(
            name=name,
            source=fields.get("Source", name).partition(" ")[0],
            summary=summary.strip(),
            description=_paragraphs(body),
            section=fields.get("Section", "").rpartition("/")[2],
            homepage=fields.get("Homepage", ""),
        )


def _stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    fields: dict[str, str] = {}
    key = ""
    for line in lines:
        if not line.strip():
            if fields:
                yield fields
            fields, key = {}, ""
        elif line[0] in " \t":
            fields[key] = fields.get(key, "") + "\n" + line[1:]
        else:
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    if fields:
        yield fields


def _paragraphs(body: str) -> str:
    """Join the lines of each paragraph; a line of one dot ends it, a bullet starts another line."""
    paragraphs: list[str] = []
    current: list[str] = []
    for line in [*body.splitlines(), "."]:
        stripped = line.strip()
        if stripped == ".":
            if current:
                paragraphs.append(" ".join(current))
            current = []
        elif re.match(r"[*\-+o•] ", stripped) and current:
            current.append("\n" + stripped)
        else:
            current.append(stripped)
    return "\n\n".join(paragraph.replace(" \n", "\n") for paragraph in paragraphs)
