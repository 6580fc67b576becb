"""What can go wrong with stored data, and which reason does a caller get for it?"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from shoal.rpc.errors import ServiceError
from shoal.v1.errors_pb2 import Reason

# Storage that an operator must mend: full, over quota, read-only, not ours, or failing.
_UNWRITABLE: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}
)
# Lance hands errors of the operating system on as text, with their number.
_OS_ERROR: Final = re.compile(r"os error (\d+)")


class StorageFullError(ServiceError):
    """The storage is full, or cannot be written."""

    def __init__(self, uri: str, detail: str) -> None:
        """Detail: what the operating system said."""
        super().__init__(
            Reason.REASON_STORAGE_FULL,
            f"{uri} cannot be written: {detail}. Nothing that was acknowledged is lost. Free space "
            "or mend the storage, then send again what was not acknowledged",
        )


class TableNotFoundError(ServiceError):
    """There is no table at that place: it was dropped, or never made."""

    def __init__(self, uri: str) -> None:
        """Uri: where it was looked for."""
        super().__init__(Reason.REASON_INDEX_NOT_FOUND, f"there is no table at {uri}")


class TableDamagedError(ServiceError):
    """A table that cannot be read as one of ours."""

    def __init__(self, uri: str, detail: str) -> None:
        """Detail: what is wrong with it."""
        super().__init__(
            Reason.REASON_CHECKSUM_MISMATCH,
            f"the table at {uri} cannot be read: {detail}. Restore it from a copy",
        )


class CatalogueDamagedError(ServiceError):
    """The catalogue is missing where there is data, or is not what was written."""

    def __init__(self, path: str, detail: str) -> None:
        """Detail: what is wrong with it."""
        super().__init__(
            Reason.REASON_CHECKSUM_MISMATCH,
            f"the catalogue {path} {detail}. No data was touched: restore the file from a copy",
        )


class DataRootInUseError(OSError):
    """Another writer holds the data root."""


class IndexExistsError(ServiceError):
    """There is an index of that name."""

    def __init__(self, name: str) -> None:
        """Name: of the index."""
        super().__init__(
            Reason.REASON_INDEX_EXISTS,
            f"there is an index {name!r} already: choose another name, or drop it first",
        )


class IndexNotFoundError(ServiceError):
    """There is no such index."""

    def __init__(self, name: str) -> None:
        """Name: or uid, as asked for."""
        super().__init__(
            Reason.REASON_INDEX_NOT_FOUND, f"there is no index {name!r}: create it first"
        )


class VersionConflictError(ServiceError):
    """Another version of the index was published first."""

    def __init__(self, name: str, latest: int, wanted: int) -> None:
        """Latest: the version in force. Wanted: the one that was to be published."""
        super().__init__(
            Reason.REASON_VERSION_CONFLICT,
            f"index {name!r} is at version {latest}, so version {wanted} cannot follow: read the "
            "catalogue again and build on its version",
        )


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn what Lance and the operating system raise into the errors of this module."""
    try:
        yield
    except DataRootInUseError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise _translate(uri, error) from error


def _translate(uri: str, error: Exception) -> Exception:
    text = str(error)
    found = _OS_ERROR.search(text)
    number = error.errno if isinstance(error, OSError) and error.errno else None
    if number is None and found is not None:
        number = int(found.group(1))
    if number in _UNWRITABLE:
        return StorageFullError(uri, os.strerror(number))
    if number == errno.ENOENT or "not found" in text.lower():
        return TableNotFoundError(uri)
    return TableDamagedError(uri, text)
