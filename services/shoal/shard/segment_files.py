"""Which files is a main segment, with its directory, stored in?

    segment     exact: vectors.npy
                kinds with lists: lists.bin (packed codes and ids), list_sizes.npy, maybe wide.npy
                hnsw: graph.faiss
    directory   records.npy, ids.arrow, sorted_hashes.npy, hash_order.npy, maybe row_order.npy
                and expiry_order.npy; of declared metadata, fields.arrow
    postings    terms.npy, term_offsets.npy, posting_positions.npy, posting_frequencies.npy,
                lengths.npy: none of them if the table has no terms

All can be mapped: a shard that was read costs no memory until it is searched, and then the parts
that searches touch, which the system may take back. Coded segments are written by their kind
(`shoal.shard.kinds`); whatever else a directory keeps of a passage goes into `Directory.columns`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
from shoal.shard.codes import Codebook
from shoal.shard.directory import RECORD, Directory
from shoal.shard.field_columns import FieldColumns
from shoal.shard.kinds import kind_of
from shoal.shard.postings import EMPTY_POSTINGS, Postings
from shoal.shard.segment import ExactSegment, Segment
from shoal.shard.segment_folder import FolderReader, FolderWriter, SegmentDamagedError

_IDS: Final = "ids.arrow"
_FIELDS: Final = "fields.arrow"
_EXACT: Final = "exact"
# Row ids are not in segments of older releases, which had them in the records alone.
_DIRECTORY_COLUMNS: Final = (
    "row_ids",
    "sorted_hashes",
    "hash_order",
    "row_order",
    "expiry_order",
)


def kind_name(segment: Segment) -> str:
    """The name of a segment's kind, for its manifest."""
    if isinstance(segment, ExactSegment):
        return _EXACT
    return _file_name(segment.codebook)


def write_segment(segment: Segment, writer: FolderWriter) -> None:
    """Write a segment's files. Raises OSError."""
    if isinstance(segment, ExactSegment):
        writer.array("vectors", segment.vectors)
    else:
        kind_of(segment.codebook).write(segment, writer)


def read_segment(kind: str, reader: FolderReader, codebook: Codebook | None) -> Segment:
    """Read a segment's files, which were checked. Raises ValueError, OSError, RuntimeError."""
    if codebook is None:
        if kind != _EXACT:
            raise ValueError(f"it is of the kind {kind}, which needs a codebook")
        return ExactSegment(reader.array("vectors"))
    if kind != _file_name(codebook):
        raise ValueError(
            f"it is of the kind {kind}, and its codebook is for {_file_name(codebook)}"
        )
    return kind_of(codebook).read(reader, codebook)


def _file_name(codebook: Codebook) -> str:
    return codebook.manifest.kind.replace("-", "_")


def write_directory(directory: Directory, writer: FolderWriter) -> None:
    """Write a directory's files. Raises OSError."""
    writer.array("records", directory.records)
    with writer.file(_IDS) as file:
        batch = pa.record_batch([directory.ids], names=["document_id"])
        with pa.ipc.new_file(file, batch.schema) as stream:
            stream.write_batch(batch)
    if directory.fields is not None:
        with (
            writer.file(_FIELDS) as file,
            pa.ipc.new_file(file, directory.fields.rows.schema) as stream,
        ):
            stream.write_batch(directory.fields.rows)
    for name, column in directory.columns().items():
        writer.array(name, column)


def read_directory(reader: FolderReader) -> Directory:
    """Read a directory's files, which were checked. Raises ValueError, OSError."""
    ids = _read_batch(reader, _IDS).column(0)
    fields = FieldColumns(_read_batch(reader, _FIELDS)) if reader.has(_FIELDS) else None
    columns = {name: reader.array(name) for name in _DIRECTORY_COLUMNS if reader.has_array(name)}
    records = reader.array("records")
    if records.dtype != RECORD:
        raise ValueError("its records are of another release")
    return Directory(records, ids, np.empty(0, np.uint64), columns, fields)


def write_postings(postings: Postings | None, writer: FolderWriter) -> None:
    """Write the files of postings, if there are any. Raises OSError."""
    if postings is not None:
        for name, column in postings.columns().items():
            writer.array(name, column)


def read_postings(reader: FolderReader) -> Postings | None:
    """Read the files of postings, which were checked; None if there are none.

    Raises ValueError, OSError.
    """
    names = EMPTY_POSTINGS.columns()
    if not reader.has_array(next(iter(names))):
        return None
    return Postings.of_columns({name: reader.array(name) for name in names})


def _read_batch(reader: FolderReader, name: str) -> Any:
    path = reader.path(name)
    try:
        source = pa.memory_map(str(path)) if reader.mapped else pa.BufferReader(path.read_bytes())
        return pa.ipc.open_file(source).get_batch(0)
    except pa.ArrowInvalid as error:
        raise SegmentDamagedError(path, f"cannot be read: {error}") from error
