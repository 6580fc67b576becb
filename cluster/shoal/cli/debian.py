"""Which corpus does every Debian machine have? The descriptions of the packages it could install.

`apt-cache dumpavail` lists the packages. In current releases a package's stanza holds one line of
description and the MD5 of the whole, which stands in the translation lists, English too:
https://wiki.debian.org/DebianRepository/Format#A.22Packages.22_Indices
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TextIO

from shoal.cli.output import CliError

APT_HELPER: Final = "/usr/lib/apt/apt-helper"
# Slim images are told not to fetch descriptions; this fetches them in spite of it.
UPDATE: Final = "apt-get -o Acquire::Languages=en update"
# An ordinary machine's lists have 60,000; fewer than this are no lists but a few of one's own.
MIN_PACKAGES: Final = 1_000


def write_corpus(out: Path, report: Callable[[int], None] = lambda _: None) -> int:
    """Write the corpus as JSONL, gzipped if its name says so; return how many documents it has.

    report: told how many there are so far. Raises CliError if the machine has no package lists;
    `out` is only there once it is whole.
    """
    part = out.with_name(out.name + ".part")
    count = 0
    try:
        with _writing(part, gzipped=out.suffix == ".gz") as file:
            for document in read_packages():
                file.write(json.dumps(document, ensure_ascii=False) + "\n")
                count += 1
                report(count)
        _require_lists(count)
        part.replace(out)
    except OSError as error:
        raise CliError(f"cannot write {out}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            part.unlink()
    return count


def _writing(path: Path, *, gzipped: bool) -> TextIO:
    if gzipped:
        # Level 1: it is read once.
        return gzip.open(path, "wt", compresslevel=1, encoding="utf-8")
    return path.open("w", encoding="utf-8")


def read_packages() -> Iterator[dict[str, Any]]:
    """The packages of this machine's lists as documents. Raises CliError without apt."""
    if shutil.which("apt-cache") is None or shutil.which("apt-get") is None:
        raise CliError(
            "there is no apt-cache here: this corpus needs Debian, Ubuntu or another of their kin"
        )
    paths = _lines(
        *("apt-get", "-o", "Acquire::Languages=en", "indextargets"),
        *("--format", "$(FILENAME)", "Created-By: Translations"),
    )
    lists = (_lines(APT_HELPER, "cat-file", path) for path in paths)
    descriptions = {
        stanza["Description-md5"]: stanza["Description-en"]
        for each in lists
        for stanza in stanzas(each)
        if "Description-md5" in stanza and "Description-en" in stanza
    }
    return documents(stanzas(_lines("apt-cache", "dumpavail")), descriptions)


def documents(
    packages: Iterable[Mapping[str, str]], descriptions: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Each package once: its title is name and summary, its text the description.

    descriptions: by the MD5 that the packages name.
    """
    seen: set[str] = set()
    for package in packages:
        name = package.get("Package", "")
        whole = descriptions.get(package.get("Description-md5", "")) or package.get(
            "Description-en", package.get("Description", "")
        )
        summary, _, body = whole.partition("\n")
        if not name or not summary.strip() or name in seen:
            continue
        seen.add(name)
        metadata = {
            key.lower(): package[key]
            for key in ("Section", "Version", "Source", "Homepage")
            if package.get(key)
        }
        yield {
            "_id": name,
            "title": f"{name}: {summary.strip()}",
            "text": paragraphs(body) or summary.strip(),
            "metadata": metadata,
        }


def stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Read paragraphs of `Key: value`; lines that begin with a space go on with the value."""
    stanza: dict[str, str] = {}
    key = ""
    for line in lines:
        if not line.strip():
            if stanza:
                yield stanza
            stanza = {}
        elif line[0].isspace():
            stanza[key] = f"{stanza.get(key, '')}\n{line[1:]}"
        else:
            key, _, value = line.partition(":")
            stanza[key] = value.strip()
    if stanza:
        yield stanza


def paragraphs(body: str) -> str:
    """Undo the folding of a description: a dot ends a paragraph, an indented line stands alone.

    https://www.debian.org/doc/debian-policy/ch-controlfields.html#description
    """
    text = ""
    for line in body.split("\n"):
        if line.strip() in ("", "."):
            text = text.rstrip() + "\n\n"
        elif line[0].isspace() or line[0] in "*-+":
            text = f"{text.rstrip(' ')}\n{line.strip()} "
        else:
            text += f"{line.strip()} "
    return "\n".join(line.strip() for line in text.strip().split("\n"))


def _lines(*command: str) -> Iterator[str]:
    """The lines that a command prints."""
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield line.rstrip("\n")


def _require_lists(count: int) -> None:
    if count < MIN_PACKAGES:
        raise CliError(
            f"this machine's package lists hold {count:,} packages: run `{UPDATE}` as root first"
        )
