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
UNWRITABLE: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}
)
# Lance hands errors of the operating system on as text, with their number.
_OS_ERROR: Final = re.compile(r"os error (\d+)")

# Of which only some are of a type of their own.
_CONFLICT: Final = "commit conflict"


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


class CommitConflictError(ServiceError):
    """Somebody else has changed the same files of a table first."""

    def __init__(self, uri: str, detail: str) -> None:
        """Detail: what Lance says of it."""
        super().__init__(
            Reason.REASON_VERSION_CONFLICT,
            f"the table at {uri} was changed meanwhile, so that nothing was done: try again "
            f"({detail})",
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
    """The versions of the index are not as the caller believed."""

    def __init__(self, message: str) -> None:
        """Message: what is otherwise, and what to do."""
        super().__init__(Reason.REASON_VERSION_CONFLICT, message)


class VersionNotFoundError(ServiceError):
    """The index has no such version."""

    def __init__(self, name: str, number: int, known: list[int]) -> None:
        """Known: numbers of those that it has."""
        have = ", ".join(map(str, known)) or "none"
        super().__init__(
            Reason.REASON_VERSION_NOT_FOUND,
            f"index {name!r} has no version {number}: it has {have}",
        )


class VersionNotReadyError(ServiceError):
    """The version cannot serve."""

    def __init__(self, name: str, number: int, state: str, detail: str) -> None:
        """State: of its build. Detail: why that failed; may be empty."""
        what = "is being built" if state == "building" else f"failed to be built: {detail}"
        remedy = "wait for it" if state == "building" else "build another one"
        super().__init__(
            Reason.REASON_VERSION_NOT_READY,
            f"version {number} of index {name!r} {what.rstrip('.')}: {remedy}",
        )


class BuildInProgressError(ServiceError):
    """A version of the index is being built."""

    def __init__(self, name: str, number: int) -> None:
        """Number: of the version."""
        super().__init__(
            Reason.REASON_BUILD_IN_PROGRESS,
            f"version {number} of index {name!r} is being built, and one is at a time: wait for it",
        )


class VersionServesError(ServiceError):
    """The version answers searches."""

    def __init__(self, name: str, number: int) -> None:
        """Number: of the version."""
        super().__init__(
            Reason.REASON_VERSION_SERVES,
            f"version {number} of index {name!r} serves: promote another one first",
        )


class SpaceNotFoundError(ServiceError):
    """The index has no such vector space."""

    def __init__(self, name: str, space: str, known: list[str]) -> None:
        """Known: names of those that it has beside the default one."""
        have = ", ".join(["default", *known])
        super().__init__(
            Reason.REASON_SPACE_NOT_FOUND,
            f"index {name!r} has no vector space {space!r}: it has {have}",
        )


class SpaceExistsError(ServiceError):
    """The index has a vector space of that name."""

    def __init__(self, name: str, space: str) -> None:
        """Space: its name."""
        super().__init__(
            Reason.REASON_SPACE_EXISTS,
            f"index {name!r} has a vector space {space!r} already: build another version of it, "
            "choose another name, or drop it first",
        )


class TooManySpacesError(ServiceError):
    """The index has as many vector spaces as it may have."""

    def __init__(self, name: str, known: list[str]) -> None:
        """Known: their names."""
        super().__init__(
            Reason.REASON_TOO_MANY_SPACES,
            f"index {name!r} has {len(known)} vector spaces beside the default one, as many as an "
            f"index may have: drop one of {', '.join(known)}",
        )


class VersionOfSpaceError(ServiceError):
    """The version belongs to a named vector space."""

    def __init__(self, name: str, number: int, space: str) -> None:
        """Space: its name."""
        super().__init__(
            Reason.REASON_VERSION_OF_SPACE,
            f"version {number} of index {name!r} is of its vector space {space!r}: it serves in "
            "that alone, as its newest, and goes with it: search the space, or drop the space",
        )


class NoPreviousVersionError(ServiceError):
    """There is nothing to roll back to."""

    def __init__(self, name: str) -> None:
        """Name: of the index."""
        super().__init__(
            Reason.REASON_NO_PREVIOUS_VERSION,
            f"index {name!r} has no version to roll back to: promote one by its number",
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
    if _CONFLICT in text.lower():
        return CommitConflictError(uri, text)
    found = _OS_ERROR.search(text)
    number = error.errno if isinstance(error, OSError) and error.errno else None
    if number is None and found is not None:
        number = int(found.group(1))
    if number in UNWRITABLE:
        return StorageFullError(uri, os.strerror(number))
    if number == errno.ENOENT or "not found" in text.lower():
        return TableNotFoundError(uri)
    return TableDamagedError(uri, text)
