"""How are many files copied, so that it disturbs nobody, is known to be right, and can be ended?

In blocks, by a few threads that give way to everything else on the machine; checksums are taken of
what passes through. A copy that is ended, or fails, ends after the block that it is at.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import xxhash
from shoal.rpc.errors import ServiceError
from shoal.table.snapshot_errors import CopyEndedError
from shoal.table.stores import Store

# Files at a time: enough to hide the way to an object store.
COPY_THREADS: Final = 4
# A tenth of the processor time of a thread that answers queries, where there is none to spare.
_PATIENT_NICE: Final = 10


class Copying:
    """How far a copy is, and whether to go on. Any thread may look."""

    def __init__(self) -> None:
        """Nothing is done yet."""
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self.stage = "waiting"
        self.total_bytes = 0
        self.done_bytes = 0

    def begin(self, stage: str, total_bytes: int | None = None) -> None:
        """Say what is being done now. Raises CopyEndedError."""
        self.check()
        self.stage = stage
        if total_bytes is not None:
            self.total_bytes = total_bytes

    def advance(self, count: int) -> None:
        """Say that so many bytes more were copied. Raises CopyEndedError."""
        self.check()
        with self._lock:
            self.done_bytes += count

    def end(self) -> None:
        """Have it end soon."""
        self._ended.set()

    def check(self) -> None:
        """Raises CopyEndedError if it was ended."""
        if self._ended.is_set():
            raise CopyEndedError


@dataclass(frozen=True)
class Copied:
    """What passed through a copy."""

    size_bytes: int
    # 32 hexadecimal digits.
    xxh3: str
    # Empty unless it was asked for.
    sha256: str


@dataclass(frozen=True)
class CopyJob:
    """A file to copy."""

    # Name in the store that it comes from, and in the one that it goes to.
    source: str
    target: str
    # What is raised if it is not there.
    missing: ServiceError
    with_sha256: bool = False


def copy_files(
    source: Store,
    target: Store,
    jobs: Sequence[CopyJob],
    copying: Copying,
    check: Callable[[CopyJob, Copied], None],
) -> None:
    """Copy files, a few at a time; the first failure ends the others.

    check: called, in a thread, with what was copied of each. Raises CopyEndedError, what the stores
    raise, and what `check` does.
    """
    failed = threading.Event()

    def copy(job: CopyJob) -> None:
        if failed.is_set():
            return
        try:
            check(job, _copy_file(source, target, job, copying, failed))
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(COPY_THREADS, "copy", initializer=give_way) as executor:
        futures = [executor.submit(copy, job) for job in jobs]
    errors = [error for each in futures if (error := each.exception()) is not None]
    # The failure itself, rather than what it has ended.
    for error in sorted(errors, key=lambda error: isinstance(error, CopyEndedError)):
        raise error


def _copy_file(
    source: Store, target: Store, job: CopyJob, copying: Copying, failed: threading.Event
) -> Copied:
    fast, slow, size_bytes = xxhash.xxh3_128(), hashlib.sha256(), 0
    with target.writing(job.target) as file:
        for block in source.blocks(job.source, job.missing):
            if failed.is_set():
                raise CopyEndedError
            file.write(block)
            fast.update(block)
            if job.with_sha256:
                slow.update(block)
            size_bytes += len(block)
            copying.advance(len(block))
    return Copied(size_bytes, fast.hexdigest(), slow.hexdigest() if job.with_sha256 else "")


def give_way() -> None:
    """Let every other thread of the machine go first: a priority is a thread's own on Linux."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _PATIENT_NICE)
