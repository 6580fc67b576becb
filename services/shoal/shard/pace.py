"""How does long work in the background leave a core to searches?

By resting, not by a lower priority: a thread that runs Python holds the interpreter's lock, and one
that Linux seldom lets run would hold it while every search waits. Measured with two busy cores:
threads at nice 8 and 19 made searches wait for up to a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# A search that comes meanwhile finds the core free; longer would only draw the work out.
_LONGEST_REST_S: Final = 0.05


class Pace:
    """Has a thread rest for as long as it has worked; asked every few milliseconds of work."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Work begins now. clock: monotonic, in seconds."""
        self._clock, self._sleep = clock, sleep
        self._since_s = clock()

    def rest(self) -> None:
        """Rest for what was worked since the last rest, 50 ms at most."""
        self._sleep(min(self._clock() - self._since_s, _LONGEST_REST_S))
        self._since_s = self._clock()
