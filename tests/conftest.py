"""What every kind of test may use: a bounded number of threads, and nothing left behind."""

from __future__ import annotations

import os

# Before anything imports the libraries that read it: tests share their machine.
os.environ.setdefault("OMP_NUM_THREADS", "2")
