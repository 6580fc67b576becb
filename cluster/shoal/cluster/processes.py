"""Which processes are there, and is one the process that it was?

A process number comes again; a number with the time at which its process started does not.
Linux only.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Process(BaseModel):
    """A process, told from a later one of the same number by when it started."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    parent_pid: int
    session_id: int
    start_ticks: int
    """Since the machine booted."""
    name: str


def session_members(session_id: int) -> tuple[Process, ...]:
    """List the processes of a session (`setsid`), by number."""
    numbers = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
    processes = [find_process(pid) for pid in sorted(numbers)]
    return tuple(each for each in processes if each is not None and each.session_id == session_id)


def find_process(pid: int) -> Process | None:
    """Look at a process; None if it has ended, reaped or not. Fields: proc_pid_stat(5)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    head, _, tail = stat.rpartition(")")
    fields = tail.split()
    if fields[0] in "ZX":
        return None
    return Process(
        pid=pid,
        parent_pid=int(fields[1]),
        session_id=int(fields[3]),
        start_ticks=int(fields[19]),
        name=head.partition("(")[2],
    )


def boot_id() -> str:
    """Name the machine's run: another after each boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def signal_all(processes: Sequence[Process], number: signal.Signals) -> None:
    """Send a signal to each that is still there."""
    for each in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each.pid, number)
