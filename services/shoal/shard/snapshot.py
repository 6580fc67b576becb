"""How does a restarted shard server come back without building its segments again?

Each main segment is saved with its directory and the cursor that it reaches to: a data file named
after its checksum, and a manifest that names it, replaced atomically. A snapshot only ever saves
time: one that is damaged, of another format or of another codebook is ignored, and the shard is
built from the table.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError
from shoal.shard.codes import Codebook, sync_folder, write_synced
from shoal.shard.directory import RECORD, Directory
from shoal.shard.kernel import faiss
from shoal.shard.segment import ExactSegment, IvfPqSegment, Segment
from shoal.shard.shard import Main
from shoal.table.cursor import Cursor

_log = logging.getLogger(__name__)

FORMAT: Final = 1
_HASH_BLOCK_BYTES: Final = 1 << 22


class _Manifest(BaseModel):
    """What a snapshot is of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    file: str
    """Name of the data file."""
    sha256: str
    """Of the data file."""
    dimension: int
    codebook_sha256: str
    """Of the codebook that the codes were made with; empty for an exact segment."""
    cursor: str
    """JSON of the table's cursor."""


class SnapshotFolder:
    """The snapshots of one layout of an index, on this machine."""

    def __init__(self, root: Path, index_uid: str, index_version: int, shard_count: int) -> None:
        """root: of all snapshots of this instance."""
        self._folder = root / index_uid / f"v{index_version}-of-{shard_count}"

    def save(self, shard: int, main: Main) -> None:
        """Write a snapshot in the place of the one before. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        beside = self._folder / f".{uuid.uuid4().hex}"
        try:
            with beside.open("wb") as file:
                np.savez(file, **_arrays(main))
                file.flush()
                os.fsync(file.fileno())
            checksum = _sha256(beside)
            manifest = _Manifest(
                format=FORMAT,
                file=f"shard-{shard:04}-{checksum[:16]}.npz",
                sha256=checksum,
                dimension=_dimension(main.segment),
                codebook_sha256=_codebook_sha256(main.segment),
                cursor=main.cursor.to_json(),
            )
            beside.rename(self._folder / manifest.file)
            write_synced(beside, manifest.model_dump_json().encode())
            beside.rename(self._manifest_path(shard))
        finally:
            beside.unlink(missing_ok=True)
        sync_folder(self._folder)
        for path in self._folder.glob(f"shard-{shard:04}-*.npz"):
            if path.name != manifest.file:
                path.unlink(missing_ok=True)

    def load(self, shard: int, codebook: Codebook | None, dimension: int) -> Main | None:
        """Read a snapshot; None if there is none that can be used, which is logged."""
        path = self._manifest_path(shard)
        if not path.exists():
            return None
        try:
            return self._load(path, codebook, dimension)
        except (OSError, ValueError, KeyError, RuntimeError, ValidationError, EOFError) as error:
            _log.warning("ignoring the snapshot %s, building from the table: %s", path, error)
            return None

    def _load(self, path: Path, codebook: Codebook | None, dimension: int) -> Main:
        manifest = _Manifest.model_validate(json.loads(path.read_bytes()))
        expected = "" if codebook is None else codebook.manifest.sha256
        if (manifest.format, manifest.dimension, manifest.codebook_sha256) != (
            FORMAT,
            dimension,
            expected,
        ):
            raise ValueError("it is of another format, dimension or codebook")
        data = self._folder / Path(manifest.file).name
        if _sha256(data) != manifest.sha256:
            raise ValueError("it does not have the checksum that it was written with")
        with np.load(data) as arrays:
            ids = pa.LargeStringArray.from_buffers(
                len(arrays["records"]),
                pa.py_buffer(arrays["id_offsets"]),
                pa.py_buffer(arrays["id_bytes"]),
            )
            directory = Directory(arrays["records"].view(RECORD), ids, arrays["hashes"])
            return Main(_segment(arrays, codebook), directory, Cursor.from_json(manifest.cursor))

    def drop(self) -> None:
        """Remove the snapshots of a layout that is not held any more."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._folder.parent.rmdir()

    def _manifest_path(self, shard: int) -> Path:
        return self._folder / f"shard-{shard:04}.json"


def _arrays(main: Main) -> dict[str, Any]:
    ids = main.directory.ids
    # A slice shares its buffers with the whole: only one that starts at 0 can be written as it is.
    if ids.offset or len(ids) == 0:
        ids = pa.array(ids.to_pylist(), pa.large_string())
    offsets = np.zeros(1, np.int64)
    content = np.empty(0, np.uint8)
    if len(ids):
        offsets = np.frombuffer(ids.buffers()[1], dtype=np.int64)[: len(ids) + 1]
        content = np.frombuffer(ids.buffers()[2], dtype=np.uint8)[: offsets[-1]]
    arrays: dict[str, Any] = {
        "records": main.directory.records,
        "id_offsets": offsets,
        "id_bytes": content,
        "hashes": main.directory.hashes(),
    }
    if isinstance(main.segment, ExactSegment):
        return arrays | {"vectors": main.segment.vectors}
    return arrays | {
        "lists": faiss.serialize_index(main.segment.lists),
        "wide": main.segment.wide,
    }


def _segment(arrays: Any, codebook: Codebook | None) -> Segment:
    if codebook is None:
        return ExactSegment(arrays["vectors"])
    return IvfPqSegment(codebook, faiss.deserialize_index(arrays["lists"]), arrays["wide"])


def _dimension(segment: Segment) -> int:
    rows = segment.vectors if isinstance(segment, ExactSegment) else segment.wide
    return int(rows.shape[1])


def _codebook_sha256(segment: Segment) -> str:
    return segment.codebook.manifest.sha256 if isinstance(segment, IvfPqSegment) else ""


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
