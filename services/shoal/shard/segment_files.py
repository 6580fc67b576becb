"""Which files is a main segment, with its directory, stored in?

    segment     exact: vectors.npy
                ivf_pq: lists.bin (packed codes and ids), list_sizes.npy, wide.npy
    directory   records.npy, ids.arrow, sorted_hashes.npy, hash_order.npy, maybe row_order.npy
                and expiry_order.npy

All can be mapped: a shard that was read costs no memory until it is searched, and then the parts
that searches touch, which the system may take back. A further kind of segment is a further entry in
`_KINDS`; whatever else a directory keeps of a passage goes into `Directory.columns`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from shoal.shard.codes import Codebook
from shoal.shard.directory import RECORD, Directory
from shoal.shard.lists import map_lists, write_lists
from shoal.shard.segment import ExactSegment, IvfPqSegment, Segment
from shoal.shard.segment_folder import FolderReader, FolderWriter, SegmentDamagedError

_IDS: Final = "ids.arrow"
_LISTS: Final = "lists.bin"
_DIRECTORY_COLUMNS: Final = ("sorted_hashes", "hash_order", "row_order", "expiry_order")


@dataclass(frozen=True)
class _Kind:
    """How segments of one kind are stored."""

    type: type[Any]
    write: Callable[[Any, FolderWriter], None]
    read: Callable[[FolderReader, Codebook | None], Segment]


def kind_of(segment: Segment) -> str:
    """The name of a segment's kind, for its manifest."""
    return next(name for name, kind in _KINDS.items() if isinstance(segment, kind.type))


def write_segment(segment: Segment, writer: FolderWriter) -> None:
    """Write a segment's files. Raises OSError."""
    _KINDS[kind_of(segment)].write(segment, writer)


def read_segment(kind: str, reader: FolderReader, codebook: Codebook | None) -> Segment:
    """Read a segment's files, which were checked. Raises ValueError, OSError."""
    if kind not in _KINDS:
        raise ValueError(f"it is of the kind {kind}, which this release does not know")
    return _KINDS[kind].read(reader, codebook)


def write_directory(directory: Directory, writer: FolderWriter) -> None:
    """Write a directory's files. Raises OSError."""
    writer.array("records", directory.records)
    with writer.file(_IDS) as file:
        batch = pa.record_batch([directory.ids], names=["document_id"])
        with pa.ipc.new_file(file, batch.schema) as stream:
            stream.write_batch(batch)
    for name, column in directory.columns().items():
        writer.array(name, column)


def read_directory(reader: FolderReader) -> Directory:
    """Read a directory's files, which were checked. Raises ValueError, OSError."""
    path = reader.path(_IDS)
    try:
        source = pa.memory_map(str(path)) if reader.mapped else pa.BufferReader(path.read_bytes())
        ids = pa.ipc.open_file(source).get_batch(0).column(0)
    except pa.ArrowInvalid as error:
        raise SegmentDamagedError(path, f"cannot be read: {error}") from error
    columns = {name: reader.array(name) for name in _DIRECTORY_COLUMNS if reader.has_array(name)}
    records = reader.array("records")
    if records.dtype != RECORD:
        raise ValueError("its records are of another release")
    return Directory(records, ids, np.empty(0, np.uint64), columns)


def _write_exact(segment: ExactSegment, writer: FolderWriter) -> None:
    writer.array("vectors", segment.vectors)


def _read_exact(reader: FolderReader, codebook: Codebook | None) -> Segment:
    del codebook
    return ExactSegment(reader.array("vectors"))


def _write_ivf_pq(segment: IvfPqSegment, writer: FolderWriter) -> None:
    with writer.file(_LISTS) as file:
        sizes = write_lists(segment.lists, file)
    writer.array("list_sizes", sizes.astype(np.uint32))
    writer.array("wide", segment.wide)


def _read_ivf_pq(reader: FolderReader, codebook: Codebook | None) -> Segment:
    if codebook is None:
        raise ValueError("it needs a codebook")
    lists = codebook.new_lists()
    map_lists(lists, reader.path(_LISTS), reader.array("list_sizes").astype(np.int64))
    if not reader.mapped:
        lists = codebook.copy_of(lists)
    return IvfPqSegment(codebook, lists, reader.array("wide"))


_KINDS: Final = {
    "exact": _Kind(ExactSegment, _write_exact, _read_exact),
    "ivf_pq": _Kind(IvfPqSegment, _write_ivf_pq, _read_ivf_pq),
}
