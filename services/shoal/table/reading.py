"""How is a whole version of a table read while its old versions are removed?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from shoal.table.errors import TableNotFoundError
from shoal.table.table import PassageTable

_R = TypeVar("_R")

# A version lives for minutes, unless documents are purged: each purge takes all old versions away.
ATTEMPTS: Final = 8


def read_whole(table: PassageTable, read: Callable[[], _R]) -> _R:
    """Read with `read`, and once more from the latest version whenever the one read was removed.

    read: reads from `table`, and keeps nothing of an attempt that failed. Raises TableNotFoundError
    after a bounded number of attempts.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return read()
        except TableNotFoundError:
            table.refresh()
    return read()
