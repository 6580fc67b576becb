"""Which indexes are there, and where is the storage of each?

One JSON file at the data root, written by the writer alone and replaced as a whole: a catalogue is
small, and one file is either the old state or the new one. Storage that is being made or removed is
listed in it too, so that what a crash leaves behind is removed at the next start by name. Storage
that the file does not know is never touched: a lost catalogue must not become lost data.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

from shoal.filters.fields import Field, Kind
from shoal.table import durability, versions
from shoal.table.errors import (
    CatalogueDamagedError,
    DataRootInUseError,
    IndexExistsError,
    IndexNotFoundError,
    StorageFullError,
    storage_errors,
)
from shoal.table.manifest import write_failure
from shoal.table.trimming import Trimmed
from shoal.table.version_files import drop_outdated
from shoal.table.versions import RolloutRecord, VersionRecord
from shoal.v1.search_pb2 import SearchKind

_log = logging.getLogger(__name__)

FORMAT: Final = 1
FILE_NAME: Final = "catalogue.json"
LOCK_NAME: Final = "writer.lock"
INDEXES: Final = "indexes"
TABLE: Final = "table.lance"
VERSIONS: Final = "versions"
VECTORS: Final = "vectors"


@dataclass(frozen=True)
class IndexEntry:
    """An index in the catalogue."""

    name: str
    uid: str
    # Folder of its storage, relative to the data root.
    folder: str
    # `name@fingerprint`; empty while no encoder has written to it.
    encoder_model: str
    dimension: int
    create_time_ns: int
    request_id: str = ""
    # The version in force; 0 and empty for exact search.
    index_version: int = 0
    codebook_uri: str = ""
    # By number.
    versions: tuple[VersionRecord, ...] = ()
    # What a rollback puts in force; None if there is nothing.
    previous_version: int | None = None
    # Highest number that was ever given to a version.
    last_version: int = 0
    # Recall at 10 that versions are built to reach; 0 for the default.
    recall_target: float = 0.0
    # Kind that versions are built as, as the protos number it; 0 to choose.
    kind: int = 0
    # Of the documents' metadata, that searches can filter by.
    fields: tuple[Field, ...] = ()
    # True if nothing of its searches is kept to learn from.
    feedback_disabled: bool = False
    # A version on its way to serve; None if there is none.
    rollout: RolloutRecord | None = None
    # Whether the model that it was made with is gone: nothing is encoded by it, there is no version
    # 0, and `encoder_model` is empty.
    retired: bool = False


class Catalogue:
    """The indexes of a data root, held by one writer. Thread-safe; all methods block."""

    def __init__(self, root: Path) -> None:
        """Lock the data root, read the catalogue, and remove what a crash left behind.

        Raises DataRootInUseError, CatalogueDamagedError, StorageFullError.
        """
        self.root = root.resolve()
        self._guard = threading.RLock()
        self._entries: dict[str, IndexEntry] = {}
        self._transient: set[str] = set()
        # Names of indexes that are being restored.
        self._reserved: set[str] = set()
        with storage_errors(str(self.root)):
            (self.root / INDEXES).mkdir(parents=True, exist_ok=True)
            durability.sync_path(self.root.parent)
            self._lock = _lock(self.root / LOCK_NAME)
        try:
            self._load()
            self._sweep()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the data root."""
        self._lock.close()

    def entries(self) -> list[IndexEntry]:
        """All indexes, by name."""
        with self._guard:
            return [self._entries[name] for name in sorted(self._entries)]

    def get(self, name: str) -> IndexEntry:
        """The index of that name. Raises IndexNotFoundError."""
        with self._guard:
            entry = self._entries.get(name)
        if entry is None:
            raise IndexNotFoundError(name)
        return entry

    def table_uri(self, entry: IndexEntry) -> str:
        """Where the table of an index is."""
        return str(self.root / entry.folder / TABLE)

    def version_uri(self, entry: IndexEntry, index_version: int) -> str:
        """Folder for the files of a version of an index."""
        return str(self.root / entry.folder / VERSIONS / str(index_version))

    def vectors_root(self, entry: IndexEntry) -> Path:
        """Folder of the folders for what models have encoded, until the table takes it."""
        return self.root / entry.folder / VECTORS

    def vectors_uri(self, entry: IndexEntry, model: str) -> str:
        """Folder for what a model has encoded, until the table takes it."""
        fingerprint = model.rpartition("@")[2]
        assert fingerprint, model
        return str(self.vectors_root(entry) / fingerprint)

    def create(
        self,
        name: str,
        *,
        dimension: int,
        encoder_model: str,
        request_id: str,
        make_table: Callable[[str, int], Any],
        recall_target: float = 0.0,
        kind: int = 0,
        fields: tuple[Field, ...] = (),
        feedback_disabled: bool = False,
    ) -> IndexEntry:
        """Make a table with `make_table(uri, dimension)`, and enter it; durable when it returns.

        fields: that the table declares.

        Repeated with the same request id, it returns the entry of the first time.
        Raises IndexExistsError, StorageFullError.
        """
        with self._guard:
            existing = self._entries.get(name)
            if existing is not None:
                if request_id and existing.request_id == request_id:
                    return existing
                raise IndexExistsError(name)
            self._require_free(name)
            uid = uuid.uuid4().hex
            folder = f"{INDEXES}/{name}-{uid}"
            entry = IndexEntry(
                name,
                uid,
                folder,
                encoder_model,
                dimension,
                time.time_ns(),
                request_id,
                recall_target=recall_target,
                kind=kind,
                fields=fields,
                feedback_disabled=feedback_disabled,
            )
            self._save(self._entries, self._transient | {folder})
            try:
                with storage_errors(str(self.root)):
                    (self.root / folder / VERSIONS).mkdir(parents=True)
                make_table(self.table_uri(entry), dimension)
                self._save({**self._entries, name: entry}, self._transient - {folder})
            except BaseException:
                self._remove(folder)
                raise
            return entry

    def reserve(self, name: str) -> tuple[str, str]:
        """Make an empty folder for an index whose storage comes from elsewhere.

        Returns the uid that the index is to have, and the folder, relative to the data root. Then
        `enter` the index, or `release` the folder; a crash does the latter. Raises
        IndexExistsError, StorageFullError.
        """
        with self._guard:
            self._require_free(name)
            uid = uuid.uuid4().hex
            folder = f"{INDEXES}/{name}-{uid}"
            self._save(self._entries, self._transient | {folder})
            try:
                with storage_errors(str(self.root)):
                    (self.root / folder).mkdir()
            except BaseException:
                self._remove(folder)
                raise
            self._reserved.add(name)
            return uid, folder

    def enter(self, entry: IndexEntry) -> None:
        """Enter an index whose folder was reserved; durable on return. Raises StorageFullError."""
        with self._guard:
            assert entry.folder in self._transient, entry.folder
            assert entry.name not in self._entries, entry.name
            self._save({**self._entries, entry.name: entry}, self._transient - {entry.folder})
            self._reserved.discard(entry.name)

    def release(self, name: str, folder: str) -> None:
        """Remove a folder that was reserved, unless its index was entered."""
        with self._guard:
            if folder in self._transient:
                self._reserved.discard(name)
                self._remove(folder)

    def _require_free(self, name: str) -> None:
        if name in self._entries or name in self._reserved:
            raise IndexExistsError(name)

    def drop(self, name: str) -> IndexEntry:
        """Take an index out, then delete its storage. Raises IndexNotFoundError."""
        with self._guard:
            entry = self.get(name)
            rest = {key: value for key, value in self._entries.items() if key != name}
            self._save(rest, self._transient | {entry.folder})
            self._remove(entry.folder)
            return entry

    def update(
        self,
        uid: str,
        *,
        recall_target: float | None,
        kind: int | None,
        feedback_disabled: bool | None = None,
    ) -> IndexEntry:
        """Change what can be changed of an index; None leaves it. Raises IndexNotFoundError."""
        with self._guard:
            before = self._by_uid(uid)
            entry = replace(
                before,
                recall_target=before.recall_target if recall_target is None else recall_target,
                kind=before.kind if kind is None else kind,
                feedback_disabled=(
                    before.feedback_disabled if feedback_disabled is None else feedback_disabled
                ),
            )
            return before if entry == before else self._replace(entry)

    def record_model(self, uid: str, encoder_model: str) -> IndexEntry:
        """Record the encoder that an index is written with, unless one is recorded, or retired.

        Returns the entry with the model in force. Raises IndexNotFoundError.
        """
        with self._guard:
            entry = self._by_uid(uid)
            if entry.encoder_model or entry.retired:
                return entry
            return self._replace(replace(entry, encoder_model=encoder_model))

    def change_versions(self, uid: str, change: versions.Change) -> IndexEntry:
        """Change an index's versions by a function of `shoal.table.versions`; durable on return.

        Raises IndexNotFoundError, and what the function raises. Files that no version needs any
        more are removed.
        """
        with self._guard:
            before = self._by_uid(uid)
            entry = change(before)
            if entry != before:
                gone = {each.number for each in before.versions}
                gone -= {each.number for each in entry.versions}
                entry = self._replace(entry)
                for number in sorted(gone):
                    self._remove_version(entry, number)
            return entry

    def fail_version(self, uid: str, ended: VersionRecord) -> IndexEntry:
        """Enter that a build failed. Its files go first: they may be what the disk is full of."""
        with self._guard:
            entry = self._by_uid(uid)
            failed = versions.finish(entry, ended)
            if failed != entry:
                self._remove_version(entry, ended.number)
                folder = Path(self.version_uri(entry, ended.number))
                write_failure(folder, uid, ended.number, ended.message)
                failed = self._replace(failed)
            return failed

    def drop_outdated(self, uid: str, trimmed: Trimmed, *, held_out: bool) -> int:
        """Remove what nobody may load from the folders of an index's versions; returns bytes.

        See `shoal.table.version_files`. Raises IndexNotFoundError, StorageFullError.
        """
        with self._guard, storage_errors(str(self.root)):
            entry = self._by_uid(uid)
            self._sweep_versions(entry)
            return sum(
                drop_outdated(
                    Path(self.version_uri(entry, each.number)), trimmed, held_out=held_out
                )
                for each in entry.versions
                if each.state == "ready"
            )

    def _remove_version(self, entry: IndexEntry, number: int) -> None:
        folder = Path(self.version_uri(entry, number))
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            pass
        except OSError:
            _log.warning("cannot remove %s: the next start will", folder, exc_info=True)

    def _sweep_versions(self, entry: IndexEntry) -> None:
        """Remove what builds left behind that nobody waits for: it can be made again."""
        folder = self.root / entry.folder / VERSIONS
        known = {str(each.number) for each in entry.versions}
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in known:
                _log.warning("removing %s, which an interrupted build left behind", path)
                shutil.rmtree(path, ignore_errors=True)

    def _by_uid(self, uid: str) -> IndexEntry:
        for entry in self._entries.values():
            if entry.uid == uid:
                return entry
        raise IndexNotFoundError(uid)

    def _replace(self, entry: IndexEntry) -> IndexEntry:
        self._save({**self._entries, entry.name: entry}, self._transient)
        return entry

    def _load(self) -> None:
        path = self.root / FILE_NAME
        if not path.exists():
            if any((self.root / INDEXES).iterdir()):
                raise CatalogueDamagedError(str(path), "is missing, but there are indexes")
            self._save({}, set())
            return
        with storage_errors(str(path)):
            contents = path.read_bytes()
        self._entries, self._transient = _parse(path, contents)
        for entry in self._entries.values():
            if not (self.root / entry.folder / TABLE).is_dir():
                raise CatalogueDamagedError(
                    str(path), f"names index {entry.name!r}, whose folder {entry.folder} is missing"
                )
        self._report_unknown()

    def _report_unknown(self) -> None:
        known = {entry.folder for entry in self._entries.values()} | self._transient
        for path in (self.root / INDEXES).iterdir():
            if f"{INDEXES}/{path.name}" not in known:
                _log.warning("%s is in no catalogue: it is left alone", path)

    def _sweep(self) -> None:
        for folder in sorted(self._transient):
            _log.warning("removing %s, which a crash left behind", self.root / folder)
            self._remove(folder)
        for entry in self._entries.values():
            self._sweep_versions(entry)

    def _remove(self, folder: str) -> None:
        """Delete storage that no entry names; what cannot be deleted now is swept at a start."""
        try:
            shutil.rmtree(self.root / folder, ignore_errors=False)
        except FileNotFoundError:
            pass
        except OSError:
            _log.warning("cannot remove %s: the next start will", self.root / folder, exc_info=True)
            return
        try:
            self._save(self._entries, self._transient - {folder})
        except StorageFullError:
            _log.warning("cannot save the catalogue after removing %s", folder, exc_info=True)

    def _save(self, entries: dict[str, IndexEntry], transient: set[str]) -> None:
        """Write the catalogue; only then is it so in memory."""
        body = {
            "format": FORMAT,
            "entries": [asdict(entries[name]) for name in sorted(entries)],
            "transient": sorted(transient),
        }
        contents = json.dumps({"sha256": _digest(body), **body}, indent=1).encode()
        with storage_errors(str(self.root)):
            durability.write_atomically(self.root / FILE_NAME, contents)
        self._entries, self._transient = entries, transient


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _parse(path: Path, contents: bytes) -> tuple[dict[str, IndexEntry], set[str]]:
    try:
        body = json.loads(contents)
        stored = body.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CatalogueDamagedError(str(path), f"is not a catalogue ({error})") from error
    if body.get("format") != FORMAT:
        raise CatalogueDamagedError(
            str(path), f"has format {body.get('format')}, and this release reads {FORMAT}"
        )
    if _digest(body) != stored:
        raise CatalogueDamagedError(str(path), "does not have the checksum it was written with")
    try:
        entries = [_entry(each) for each in body["entries"]]
    except (TypeError, KeyError, ValueError) as error:
        raise CatalogueDamagedError(
            str(path), f"says more than this release knows, or less than it needs ({error})"
        ) from error
    return {entry.name: entry for entry in entries}, set(body["transient"])


def entry_of(stored: Mapping[str, Any]) -> IndexEntry:
    """An entry, from its fields as JSON has them. Raises TypeError for one of a later release."""
    return _entry(dict(stored))


def _entry(stored: dict[str, Any]) -> IndexEntry:
    records = tuple(_record(each) for each in stored.pop("versions", ()))
    fields = tuple(Field(each["name"], Kind(each["kind"])) for each in stored.pop("fields", ()))
    under_way = stored.pop("rollout", None)
    rollout = None if under_way is None else RolloutRecord(**under_way)
    entry = IndexEntry(**stored, versions=records, fields=fields, rollout=rollout)
    if entry.index_version and not records:
        # Made before versions were listed: all that is known of it is that it serves.
        record = VersionRecord(
            entry.index_version, "ready", 0, codebook_uri=entry.codebook_uri, promote=True
        )
        entry = replace(entry, versions=(record,), last_version=entry.index_version)
    return entry


def _record(stored: dict[str, Any]) -> VersionRecord:
    # Made before there were other kinds.
    only = SearchKind.SEARCH_KIND_IVF_PQ if stored["state"] == "ready" else 0
    return VersionRecord(**{"kind": only, **stored})


def _lock(path: Path) -> IO[str]:
    """Hold the data root until the file is closed, or the process has died.

    A lock of the kernel's, so that a killed writer leaves none behind.
    """
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise DataRootInUseError(
            f"the writer with process id {owner} holds {path.parent}: stop it first, or give this "
            "one another data root"
        ) from None
    file.seek(0)
    file.truncate()
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
