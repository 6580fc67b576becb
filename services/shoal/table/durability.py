"""What of a commit has reached the disk?

Lance syncs nothing (pylance 14.0.2, traced: data, transaction and manifest are written, renamed or
linked, and left to the page cache). That survives the death of any process, not a power cut. So on
a local file system the files and folders of a commit are synced here, data before the manifest that
names it, and the commit is acknowledged after that. Object stores acknowledge what is durable.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

_log = logging.getLogger(__name__)

_MANIFEST_MAGIC: Final = b"LANC"
_LARGEST_VERSION: Final = 2**64 - 1


def local_path(uri: str) -> Path | None:
    """The folder that a URI names on this machine; None for an object store."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if "://" in uri else Path(uri)


def sync_path(path: Path) -> None:
    """Wait until a file's contents, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_data(root: Path, names: Iterable[str]) -> None:
    """Sync data files of a table, and the folder that lists them."""
    for name in names:
        sync_path(root / "data" / name)
    sync_path(root / "data")


def sync_manifest(root: Path, version: int) -> None:
    """Sync the manifest of a version, and the folders that list it and its transaction.

    The transaction's contents also stand in the manifest, and the hint of the latest version is
    only a hint, so neither file is synced.
    """
    sync_path(_manifest_path(root, version))
    sync_path(root / "_versions")


def sync_new_table(root: Path, version: int) -> None:
    """Sync a table just made, and the folders above it as far as they may be new."""
    # Lance makes this folder at the first append, which would leave its name unsynced.
    (root / "data").mkdir(exist_ok=True)
    sync_manifest(root, version)
    for folder in (root, root.parent, root.parent.parent):
        sync_path(folder)


def write_atomically(path: Path, contents: bytes) -> None:
    """Replace a file: after a crash it holds the old contents or the new, and nothing between."""
    scratch = path.with_name(f".{path.name}.new")
    try:
        with scratch.open("wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def remove_torn_manifests(root: Path) -> list[int]:
    """Remove the latest manifests that a power cut left unfinished; return their versions.

    A manifest is synced before its commit is acknowledged, so one without its ending belongs to a
    commit that nobody was told of. Only the writer may call this.
    """
    removed: list[int] = []
    # Names count down from the largest version, so the latest sorts first.
    for path in sorted((root / "_versions").glob("*.manifest"), key=lambda each: int(each.stem)):
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - len(_MANIFEST_MAGIC)))
            if file.read() == _MANIFEST_MAGIC:
                break
        version = _LARGEST_VERSION - int(path.stem)
        _log.warning("removed version %d of %s: its commit was cut short", version, root)
        path.unlink()
        removed.append(version)
    if removed:
        sync_path(root / "_versions")
    return removed


def _manifest_path(root: Path, version: int) -> Path:
    return root / "_versions" / f"{_LARGEST_VERSION - version:020}.manifest"
