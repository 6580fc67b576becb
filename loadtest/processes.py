"""How is a server process of the benchmark started, found and stopped?

Each prints the address that it took as the first line of its standard output. All of them share one
budget of threads, stated by the variables that numeric libraries read.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Final

STOP_TIMEOUT_S: Final = 30.0


class ServerProcess:
    """A process of this script's own, with its log in a file."""

    def __init__(self, arguments: Sequence[str], log: Path, *, threads: int) -> None:
        """Arguments: of the Python interpreter, such as `-m shoal.broker --listen 127.0.0.1:0`."""
        self._log = log
        self._command = [sys.executable, *arguments]
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(threads),
                text=True,
            )
        self._lines: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        # In a thread, so that waiting for a line can be given up.
        for line in stream:
            self._lines.put(line)
        self._lines.put("")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(self, line: str, timeout_s: float) -> str:
        """Write a line to its standard input and read the line that it answers with."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self.read_line(timeout_s)

    def read_line(self, timeout_s: float) -> str:
        """Read a line of its standard output, such as the address that it took.

        Raises SystemExit, with the end of its log, if it ended or says nothing in time.
        """
        try:
            line = self._lines.get(timeout=timeout_s)
        except Empty:
            line = ""
        if not line:
            self.stop()
            tail = self._log.read_text(encoding="utf-8", errors="replace")[-3000:]
            command = " ".join(self._command)
            raise SystemExit(f"{command} ended, or said nothing in {timeout_s:.0f} s:\n{tail}")
        return line.strip()

    def kill(self) -> None:
        """End it at once, as the machine might."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to stop, and wait; kill it if it does not."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _environment(threads: int) -> dict[str, str]:
    budget = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
    return dict(os.environ) | budget
