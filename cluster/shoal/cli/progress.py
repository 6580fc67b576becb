"""How is it said that something takes a while?

On a terminal by a bar at once; elsewhere (a log, a pipe) by a line now and then, and only from the
third second on. Always on standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from shoal.cli.output import err, note

FIRST_LINE_S: Final = 2.0
LINE_EVERY_S: Final = 10.0

# Takes how much is done, and what is being done now if that is worth saying.
Advance = Callable[[int, str], None]


@contextmanager
def progress(title: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
    """Show how far something is. total: None if nobody knows."""
    if sys.stderr.isatty():
        with _bar(title, total, unit) as advance:
            yield advance
    else:
        yield Lines(title, total, unit).advance


@contextmanager
def _bar(title: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    counted = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]}")) if unit else ()
    remaining = (TimeRemainingColumn(),) if total else ()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), *counted, TimeElapsedColumn())
    with Progress(*columns, *remaining, console=err(), transient=True) as bar:
        task = bar.add_task(title, total=total, unit=unit)

        def advance(done: int, doing: str = "") -> None:
            bar.update(task, completed=done, description=f"{title}: {doing}" if doing else title)

        yield advance


class Lines:
    """Progress as lines, for where there is no terminal."""

    def __init__(
        self,
        title: str,
        total: int | None,
        unit: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """clock: seconds, monotonic."""
        self._title, self._total, self._unit, self._clock = title, total, unit, clock
        self._started_s = clock()
        self._next_s = self._started_s + FIRST_LINE_S

    def advance(self, done: int, doing: str = "") -> None:
        """Say how far it is, if it is time to."""
        now_s = self._clock()
        if now_s < self._next_s:
            return
        self._next_s = now_s + LINE_EVERY_S
        parts = [f"{self._title}:"]
        if self._unit:
            parts.append(f"{done:,}" + (f" of {self._total:,}" if self._total else ""))
            parts.append(self._unit)
        if doing:
            parts.append(doing)
        note(" ".join([*parts, f"({now_s - self._started_s:.0f} s)"]))
