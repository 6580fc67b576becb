"""Which corpus does every Debian machine have? The descriptions of the packages it could install.

`shoal.training.debian` reads them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from shoal.cli.output import CliError
from shoal.training.debian import Package, PackageListsError, iter_packages


def write_corpus(out: Path, report: Callable[[int], None] = lambda _: None) -> int:
    """Write the corpus as JSONL, gzipped if its name says so; return how many documents it has.

    report: told how many there are so far. Raises CliError if the machine has no package lists;
    `out` is only there once it is whole.
    """
    part = out.with_name(out.name + ".part")
    count = 0
    try:
        with _writing(part, gzipped=out.suffix == ".gz") as file:
            for package in iter_packages():
                file.write(json.dumps(document(package), ensure_ascii=False) + "\n")
                count += 1
                report(count)
        part.replace(out)
    except PackageListsError as error:
        raise CliError(str(error)) from error
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


def document(package: Package) -> dict[str, Any]:
    """Make a document of a package: its title is name and summary, its text the description."""
    metadata = {
        "section": package.section,
        "version": package.version,
        "source": package.source,
        "homepage": package.homepage,
    }
    return {
        "_id": package.name,
        "title": f"{package.name}: {package.summary}",
        "text": package.description or package.summary,
        "metadata": {key: value for key, value in metadata.items() if value},
    }
