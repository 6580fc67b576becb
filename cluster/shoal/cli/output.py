"""How does the command line say things?

Results go to standard output: for people, or with `--json` as one JSON document. Everything else
(progress, notes, errors) goes to standard error, so that results can be piped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from google.protobuf.message import Message

# What a pipe or a file gets: rich would fold everything to 80 columns.
PIPE_COLUMNS: Final = 200


class CliError(Exception):
    """A command that cannot do what it was asked to; the message says why and what to do."""


class NoBrokerError(CliError):
    """Nothing answers where the broker is to be."""


def out() -> Console:
    """Where results go."""
    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, highlight=False)


def err() -> Console:
    """Where everything else goes."""
    return Console(
        stderr=True, width=None if sys.stderr.isatty() else PIPE_COLUMNS, highlight=False
    )


def say(text: str, style: str = "") -> None:
    """Print a line of a result as it is: no markup, and no folding in the middle of a value."""
    out().print(Text(text, style=style), soft_wrap=True)


def note(text: str, style: str = "dim") -> None:
    """Print a line on standard error."""
    err().print(Text(text, style=style), soft_wrap=True)


def fail(message: str) -> None:
    """Print an error."""
    err().print(Text.assemble(("error: ", "bold red"), printable(message, "\n")), soft_wrap=True)


def print_json(value: Any) -> None:
    """Print the one JSON document of a command."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def print_message(message: Message) -> None:
    """Print a message as JSON, in the shape that plain.py documents."""
    from shoal.cli.plain import as_plain

    print_json(as_plain(message))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Iterable[str] = ()
) -> None:
    """Print a table. numbers: the columns that are aligned to the right."""
    aligned = set(numbers)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        is_number = column in aligned
        table.add_column(
            column,
            justify="right" if is_number else "left",
            no_wrap=is_number,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    out().print(table)


def confirm(deed: str, question: str) -> None:
    """Ask before what cannot be undone. Raises CliError where there is nobody to ask."""
    import typer

    if not sys.stdin.isatty():
        raise CliError(f"{deed} cannot be undone: say --yes to do it")
    typer.confirm(question, abort=True, err=True)


def printable(text: str, keep: str = "") -> str:
    """A text without what would steer the terminal: each character of control becomes a space."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else " " for each in text)


def snippet(text: str, limit: int = 240) -> str:
    """The beginning of a passage on one line."""
    line = " ".join(printable(text[: limit * 4]).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"
