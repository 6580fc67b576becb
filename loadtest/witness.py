"""When was a processor taken away from the machine?

A virtual machine shares its host, which takes its processors away for tens of milliseconds now and
then. No query is answered meanwhile, whatever is asked of it. A process that the kernel runs before
all others (SCHED_FIFO, which needs root or CAP_SYS_NICE) sleeps for 5 ms at a time: hardly anything
on the machine keeps it from waking, so that if it wakes much too late its processor did not run.
It sees one processor at a time, and not why that was taken: a host may also do so as the machine is
busy. So what is left out for it is told beside the figures of all queries, and decides nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import numpy as np

_SLEEP_S: Final = 0.005
# From one waking to the next: if it is longer, the processor was taken away.
_LATE_S: Final = 0.015
# Standstills that are closer to each other than this are one: what queued up takes as long to
# be answered.
_DRAIN_S: Final = 0.25
# A query is seldom under way for longer. By when it was due it is left out, and not by what it
# took: else slow ones would be left out for being slow.
_UNDER_WAY_S: Final = 0.05


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
        if self._watches and self._process.returncode == 0:
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


def met_one(due_s: float, standstills: Sequence[Standstill]) -> bool:
    """True if what was due then fell into a standstill, or into what came of it."""
    return any(each.from_s - _UNDER_WAY_S < due_s < each.until_s for each in standstills)


def _watch() -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    gaps: list[tuple[float, float]] = []
    print("watching", flush=True)
    try:
        before_s = time.perf_counter()
        while True:
            time.sleep(_SLEEP_S)
            now_s = time.perf_counter()
            if now_s - before_s > _LATE_S:
                gaps.append((now_s, now_s - before_s))
            before_s = now_s
    finally:
        # Not before: nobody reads it until then.
        for gap in gaps:
            print(*gap)


if __name__ == "__main__":
    with suppress(PermissionError):
        _watch()
