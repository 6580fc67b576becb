"""What can go wrong with a snapshot, and which reason does a caller get for it?"""

from __future__ import annotations

from shoal.rpc.errors import ServiceError
from shoal.v1.errors_pb2 import Reason


class SnapshotNotFoundError(ServiceError):
    """There is no finished snapshot at that place."""

    def __init__(self, uri: str, *, unfinished: bool) -> None:
        """unfinished: one was begun there."""
        what = ", but an unfinished one" if unfinished else ""
        super().__init__(
            Reason.REASON_SNAPSHOT_NOT_FOUND,
            f"there is no snapshot at {uri}{what}: `shoal snapshots` lists those of a folder",
        )


class SnapshotExistsError(ServiceError):
    """The place of a snapshot is taken."""

    def __init__(self, uri: str, what: str) -> None:
        """What: is there."""
        super().__init__(
            Reason.REASON_SNAPSHOT_EXISTS,
            f"there is {what} at {uri}, and nothing is ever written over: name an empty place",
        )


class SnapshotDamagedError(ServiceError):
    """A file that is not what was written."""

    def __init__(self, file: str, detail: str, remedy: str) -> None:
        """Detail: what is wrong with it. Remedy: what to do."""
        super().__init__(Reason.REASON_CHECKSUM_MISMATCH, f"{file} {detail}: {remedy}")


class SnapshotFormatError(ServiceError):
    """A snapshot of a release to come."""

    def __init__(self, uri: str, detail: str) -> None:
        """Detail: what this release does not know."""
        super().__init__(
            Reason.REASON_SNAPSHOT_FORMAT,
            f"the snapshot at {uri} {detail}: restore it with the release that made it, or a later "
            "one",
        )


class StoreUnavailableError(ServiceError):
    """A place that cannot be reached."""

    def __init__(self, uri: str, detail: str) -> None:
        """Detail: what was found, or is lacking."""
        super().__init__(
            Reason.REASON_STORE_UNAVAILABLE, f"{uri} cannot be reached by the writer: {detail}"
        )


class CopyEndedError(Exception):
    """The copy was ended from outside: its caller has left, or the writer is stopping."""
