"""Where can a snapshot be kept, and when is what was put there safe?

In a folder of this machine, or wherever fsspec reaches: `s3://`, `gs://`, `az://`, `sftp://`, with
the package that each needs. An object store has a file once it is closed, as a whole. A folder has
it once it was synced, and the folders above it were, which `sync` does for all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, cast

import fsspec
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.table import durability
from shoal.table.errors import UNWRITABLE, StorageFullError
from shoal.table.snapshot_errors import CopyEndedError, StoreUnavailableError

MAX_URI_BYTES: Final = 2048
# Bytes of a file in memory while it is read.
BLOCK_BYTES: Final = 4 << 20


class Store:
    """A folder, wherever it is. All methods block; they raise StoreUnavailableError."""

    def __init__(self, uri: str, filesystem: Any, root: str) -> None:
        """Use `open_store`."""
        self.uri = uri
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self._local = durability.local_path(uri)

    def below(self, name: str) -> Store:
        """A folder in it."""
        return Store(f"{self.uri.rstrip('/')}/{name}", self._filesystem, f"{self._root}/{name}")

    def names(self) -> list[str]:
        """Names of what is directly in it, sorted; none if it is not there."""
        with self.errors():
            self._filesystem.invalidate_cache()
            try:
                found = self._filesystem.ls(self._root or "/", detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        names = (path.rstrip("/").rpartition("/")[2] for path in found)
        return sorted(name for name in names if name and name != self._root.rpartition("/")[2])

    def read(self, name: str) -> bytes | None:
        """A small file; None if it is not there."""
        with self.errors():
            try:
                return cast(bytes, self._filesystem.cat_file(self._path(name)))
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file as a whole: it is there with its content, durably, or not at all."""
        with self.errors(writing=True):
            if self._local is None:
                self._filesystem.pipe_file(self._path(name), content)
            else:
                self._local.mkdir(parents=True, exist_ok=True)
                durability.write_atomically(self._local / name, content)

    def blocks(self, name: str, missing: ServiceError) -> Iterator[bytes]:
        """Read a file in blocks. missing: raised if it is not there."""
        with self.errors():
            try:
                with self._filesystem.open(self._path(name), "rb") as file:
                    while block := file.read(BLOCK_BYTES):
                        yield block
            except (FileNotFoundError, NotADirectoryError):
                raise missing from None

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Write a file; on an object store it is there when the block ends."""
        with self.errors(writing=True):
            path = self._path(name)
            self._filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            with self._filesystem.open(path, "wb") as file:
                yield file
            if self._local is not None:
                durability.sync_path(self._local / name)

    def sync(self) -> None:
        """Wait until the names of all files are on the disk."""
        if self._local is not None:
            with self.errors(writing=True):
                sync_folders(self._local)

    def remove(self, names: list[str]) -> None:
        """Remove files and folders in it; those that are not there are no error."""
        with self.errors():
            for name in names:
                with suppress(FileNotFoundError):
                    self._filesystem.rm(self._path(name), recursive=True)

    def remove_if_empty(self) -> None:
        """Remove the folder itself, if a folder is anything here and it is empty."""
        if self._local is not None:
            with suppress(OSError):
                self._local.rmdir()

    @contextmanager
    def errors(self, *, writing: bool = False) -> Iterator[None]:
        """Turn what a file system raises into the errors of this package."""
        try:
            yield
        except (ServiceError, CopyEndedError):
            raise
        except OSError as error:
            raise _translate(self.uri, error, writing=writing) from error
        except Exception as error:  # each file system brings exceptions of its own
            raise StoreUnavailableError(self.uri, f"{type(error).__name__}: {error}") from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def local_store(folder: Path) -> Store:
    """A folder of this machine."""
    return Store(str(folder), fsspec.filesystem("file"), str(folder))


def open_store(uri: str, *, outside: Path) -> Store:
    """Open a place for snapshots; nothing is made there yet.

    outside: the data root, which is no place for them. Raises InvalidFieldError for what is no
    place, and StoreUnavailableError, which says what to install.
    """
    if not uri or len(uri.encode()) > MAX_URI_BYTES:
        raise InvalidFieldError("uri", f"must have 1 to {MAX_URI_BYTES} bytes")
    local = durability.local_path(uri)
    if local is not None:
        if not local.is_absolute():
            raise InvalidFieldError("uri", f"{uri!r} must be an absolute path, or a URL")
        if local.resolve().is_relative_to(outside.resolve()):
            raise InvalidFieldError("uri", "lies in the data root: keep snapshots elsewhere")
        return local_store(local)
    try:
        filesystem, root = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        raise StoreUnavailableError(
            uri, f"{error} (with pip, in the environment that the writer runs in)"
        ) from error
    except Exception as error:  # whatever a file system makes of its URL
        raise StoreUnavailableError(uri, str(error)) from error
    return Store(uri.rstrip("/"), filesystem, root)


def sync_folders(root: Path) -> None:
    """Wait until the names in a folder, in all below it and in all above it, are on the disk."""
    for folder, _, _ in os.walk(root):
        durability.sync_path(Path(folder))
    for above in root.parents:
        # One that may not be looked into was there before.
        with suppress(PermissionError):
            durability.sync_path(above)


def _translate(uri: str, error: OSError, *, writing: bool) -> ServiceError:
    if writing and error.errno in UNWRITABLE:
        return StorageFullError(uri, os.strerror(error.errno or 0))
    return StoreUnavailableError(uri, f"{type(error).__name__}: {error}")
