"""What is a snapshot of an index, and how is one taken, found and read?

    <place>/
        unfinished.json     whose turn it is while one is being made
        <attempt>/          named by chance, so that no two attempts write to the same files
            table/...       the files of one version of the table, as they are
            version/...     the files of the index version in force, if there is one
        snapshot.json       written last: what the snapshot is, its attempt, and every file of it

Files are copied byte by byte and under their names, so that rows keep their ids and fragments their
numbers, by which segments name them. Nothing is a snapshot before `snapshot.json` says so.

Two clusters may be given the same place. Who comes later writes `unfinished.json`, then looks for
`snapshot.json`; who finishes writes `snapshot.json`, then looks at `unfinished.json`. So at least
one of them sees the other and gives up, and nobody takes away what another one has finished.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from shoal.rpc.errors import ServiceError
from shoal.table import schema, versions
from shoal.table.catalogue import IndexEntry
from shoal.table.copying import Copied, Copying, CopyJob, copy_files
from shoal.table.errors import IndexNotFoundError, VersionConflictError
from shoal.table.manifest import (
    FILE_NAME,
    ManifestDamagedError,
    ManifestState,
    read_manifest,
    version_folder_of,
)
from shoal.table.present import present_rows
from shoal.table.slots import SLOT_COUNT
from shoal.table.snapshot_errors import (
    SnapshotDamagedError,
    SnapshotExistsError,
    SnapshotFormatError,
    SnapshotNotFoundError,
)
from shoal.table.stores import Store, local_store
from shoal.table.table import PassageTable

_log = logging.getLogger(__name__)

FORMAT: Final = 1
SNAPSHOT: Final = "snapshot.json"
UNFINISHED: Final = "unfinished.json"
TABLE: Final = "table"
VERSION: Final = "version"
_ATTEMPT: Final = r"[0-9a-f]{32}"
# What a crash leaves of the two files while they are written (durability.write_atomically).
_SCRATCH: Final = (f".{SNAPSHOT}.new", f".{UNFINISHED}.new")
# Rows whose ids are in memory at a time while documents are counted.
COUNTED_ROWS: Final = 1_000_000

_RESTORE_ANOTHER: Final = "restore another snapshot"


class SnapshotFile(BaseModel):
    """A file of a snapshot."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Path below the attempt's folder, with slashes."""
    size_bytes: int = Field(ge=0)
    xxh3: str
    """128 bits, 32 hexadecimal digits: against what a disk or a copy damages."""


class SnapshotManifest(BaseModel):
    """What a snapshot is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    attempt: str = Field(pattern=f"^{_ATTEMPT}$")
    """Folder of its files at the snapshot's place."""
    create_time_ns: int
    entry: dict[str, Any]
    """The index in the catalogue, with the version in force as its only one."""
    table_version: int
    row_count: int
    document_count: int
    passage_count: int
    files: tuple[SnapshotFile, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, the manifest left out."""
        return sum(file.size_bytes for file in self.files)


class Taken(BaseModel):
    """A snapshot, and where it is."""

    model_config = ConfigDict(frozen=True)

    uri: str
    manifest: SnapshotManifest


def take_snapshot(
    entry: IndexEntry, table: PassageTable, store: Store, copying: Copying
) -> SnapshotManifest:
    """Copy an index to a place. If it fails, or is ended, nothing is left there.

    table: stands at the version to take, which stays for as long as this takes. entry: as it was
    before that version was chosen, as segments may not be ahead of their table. Raises
    SnapshotExistsError, CopyEndedError, VersionConflictError, SnapshotDamagedError,
    IndexNotFoundError, and the store's errors.
    """
    claim = begin(store, entry.name)
    target = store.below(claim.attempt)
    try:
        manifest = _copy(entry, table, target, claim.attempt, copying)
        target.sync()
        copying.check()
        _finish(store, claim, seal(manifest))
    except BaseException:
        with suppress(ServiceError):
            _withdraw(store, claim)
        raise
    # The manifest counts; what is left of the beginning misleads nobody.
    with suppress(ServiceError):
        store.remove([UNFINISHED])
    return manifest


@dataclass(frozen=True)
class Claim:
    """An attempt to take a snapshot somewhere."""

    # Folder of its files, which no other attempt has.
    attempt: str
    # What `unfinished.json` says while nobody else has begun.
    mark: bytes


def begin(store: Store, name: str) -> Claim:
    """Begin a snapshot at a place, instead of an unfinished one. Raises SnapshotExistsError."""
    found = store.names()
    if SNAPSHOT in found:
        raise SnapshotExistsError(store.uri, "a snapshot")
    others = [each for each in found if each not in (*_SCRATCH, UNFINISHED)]
    strange = [each for each in others if not re.fullmatch(_ATTEMPT, each)]
    if strange or (others and UNFINISHED not in found):
        raise SnapshotExistsError(store.uri, f"something else ({(strange or others)[0]})")
    attempt = uuid.uuid4().hex
    mark = {"index": name, "begin_time_ns": time.time_ns(), "attempt": attempt}
    claim = Claim(attempt, json.dumps(mark).encode())
    store.write(UNFINISHED, claim.mark)
    if store.read(SNAPSHOT) is not None:
        # It was finished between the two looks, and its files are not to be touched.
        store.remove([UNFINISHED])
        raise SnapshotExistsError(store.uri, "a snapshot")
    store.remove([*others, *_SCRATCH])
    return claim


def _finish(store: Store, claim: Claim, sealed: bytes) -> None:
    """Say that an attempt is the snapshot. Raises SnapshotExistsError if it was displaced."""
    displaced = SnapshotExistsError(store.uri, "another snapshot that was begun meanwhile")
    if store.read(UNFINISHED) != claim.mark or store.read(SNAPSHOT) is not None:
        raise displaced
    store.write(SNAPSHOT, sealed)
    if store.read(UNFINISHED) != claim.mark:
        # Whoever has begun may have taken the files away.
        if store.read(SNAPSHOT) == sealed:
            store.remove([SNAPSHOT])
        raise displaced


def _withdraw(store: Store, claim: Claim) -> None:
    """Take away what is left of an attempt, and nothing of anybody else's."""
    store.remove([claim.attempt])
    if store.read(UNFINISHED) == claim.mark:
        store.remove([UNFINISHED])
    store.remove_if_empty()


def find_snapshots(store: Store, count: int, after: str = "") -> tuple[list[Taken], str]:
    """Some of the finished snapshots at a place: the place itself, or the folders in it, by name.

    Returns up to `count`, and what to give as `after` for those that come next; empty if none do.
    What cannot be read as a snapshot is left out, which is logged.
    """
    found = store.names()
    if SNAPSHOT in found:
        return [Taken(uri=store.uri, manifest=read_snapshot(store))], ""
    rest = [name for name in found if name > after]
    taken: list[Taken] = []
    for name in rest:
        if len(taken) == count:
            return taken, taken[-1].uri.rpartition("/")[2]
        below = store.below(name)
        try:
            taken.append(Taken(uri=below.uri, manifest=read_snapshot(below)))
        except SnapshotNotFoundError:
            continue
        except ServiceError as error:
            _log.warning("%s", error)
    return taken, ""


def read_snapshot(store: Store) -> SnapshotManifest:
    """Read what a snapshot is.

    Raises SnapshotNotFoundError, SnapshotDamagedError, SnapshotFormatError.
    """
    content = store.read(SNAPSHOT)
    if content is None:
        raise SnapshotNotFoundError(store.uri, unfinished=store.read(UNFINISHED) is not None)
    name = f"{store.uri}/{SNAPSHOT}"
    try:
        envelope = json.loads(content)
        body, stored = envelope["snapshot"], envelope["xxh3"]
        made_as = int(body["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise SnapshotDamagedError(name, f"cannot be read ({error})", _RESTORE_ANOTHER) from error
    if made_as > FORMAT:
        raise SnapshotFormatError(
            store.uri, f"has format {made_as}, and this release reads {FORMAT}"
        )
    if _checksum(body) != stored:
        raise SnapshotDamagedError(
            name, "does not have the checksum that it was written with", _RESTORE_ANOTHER
        )
    try:
        return SnapshotManifest.model_validate(body)
    except ValidationError as error:
        raise SnapshotFormatError(
            store.uri, f"is not as this release knows it ({error})"
        ) from error


def seal(manifest: SnapshotManifest) -> bytes:
    """The contents of `snapshot.json`, with their checksum."""
    body = manifest.model_dump(mode="json")
    return json.dumps({"snapshot": body, "xxh3": _checksum(body)}, indent=1).encode()


def _checksum(body: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())


def _copy(
    entry: IndexEntry, table: PassageTable, store: Store, attempt: str, copying: Copying
) -> SnapshotManifest:
    copying.begin("looking at what is there")
    folder = _version_folder(entry)
    version_files = [] if folder is None else _files_of(folder)
    table_files = table.files()
    root = Path(table.uri)
    try:
        copying.total_bytes = sum(path.stat().st_size for path in version_files) + sum(
            (root / name).stat().st_size for name in table_files
        )
    except FileNotFoundError:
        raise IndexNotFoundError(entry.name) from None
    files: list[SnapshotFile] = []
    if folder is not None:
        # First, as nothing keeps it: a version may be dropped once another one is in force.
        files += _copy_version(entry, folder, version_files, store, copying)
    files += _copy_table(entry, root, table_files, store, copying)
    copying.begin("counting documents")
    documents, passages = _count_present(table, copying)
    return SnapshotManifest(
        attempt=attempt,
        create_time_ns=time.time_ns(),
        entry=asdict(_narrowed(entry)),
        table_version=table.version,
        row_count=table.row_count,
        document_count=documents,
        passage_count=passages,
        files=tuple(sorted(files, key=lambda file: file.name)),
    )


def _copy_version(
    entry: IndexEntry, folder: Path, paths: Iterable[Path], store: Store, copying: Copying
) -> list[SnapshotFile]:
    copying.begin(f"copying version {entry.index_version}")
    manifest = read_manifest(folder)
    segments = [file for each in manifest.segments for file in each.files]
    expected = {file.name: file.sha256 for file in (*manifest.codebook, *segments)}
    dropped = VersionConflictError(
        f"version {entry.index_version} of index {entry.name!r} was dropped while it was copied: "
        "take the snapshot again"
    )
    names = [path.relative_to(folder).as_posix() for path in paths]
    files: list[SnapshotFile] = []

    def check(job: CopyJob, copied: Copied) -> None:
        if expected.get(job.source, copied.sha256) != copied.sha256:
            raise SnapshotDamagedError(
                str(folder / job.source),
                "does not have the checksum that it was published with",
                "build and promote another version, then take the snapshot again",
            )
        files.append(_file(job, copied))

    jobs = [CopyJob(name, f"{VERSION}/{name}", dropped, with_sha256=True) for name in names]
    copy_files(local_store(folder), store, jobs, copying, check)
    if not expected.keys() <= set(names):
        raise dropped
    return files


def _copy_table(
    entry: IndexEntry, root: Path, names: Iterable[str], store: Store, copying: Copying
) -> list[SnapshotFile]:
    copying.begin("copying the table")
    dropped = IndexNotFoundError(entry.name)
    files: list[SnapshotFile] = []
    jobs = [CopyJob(name, f"{TABLE}/{name}", dropped) for name in names]
    copy_files(
        local_store(root), store, jobs, copying, lambda job, each: files.append(_file(job, each))
    )
    return files


def _file(job: CopyJob, copied: Copied) -> SnapshotFile:
    return SnapshotFile(name=job.target, size_bytes=copied.size_bytes, xxh3=copied.xxh3)


def _version_folder(entry: IndexEntry) -> Path | None:
    """Where the files of the version in force are; None for exact search, which has none."""
    if entry.index_version == versions.EXACT or not entry.codebook_uri:
        return None
    folder = version_folder_of(entry.codebook_uri)
    remedy = "build and promote another version, or version 0, then take the snapshot again"
    if folder is None:
        raise SnapshotDamagedError(entry.codebook_uri, "belongs to no published version", remedy)
    try:
        state = read_manifest(folder).state
    except ManifestDamagedError as error:
        raise SnapshotDamagedError(str(folder), f"cannot be copied ({error})", remedy) from error
    if state is not ManifestState.READY:
        raise SnapshotDamagedError(str(folder / FILE_NAME), f"says {state}", remedy)
    return folder


def _files_of(folder: Path) -> list[Path]:
    # Names that begin with a dot are of files that are being written, and may go any moment.
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")
    )


def _narrowed(entry: IndexEntry) -> IndexEntry:
    """The entry with the version in force alone: others have no files in the snapshot."""
    kept = tuple(each for each in entry.versions if each.number == entry.index_version)
    return replace(entry, versions=kept, previous_version=None, request_id="", rollout=None)


def _count_present(table: PassageTable, copying: Copying) -> tuple[int, int]:
    """Documents and passages that can be found at the table's version."""
    columns = (schema.DOCUMENT_ID, schema.SEQUENCE, schema.TOMBSTONE)
    parts = min(SLOT_COUNT, 1 + table.row_count // COUNTED_ROWS)
    bounds = [SLOT_COUNT * part // parts for part in range(parts + 1)]
    documents = passages = 0
    for first, end in pairwise(bounds):
        copying.check()
        slots = None if parts == 1 else (first, end)
        present = present_rows(table.scan(columns, slots=slots))
        if present is not None:
            passages += present.num_rows
            documents += len(present.column(schema.DOCUMENT_ID).unique())
    return documents, passages
