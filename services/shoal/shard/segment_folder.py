"""How are files written as a whole, and known to be what was written?

A folder of files and a manifest that names each with its size and checksum. It is written beside
its place, synced, and renamed into it: it is there as a whole or not at all. The checksums are
xxh3, of 64 bits: they are there to find what a disk or a copy damaged, not what somebody forged,
and are read at 12 GB/s, where SHA-256 takes a restart's whole time at 1.8.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from shoal.rpc.errors import ServiceError
from shoal.shard.codes import sync_folder, write_synced
from shoal.shard.pace import pause, waiting
from shoal.v1.errors_pb2 import Reason

MANIFEST: Final = "manifest.json"
# Of a folder that is being written; the rest is random.
UNFINISHED: Final = ".unfinished-"
_BLOCK_BYTES: Final = 1 << 20
# Bytes that are written and hashed at once: some milliseconds.
_PIECE_BYTES: Final = 4 << 20


class SegmentDamagedError(ServiceError):
    """A file of a segment that is missing, or not what was written."""

    def __init__(self, path: Path, detail: str) -> None:
        """path: of the file. Detail: what is wrong with it."""
        super().__init__(Reason.REASON_CHECKSUM_MISMATCH, f"{path} {detail}")


class StoredFile(BaseModel):
    """A file as it was written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    xxh3: str
    """Sixteen hexadecimal digits."""


class _Envelope(BaseModel):
    """What a manifest file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    content: dict[str, Any]
    files: dict[str, StoredFile]
    xxh3: str
    """Of content and files, as JSON with sorted keys and no spaces."""


class HashedFile:
    """A file that is being written."""

    def __init__(self, path: Path) -> None:
        """Make it; it must not be there."""
        self._file = path.open("xb")
        self._digest = xxhash.xxh3_64()
        self._bytes = self._since_pause = 0

    def write(self, content: Any, /) -> int:
        """Write bytes, or what can be looked at as bytes."""
        view = memoryview(content).cast("B")
        for start in range(0, view.nbytes, _PIECE_BYTES):
            piece = view[start : start + _PIECE_BYTES]
            self._file.write(piece)
            self._digest.update(piece)
            self._since_pause += piece.nbytes
            if self._since_pause >= _PIECE_BYTES:
                self._since_pause = 0
                pause()
        self._bytes += view.nbytes
        return view.nbytes

    @property
    def closed(self) -> bool:
        """Arrow asks."""
        return self._file.closed

    def flush(self) -> None:
        """Arrow asks; what counts is `finish`."""

    def close(self) -> None:
        """Close it, whether it is finished or not."""
        self._file.close()

    def finish(self) -> StoredFile:
        """Wait until it is on disk."""
        with waiting():
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        return StoredFile(bytes=self._bytes, xxh3=self._digest.hexdigest())


class FolderWriter:
    """Writes the files of a folder."""

    def __init__(self, folder: Path) -> None:
        """folder: it is there, and empty."""
        self.folder = folder
        self.files: dict[str, StoredFile] = {}

    @contextmanager
    def file(self, name: str) -> Iterator[HashedFile]:
        """Write one file. Raises OSError."""
        assert name not in self.files
        file = HashedFile(self.folder / name)
        try:
            yield file
            self.files[name] = file.finish()
        finally:
            file.close()

    def array(self, name: str, array: NDArray[Any]) -> None:
        """Write an array as NumPy's own format. Raises OSError."""
        with self.file(f"{name}.npy") as file:
            np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


class FolderReader:
    """Reads the files of a folder that was checked."""

    def __init__(self, folder: Path, files: Mapping[str, StoredFile], *, mapped: bool) -> None:
        """mapped: map files into memory; else read them."""
        self._folder, self._files = folder, files
        self.mapped = mapped

    def path(self, name: str) -> Path:
        """A file's path. Raises SegmentDamagedError if the manifest does not know it."""
        if name not in self._files:
            raise SegmentDamagedError(self._folder / MANIFEST, f"does not name {name}")
        return self._folder / name

    def has(self, name: str) -> bool:
        """True if there is a file of this name."""
        return name in self._files

    def has_array(self, name: str) -> bool:
        """True if there is an array of this name."""
        return f"{name}.npy" in self._files

    def array(self, name: str) -> NDArray[Any]:
        """An array; read-only if it is mapped."""
        path = self.path(f"{name}.npy")
        try:
            array = np.load(path, mmap_mode="r" if self.mapped else None, allow_pickle=False)
        except ValueError as error:
            raise SegmentDamagedError(path, f"cannot be read: {error}") from error
        # Not as np.memmap, whose every slice and selection is slower.
        return np.asarray(array).view(np.ndarray)


@contextmanager
def published(folder: Path, content: Mapping[str, Any]) -> Iterator[FolderWriter]:
    """Write a folder; it is in its place when the block ends. Raises OSError.

    folder: not there yet; the one that it is in is. content: goes into the manifest, and may be
    filled until the block ends.
    """
    beside = folder.with_name(f"{UNFINISHED}{folder.name}-{uuid.uuid4().hex}")
    beside.mkdir()
    try:
        writer = FolderWriter(beside)
        yield writer
        envelope: dict[str, Any] = {
            "content": dict(content),
            "files": {name: file.model_dump() for name, file in writer.files.items()},
        }
        envelope["xxh3"] = _xxh3(envelope)
        write_synced(beside / MANIFEST, json.dumps(envelope, indent=1).encode())
        sync_folder(beside)
        beside.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def read_manifest(folder: Path) -> tuple[dict[str, Any], dict[str, StoredFile]]:
    """Read what a folder holds, and check its files' sizes. Raises SegmentDamagedError."""
    path = folder / MANIFEST
    try:
        stored = json.loads(path.read_bytes())
        envelope = _Envelope.model_validate(stored)
    except (OSError, ValueError, ValidationError) as error:
        raise SegmentDamagedError(path, f"cannot be read: {error}") from error
    if _xxh3({"content": stored["content"], "files": stored["files"]}) != envelope.xxh3:
        raise SegmentDamagedError(path, "does not have the checksum that it was written with")
    for name, file in envelope.files.items():
        _check_size(folder / Path(name).name, file)
    return envelope.content, envelope.files


def check_files(folder: Path, files: Mapping[str, StoredFile]) -> None:
    """Compare all files with their checksums: 0.1 s a gigabyte that the system has in memory.

    Raises SegmentDamagedError. Reads them rather than mapping them, so that what is checked does
    not count as memory that the process holds.
    """
    block = memoryview(bytearray(_BLOCK_BYTES))
    for name, stored in files.items():
        path = folder / name
        digest = xxhash.xxh3_64()
        try:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(block):
                    digest.update(block[:count])
                    pause()
        except OSError as error:
            raise SegmentDamagedError(path, f"cannot be read: {error}") from error
        if digest.hexdigest() != stored.xxh3:
            raise SegmentDamagedError(path, "does not have the checksum that it was written with")


def _check_size(path: Path, stored: StoredFile) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise SegmentDamagedError(path, f"cannot be read: {error}") from error
    if size != stored.bytes:
        raise SegmentDamagedError(path, f"has {size} bytes, and {stored.bytes} were written")


def _xxh3(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_64_hexdigest(text.encode())
