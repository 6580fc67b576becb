"""How does long work in the background leave a core to searches?

By taking turns and by resting, not by a lower priority: a thread that runs Python holds the
interpreter's lock, and one that Linux seldom lets run would hold it while every search waits.
Measured with two busy cores: threads at nice 8 and 19 made searches wait for up to a second, and a
shard that was put together while recall was checked made them wait for a sixth of one.

So at any time one thread of the background works, in pieces of some milliseconds. It rests after
each for as long as it took, at most 50 ms, and whoever waits for a turn has it meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

# A search that comes meanwhile finds the core free; longer would only draw the work out.
_LONGEST_REST_S: Final = 0.05

_turn = threading.Lock()
_mine = threading.local()


class Pace:
    """Has a thread rest for as long as it has worked; asked every few milliseconds of work."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Work begins now. clock: monotonic, in seconds."""
        self._clock, self._sleep = clock, sleep
        self.begin()

    def begin(self) -> None:
        """Work begins now."""
        self._since_s = self._clock()

    def rest(self) -> None:
        """Rest for what was worked since the last rest, 50 ms at most."""
        self._sleep(min(self._clock() - self._since_s, _LONGEST_REST_S))
        self.begin()


@contextmanager
def turns(pace: Pace | None = None) -> Iterator[None]:
    """Work in turns with all others that do, and rest wherever `pause` is called.

    For what runs in a thread of the background while others are searched. pace: None: one's own.
    """
    with _turn:
        _mine.pace = pace or Pace()
        try:
            yield
        finally:
            del _mine.pace


def in_turns() -> bool:
    """True within `turns`, in its thread."""
    return getattr(_mine, "pace", None) is not None


def pause() -> None:
    """Give up one's turn, rest, and take it again. Nothing outside of `turns`."""
    with waiting() as pace:
        if pace is not None:
            pace.rest()


@contextmanager
def waiting() -> Iterator[Pace | None]:
    """Give up one's turn while a disk or a store is waited for. Nothing outside of `turns`."""
    pace: Pace | None = getattr(_mine, "pace", None)
    if pace is None:
        yield None
        return
    _turn.release()
    try:
        yield pace
    finally:
        _turn.acquire()
        # To wait is not to work.
        pace.begin()
