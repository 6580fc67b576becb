"""What is in the folder of an index version?

    versions/<number>/
        manifest.json           this module's: what the version is, and every file of it
        codebook/               what all shards share (shoal.shard.codes)
        segments/shard-0000/    the main segment of a shard (shoal.shard.snapshot)

A version never changes once its manifest says READY. The manifest is written last, and with each
file's size and checksum, so that a file which is missing, cut short or altered is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from enum import StrEnum
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from shoal.table import durability

_log = logging.getLogger(__name__)

FORMAT: Final = 1
FILE_NAME: Final = "manifest.json"
CODEBOOK: Final = "codebook"
SEGMENTS: Final = "segments"
# In the codebook's folder: vectors of passages, for measurements while the version is built.
HELD_OUT: Final = "held-out.npz"
_HASH_BLOCK_BYTES: Final = 1 << 22


class ManifestDamagedError(Exception):
    """A version's folder that is not what was published; the message says which file and why."""


class ManifestState(StrEnum):
    """What the version can do."""

    BUILDING = "BUILDING"
    READY = "READY"
    FAILED = "FAILED"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredFile(_Frozen):
    """A file of a version."""

    name: str
    """Path below the version's folder, with slashes."""
    size_bytes: int = Field(ge=0)
    sha256: str


class SegmentEntry(_Frozen):
    """The main segment of a shard."""

    shard: int = Field(ge=0)
    document_count: int
    passage_count: int
    table_version: int
    """Version of the table that it holds; its cursor is stored with it."""
    sequence: int = -1
    """Highest sequence that it holds; -1 in manifests of older releases, which do not say."""
    files: tuple[StoredFile, ...]
    """None once they were removed, as deletions that it lacks are forgotten, or purged."""


class SearchParameters(_Frozen):
    """How the version is searched for up to so many results."""

    top_k: int
    nprobe: int
    refine_factor: int
    ef_search: int = 0


class VersionManifest(_Frozen):
    """What a version of an index is."""

    format: int = FORMAT
    index_uid: str
    index_version: int
    state: ManifestState
    message: str = ""
    """Why it failed."""
    encoder_model: str = ""
    """`name@fingerprint`; empty for callers' own vectors."""
    dimension: int = 0
    table_version: int = 0
    """The lowest that any of its segments holds."""
    document_count: int = 0
    passage_count: int = 0
    kind: str = "ivf-pq"
    """How its segments are searched (shoal.shard.kind_names)."""
    codebook_sha256: str = ""
    codebook: tuple[StoredFile, ...] = ()
    search_parameters: tuple[SearchParameters, ...] = ()
    recall: float = 0.0
    """Recall at 10 of the encoded segments, on held-out vectors, against exact search."""
    recall_target: float = 0.0
    shard_count: int = 0
    segments: tuple[SegmentEntry, ...] = ()
    """One for each shard, by number."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, the manifest left out."""
        files = [*self.codebook, *(file for each in self.segments for file in each.files)]
        return sum(file.size_bytes for file in files)


def segment_folder(version_folder: Path, shard: int) -> Path:
    """Where the segment of a shard is."""
    return version_folder / SEGMENTS / f"shard-{shard:04}"


def codebook_folder(version_folder: Path) -> Path:
    """Where the codebook is."""
    return version_folder / CODEBOOK


def version_folder_of(codebook_uri: str) -> Path | None:
    """The folder of the version that a codebook belongs to; None if it is not in one."""
    folder = durability.local_path(codebook_uri)
    if folder is None or folder.name != CODEBOOK:
        return None
    return folder.parent


def describe_files(folder: Path, root: Path) -> tuple[StoredFile, ...]:
    """Size and checksum of every file below a folder, named relative to `root`."""
    return tuple(
        StoredFile(
            name=path.relative_to(root).as_posix(),
            size_bytes=path.stat().st_size,
            sha256=sha256_of(path),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


def sha256_of(path: Path) -> str:
    """Checksum of a file's contents. About 1.5 s for 1 GiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def check_files(root: Path, files: tuple[StoredFile, ...], hashed_up_to_bytes: int) -> None:
    """Compare files with what was published. Raises ManifestDamagedError, naming the file.

    hashed_up_to_bytes: larger ones are only measured, for readers that verify them as they load.
    """
    for file in files:
        path = root / file.name
        try:
            size_bytes = path.stat().st_size
            if size_bytes != file.size_bytes:
                raise ManifestDamagedError(
                    f"{path} has {size_bytes} bytes, and was published with {file.size_bytes}"
                )
            if size_bytes <= hashed_up_to_bytes and sha256_of(path) != file.sha256:
                raise ManifestDamagedError(
                    f"{path} does not have the checksum that it was published with"
                )
        except OSError as error:
            raise ManifestDamagedError(f"{path} cannot be read: {error}") from error


def write_manifest(folder: Path, manifest: VersionManifest) -> None:
    """Write the manifest; durable on return. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = manifest.model_dump_json(indent=1).encode()
    durability.write_atomically(folder / FILE_NAME, contents)


def write_failure(folder: Path, index_uid: str, index_version: int, message: str) -> None:
    """Leave word of a failed build, as far as the disk takes it."""
    failed = VersionManifest(
        index_uid=index_uid,
        index_version=index_version,
        state=ManifestState.FAILED,
        message=message,
    )
    with contextlib.suppress(OSError):
        write_manifest(folder, failed)


def read_manifest(folder: Path) -> VersionManifest:
    """Read what a version is. Raises ManifestDamagedError."""
    path = folder / FILE_NAME
    try:
        manifest = VersionManifest.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise ManifestDamagedError(f"{path} cannot be read: {error}") from error
    if manifest.format > FORMAT:
        raise ManifestDamagedError(
            f"{path} has format {manifest.format}, and this release reads {FORMAT}"
        )
    return manifest
