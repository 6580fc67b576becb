"""Where are the main segments of a layout stored, and which of them can be used?

    v3-of-4/shard-0002.000017/     the files of shard 2 and their manifest

Each save is a new folder of a higher number; those before it are removed, and whoever has them
mapped keeps them until he lets go. A stored segment only ever saves time: one that is damaged, of
another format or of another codebook is refused, which is logged, and the shard is made otherwise.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError
from shoal.rpc.errors import ServiceError
from shoal.shard.codes import Codebook
from shoal.shard.segment import ExactSegment, Segment
from shoal.shard.segment_files import (
    kind_name,
    read_directory,
    read_postings,
    read_segment,
    write_directory,
    write_postings,
    write_segment,
)
from shoal.shard.segment_folder import (
    UNFINISHED,
    FolderReader,
    check_files,
    published,
    read_manifest,
)
from shoal.shard.shard import Main
from shoal.table.cursor import Cursor

_log = logging.getLogger(__name__)

# 3: passages expire.
FORMAT: Final = 3
_NAME: Final = re.compile(r"shard-(\d{4})\.(\d{6,})")
_LAYOUT: Final = re.compile(r"v(\d+)-of-(\d+)")


class _Content(BaseModel):
    """What a stored segment is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    kind: str
    dimension: int
    count: int
    """Passages."""
    codebook_sha256: str
    """Of the codebook that the codes were made with; empty for an exact segment."""
    cursor: str
    """JSON of the table's cursor: everything up to it is in here."""


class SnapshotFolder:
    """The stored segments of one layout of an index."""

    def __init__(self, root: Path, index_uid: str, index_version: int, shard_count: int) -> None:
        """root: of all that is stored, of any index."""
        self._folder = root / index_uid / f"v{index_version}-of-{shard_count}"

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self._folder

    def save(self, shard: int, main: Main) -> None:
        """Store a segment in the place of the one before. Raises OSError, and then that stays.

        One process at a time may save a shard.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        before = self._stored(shard)
        for path in self._folder.glob(f"{UNFINISHED}shard-{shard:04}.*"):
            shutil.rmtree(path, ignore_errors=True)
        number = 1 + max(before, default=0)
        content = _Content(
            format=FORMAT,
            kind=kind_name(main.segment),
            dimension=_dimension(main.segment),
            count=main.segment.count,
            codebook_sha256=_codebook_sha256(main.segment),
            cursor=main.cursor.to_json(),
        )
        place = self._folder / f"shard-{shard:04}.{number:06}"
        with published(place, content.model_dump()) as writer:
            write_segment(main.segment, writer)
            write_directory(main.directory, writer)
            write_postings(main.postings, writer)
        for path in before.values():
            shutil.rmtree(path, ignore_errors=True)

    def shards(self) -> set[int]:
        """Shards of which there is a segment."""
        return {shard for shard, _, _ in self._listed()}

    def open(
        self, shard: int, codebook: Codebook | None, dimension: int, *, mapped: bool, check: bool
    ) -> Main | None:
        """Read the latest segment of a shard; None if there is none.

        mapped: leave it in its files; for files of this machine only, as a remote one that is
        removed meanwhile would be missed. check: compare the checksums.
        Raises SegmentDamagedError, which names the file; ValueError if it is of another format,
        dimension or codebook; OSError.
        """
        stored = self._stored(shard)
        if not stored:
            return None
        folder = stored[max(stored)]
        fields, files = read_manifest(folder)
        try:
            content = _Content.model_validate(fields)
        except ValidationError as error:
            raise ValueError(f"{folder} is of another format: {error}") from error
        expected = (FORMAT, dimension, "" if codebook is None else codebook.manifest.sha256)
        if (content.format, content.dimension, content.codebook_sha256) != expected:
            raise ValueError(f"{folder} is of another format, dimension or codebook")
        if check:
            check_files(folder, files)
        reader = FolderReader(folder, files, mapped=mapped)
        segment = read_segment(content.kind, reader, codebook)
        directory = read_directory(reader)
        postings = read_postings(reader)
        counts = {segment.count, directory.count, content.count}
        if postings is not None:
            counts.add(postings.count)
        if len(counts) > 1:
            raise ValueError(f"{folder} holds other counts than its manifest says")
        return Main(segment, directory, Cursor.from_json(content.cursor), postings)

    def load(
        self,
        shard: int,
        codebook: Codebook | None,
        dimension: int,
        *,
        mapped: bool = True,
        on_refusal: Callable[[str], None] | None = None,
    ) -> Main | None:
        """Read and check a segment; None if there is none that can be used, which is logged.

        on_refusal: called with the reason if there is one that cannot.
        """
        try:
            return self.open(shard, codebook, dimension, mapped=mapped, check=True)
        except (ServiceError, OSError, ValueError, KeyError, RuntimeError) as error:
            problem = f"the stored segment is refused: {error}"
        _log.warning("shard %d of %s: %s", shard, self._folder, problem)
        if on_refusal is not None:
            on_refusal(problem)
        return None

    def drop(self) -> None:
        """Remove the segments of a layout that is not held any more."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._folder.parent.rmdir()

    def _stored(self, shard: int) -> dict[int, Path]:
        return {number: path for each, number, path in self._listed() if each == shard}

    def _listed(self) -> list[tuple[int, int, Path]]:
        try:
            names = [(path, _NAME.fullmatch(path.name)) for path in self._folder.iterdir()]
        except OSError:
            return []
        return [(int(name[1]), int(name[2]), path) for path, name in names if name is not None]


def layouts_of(root: Path, index_uid: str, index_version: int) -> dict[int, SnapshotFolder]:
    """What is stored of a version of an index, by the number of shards."""
    try:
        names = [_LAYOUT.fullmatch(path.name) for path in (root / index_uid).iterdir()]
    except OSError:
        return {}
    counts = [int(name[2]) for name in names if name is not None and int(name[1]) == index_version]
    return {count: SnapshotFolder(root, index_uid, index_version, count) for count in counts}


def _dimension(segment: Segment) -> int:
    rows = segment.vectors if isinstance(segment, ExactSegment) else segment.wide
    return int(rows.shape[1])


def _codebook_sha256(segment: Segment) -> str:
    return "" if isinstance(segment, ExactSegment) else segment.codebook.manifest.sha256
