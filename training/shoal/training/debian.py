"""Which texts does every Debian machine have, for training and for trying things out?

The package lists describe about 60,000 packages, each in a line and in a few paragraphs. `apt-cache
dumpavail` lists the packages; in current releases a package's stanza holds the line and the MD5 of
the whole, which stands in the translation lists, English too:
https://wiki.debian.org/DebianRepository/Format#A.22Packages.22_Indices

Needs nothing but Python, so that the command line can read a corpus without the extra `training`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

# Slim machines fetch no descriptions unless they are told to.
_ENGLISH: Final = ("-o", "Acquire::Languages=en")
UPDATE_COMMAND: Final = f"apt-get {' '.join(_ENGLISH)} update"
_APT_HELPER: Final = "/usr/lib/apt/apt-helper"
# An ordinary machine's lists have 60,000; fewer than this are no lists but a few of one's own.
MIN_PACKAGES: Final = 1_000
_BULLET: Final = re.compile(r"[*\-+o•] ")


class PackageListsError(Exception):
    """No package lists on this machine; the message says what to do."""


@dataclass(frozen=True)
class Package:
    """A package and what its maintainers say of it. What is not said is empty."""

    name: str
    source: str
    """The source package: its binary packages often share most of their description."""
    summary: str
    description: str
    """Paragraphs, separated by empty lines. May be empty."""
    section: str
    """With its area, if it is not main: `contrib/games`."""
    homepage: str
    version: str = ""


def iter_packages() -> Iterator[Package]:
    """Read this machine's package lists, each name once, with its long description.

    Raises PackageListsError if there are none: at once without apt, at the end if it listed too
    little.
    """
    if shutil.which("apt-cache") is None or shutil.which("apt-get") is None:
        raise PackageListsError(
            "there is no apt-cache here: this corpus needs Debian, Ubuntu or another of their kin"
        )
    long_texts = {
        fields["Description-md5"]: fields["Description-en"]
        for fields in _stanzas(_translations())
        if "Description-md5" in fields and "Description-en" in fields
    }
    count = 0
    for package in parse_packages(_output("apt-cache", "dumpavail"), long_texts):
        count += 1
        yield package
    if count < MIN_PACKAGES:
        raise PackageListsError(
            f"this machine's package lists hold {count:,} packages: run `{UPDATE_COMMAND}` as "
            "root first"
        )


def _translations() -> Iterator[str]:
    """Lines of the lists that hold the long descriptions; none if they were not fetched."""
    targets = _output(
        "apt-get", *_ENGLISH, "indextargets", "--format", "$(FILENAME)", "Created-By: Translations"
    )
    for path in targets:
        yield from _output(_APT_HELPER, "cat-file", path)
        yield ""


def _output(*command: str) -> Iterator[str]:
    """The lines that a command prints."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
        text=True,
        encoding="utf-8",
        errors="replace",
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
        text = long_texts.get(fields.get("Description-md5", "")) or fields.get(
            "Description-en", fields.get("Description", "")
        )
        if not name or not text or name in seen:
            continue
        seen.add(name)
        summary, _, body = text.partition("\n")
        yield Package(
            name=name,
            source=fields.get("Source", name).partition(" ")[0],
            summary=summary.strip(),
            description=paragraphs(body),
            section=fields.get("Section", ""),
            homepage=fields.get("Homepage", ""),
            version=fields.get("Version", ""),
        )


def _stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Read paragraphs of `Key: value`; lines that begin with a space go on with the value."""
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


def paragraphs(body: str) -> str:
    """Undo the folding of a description: a line of one dot ends a paragraph.

    Indented lines stand alone, as the policy has it; a list's items too, with what is indented
    under them. https://www.debian.org/doc/debian-policy/ch-controlfields.html#description
    """
    text, in_item = "", False
    for line in body.split("\n"):
        stripped = line.strip()
        if stripped in ("", "."):
            text, in_item = text.rstrip() + "\n\n", False
            continue
        item, indented = _BULLET.match(stripped) is not None, line[0].isspace()
        alone = item or (indented and not in_item)
        text = f"{text.rstrip(' ')}\n{stripped} " if alone else f"{text}{stripped} "
        in_item = item or (in_item and indented)
    return "\n".join(line.strip() for line in text.strip().split("\n"))
