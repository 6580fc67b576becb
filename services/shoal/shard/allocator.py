"""How does memory that a job of the background has used get back to the system?

What is freed stays with the allocators, for the next who wants memory. A search takes as much every
time; a job takes a hundred times as much for seconds, and then nothing for minutes. A check of the
recall of a million vectors of 384 numbers left 190 MB behind.

glibc has many heaps, so that threads need not wait for each other, and a thread that comes to an
end leaves its to the next: https://sourceware.org/glibc/wiki/MallocInternals. `malloc_trim` gives
back what is free between what is used, but the free end of the first heap alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa


def _of_c_library(name: str) -> Callable[..., Any] | None:
    """A function of the C library; None where it has no such function, as only glibc's has."""
    return getattr(ctypes.CDLL(None), name, None)


_malloc_trim: Final = _of_c_library("malloc_trim")
_mallopt: Final = _of_c_library("mallopt")
# glibc's malloc.h.
_M_ARENA_MAX: Final = -8


def bound_heaps(count: int) -> None:
    """Let threads share so many heaps; else there are eight a core, each with a free end.

    Only before there are more than eight, so at the start of a process.
    """
    if _malloc_trim is not None and _mallopt is not None:
        _mallopt(_M_ARENA_MAX, count)


def give_back() -> None:
    """Give free memory of this process back to the system. Some milliseconds."""
    pa.default_memory_pool().release_unused()
    if _malloc_trim is not None:
        _malloc_trim(0)
