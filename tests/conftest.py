"""What every kind of test may use: a bounded number of threads, and nothing left behind."""

from __future__ import annotations

import atexit
import os
import sys

import pytest

# Before anything imports the libraries that read it: tests share their machine.
os.environ.setdefault("OMP_NUM_THREADS", "2")

_status = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep what the process is to end with."""
    session.config.stash[_status] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End the process, once everything is said, without tearing the libraries down.

    One process has Ray, Lance, gRPC, FAISS, ONNX Runtime and torch here, as no service has, and
    threads of theirs run on while others' static objects are destroyed: after 2,115 tests had
    passed, that ended with a segmentation fault once. What is to be done at exit is done.
    """
    if _status in config.stash:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_status])
