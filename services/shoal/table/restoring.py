"""How does an index come out of a snapshot, whole or not at all?

Into a new folder, which nobody knows until the catalogue names it. Files keep their names and their
contents; only the index's own identity differs, which a version's manifest and the folders of its
segments state.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from shoal.rpc.errors import ServiceError
from shoal.table.catalogue import TABLE as TABLE_FOLDER
from shoal.table.catalogue import VERSIONS, IndexEntry, entry_of
from shoal.table.copying import Copied, Copying, CopyJob, copy_files
from shoal.table.manifest import (
    ManifestDamagedError,
    VersionManifest,
    codebook_folder,
    read_manifest,
    write_manifest,
)
from shoal.table.snapshot_errors import SnapshotDamagedError, SnapshotFormatError
from shoal.table.snapshots import SNAPSHOT, TABLE, VERSION, SnapshotFile, SnapshotManifest
from shoal.table.stores import Store, local_store
from shoal.table.table import PassageTable

_REMEDY: Final = "nothing was restored; restore another snapshot"


@dataclass(frozen=True)
class Place:
    """Where an index is to be restored."""

    name: str
    uid: str
    # Relative to the data root.
    folder: str
    # Absolute; it is there, and empty.
    path: Path


def stored_entry(store: Store, manifest: SnapshotManifest) -> IndexEntry:
    """The index as it was in its catalogue. Raises SnapshotFormatError."""
    try:
        return entry_of(manifest.entry)
    except (TypeError, KeyError, ValueError) as error:
        raise SnapshotFormatError(
            store.uri, f"says more of the index than this release knows ({error})"
        ) from error


def restore_index(
    store: Store, manifest: SnapshotManifest, place: Place, copying: Copying
) -> IndexEntry:
    """Copy a snapshot's files to a place, and return the entry to be made; durable on return.

    What is left of one that fails, or is ended, is the caller's to remove. Raises
    SnapshotDamagedError, which names the file, SnapshotFormatError, CopyEndedError, and the errors
    of the stores and the table.
    """
    stored = stored_entry(store, manifest)
    entry = moved(stored, place)
    target = local_store(place.path)
    (place.path / TABLE_FOLDER / "data").mkdir(parents=True)
    (place.path / VERSIONS).mkdir()
    source = store.below(manifest.attempt)
    copying.begin("copying", manifest.size_bytes)
    known = {file.name: file for file in manifest.files}
    jobs = [_job(source, file, stored, entry) for file in manifest.files]

    def check(job: CopyJob, copied: Copied) -> None:
        file = known[job.source]
        if (copied.size_bytes, copied.xxh3) != (file.size_bytes, file.xxh3):
            raise SnapshotDamagedError(
                f"{source.uri}/{job.source}",
                "does not have the size and the checksum that it was written with",
                _REMEDY,
            )

    copy_files(source, target, jobs, copying, check)
    copying.begin("checking")
    if entry.codebook_uri:
        _rename_version(place.path / VERSIONS / str(entry.index_version), stored.uid, entry.uid)
    _check_table(store, manifest, place.path / TABLE_FOLDER)
    target.sync()
    return entry


def moved(stored: IndexEntry, place: Place) -> IndexEntry:
    """The entry of a snapshot, as that of an index of its own."""

    def codebook_uri(number: int) -> str:
        return str(codebook_folder(place.path / VERSIONS / str(number)))

    return replace(
        stored,
        name=place.name,
        uid=place.uid,
        folder=place.folder,
        create_time_ns=time.time_ns(),
        request_id="",
        codebook_uri=codebook_uri(stored.index_version) if stored.codebook_uri else "",
        versions=tuple(
            replace(each, codebook_uri=codebook_uri(each.number) if each.codebook_uri else "")
            for each in stored.versions
        ),
    )


def renamed(manifest: VersionManifest, uid: str) -> VersionManifest:
    """The same version, of an index of another identity: segments lie in folders of its name."""

    def rename(file: Any) -> Any:
        name = _with_uid(file.name, manifest.index_uid, uid)
        return file.model_copy(update={"name": name})

    segments = tuple(
        each.model_copy(update={"files": tuple(map(rename, each.files))})
        for each in manifest.segments
    )
    return manifest.model_copy(update={"index_uid": uid, "segments": segments})


def _job(source: Store, file: SnapshotFile, stored: IndexEntry, entry: IndexEntry) -> CopyJob:
    kind, _, name = file.name.partition("/")
    if kind not in (TABLE, VERSION) or not name or ".." in Path(name).parts:
        raise SnapshotDamagedError(
            f"{source.uri.rpartition('/')[0]}/{SNAPSHOT}",
            f"names {file.name}, which is no file of an index",
            _REMEDY,
        )
    target = f"{TABLE_FOLDER}/{name}"
    if kind == VERSION:
        target = f"{VERSIONS}/{stored.index_version}/{_with_uid(name, stored.uid, entry.uid)}"
    missing = SnapshotDamagedError(f"{source.uri}/{file.name}", "is missing", _REMEDY)
    return CopyJob(file.name, target, missing)


def _with_uid(name: str, old: str, new: str) -> str:
    return "/".join(new if part == old else part for part in name.split("/"))


def _rename_version(folder: Path, old: str, new: str) -> None:
    try:
        manifest = read_manifest(folder)
    except ManifestDamagedError as error:
        raise SnapshotDamagedError(str(folder), f"cannot be read ({error})", _REMEDY) from error
    if manifest.index_uid != old:
        raise SnapshotDamagedError(str(folder), f"is of index {manifest.index_uid}", _REMEDY)
    with local_store(folder).errors(writing=True):
        write_manifest(folder, renamed(manifest, new))


def _check_table(store: Store, manifest: SnapshotManifest, root: Path) -> None:
    """Have the table opened: every file is right, and now they must also belong together."""
    try:
        table = PassageTable.open(str(root))
        found = (table.version, table.row_count)
    except ServiceError as error:
        raise SnapshotDamagedError(store.uri, f"holds no table ({error})", _REMEDY) from error
    if found != (manifest.table_version, manifest.row_count):
        raise SnapshotDamagedError(
            store.uri, f"holds {found[1]} rows at version {found[0]}, and not what it says", _REMEDY
        )
