"""When did the machine itself stand still?

A virtual machine shares its host: its processors are taken away for tens of milliseconds now and
then, mostly when it has been busy. No query is answered meanwhile, whatever is asked of it. A
process that the kernel runs before all others (SCHED_FIFO, which needs root or CAP_SYS_NICE) sleeps
for 5 ms at a time: whatever is on the machine does not keep it from waking, so that if it wakes
much too late nothing ran.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import numpy as np

_SLEEP_S: Final = 0.005
# Later than that, and the processor was taken away.
_LATE_S: Final = 0.015
# Standstills that are closer to each other than this are one: what queued up takes as long to
# be answered.
_DRAIN_S: Final = 0.25


class Standstill(NamedTuple):
    """A time in which the machine stood still, and queues that came of it. Monotonic seconds."""

    from_s: float
    until_s: float


class Witness:
    """Watches the machine while the block lasts."""

    def __init__(self) -> None:
        """Nothing is watched yet."""
        self.standstills: list[Standstill] | None = None
        """Known after the block; None if it may not run before all others."""

    def __enter__(self) -> Witness:
        command = [sys.executable, "-m", "loadtest.witness"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        # A line once it watches; the end if it may not.
        self._watches = bool(self._process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        said, _ = self._process.communicate()
        if self._watches:
            late = np.array(said.split(), dtype=np.float64).reshape(-1, 2).tolist()
            self.standstills = merged((woke_s - gap_s, woke_s) for woke_s, gap_s in late)


def merged(gaps: Iterable[tuple[float, float]]) -> list[Standstill]:
    """Put gaps that follow upon each other together, and what drains after the last one."""
    found: list[Standstill] = []
    for from_s, until_s in gaps:
        if found and from_s < found[-1].until_s:
            found[-1] = found[-1]._replace(until_s=until_s + _DRAIN_S)
        else:
            found.append(Standstill(from_s, until_s + _DRAIN_S))
    return found


def met_one(from_s: float, until_s: float, standstills: Sequence[Standstill]) -> bool:
    """True if something that lasted so long fell into a standstill, in part at least."""
    return any(from_s < each.until_s and until_s > each.from_s for each in standstills)


def _watch() -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    print("watching", flush=True)
    before_s = time.perf_counter()
    while True:
        time.sleep(_SLEEP_S)
        now_s = time.perf_counter()
        if now_s - before_s > _LATE_S:
            print(now_s, now_s - before_s, flush=True)
        before_s = now_s


if __name__ == "__main__":
    with suppress(PermissionError):
        _watch()
