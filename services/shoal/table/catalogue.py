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
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

from shoal.table import durability
from shoal.table.errors import (
    CatalogueDamagedError,
    DataRootInUseError,
    IndexExistsError,
    IndexNotFoundError,
    StorageFullError,
    VersionConflictError,
    storage_errors,
)

_log = logging.getLogger(__name__)

FORMAT: Final = 1
FILE_NAME: Final = "catalogue.json"
LOCK_NAME: Final = "writer.lock"
INDEXES: Final = "indexes"
TABLE: Final = "table.lance"
VERSIONS: Final = "versions"


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
    # 0 and empty before the first codebook.
    index_version: int = 0
    codebook_uri: str = ""


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
        """Folder for the codebook of a version of an index."""
        return str(self.root / entry.folder / VERSIONS / str(index_version))

    def create(
        self,
        name: str,
        *,
        dimension: int,
        encoder_model: str,
        request_id: str,
        make_table: Callable[[str, int], Any],
    ) -> IndexEntry:
        """Make a table with `make_table(uri, dimension)`, and enter it; durable when it returns.

        Repeated with the same request id, it returns the entry of the first time.
        Raises IndexExistsError, StorageFullError.
        """
        with self._guard:
            existing = self._entries.get(name)
            if existing is not None:
                if request_id and existing.request_id == request_id:
                    return existing
                raise IndexExistsError(name)
            uid = uuid.uuid4().hex
            folder = f"{INDEXES}/{name}-{uid}"
            entry = IndexEntry(
                name, uid, folder, encoder_model, dimension, time.time_ns(), request_id
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

    def drop(self, name: str) -> IndexEntry:
        """Take an index out, then delete its storage. Raises IndexNotFoundError."""
        with self._guard:
            entry = self.get(name)
            rest = {key: value for key, value in self._entries.items() if key != name}
            self._save(rest, self._transient | {entry.folder})
            self._remove(entry.folder)
            return entry

    def record_model(self, uid: str, encoder_model: str) -> IndexEntry:
        """Record the encoder that an index is written with, unless one is recorded already.

        Returns the entry with the model in force. Raises IndexNotFoundError.
        """
        with self._guard:
            entry = self._by_uid(uid)
            if entry.encoder_model:
                return entry
            return self._replace(replace(entry, encoder_model=encoder_model))

    def publish(self, uid: str, index_version: int, codebook_uri: str) -> IndexEntry:
        """Enter the next version of an index; repeating it changes nothing.

        Raises IndexNotFoundError; VersionConflictError unless it follows the one in force.
        """
        with self._guard:
            entry = self._by_uid(uid)
            if (entry.index_version, entry.codebook_uri) == (index_version, codebook_uri):
                return entry
            if index_version != entry.index_version + 1:
                raise VersionConflictError(entry.name, entry.index_version, index_version)
            return self._replace(
                replace(entry, index_version=index_version, codebook_uri=codebook_uri)
            )

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
    entries = [IndexEntry(**each) for each in body["entries"]]
    return {entry.name: entry for entry in entries}, set(body["transient"])


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
