"""How do positions become passages and documents that a caller can read?

References come from the directory; title, text and metadata are read from the table, all rows of a
call in one reading, each row once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray
from shoal.internal.v1.shard_pb2 import CandidateList, StoredDocument
from shoal.rpc.arrays import FLOAT32, UINT32, UINT64, pack
from shoal.shard.directory import Directory, Positions, TailDirectory
from shoal.shard.search import Ranking, Target
from shoal.table import schema
from shoal.table.table import PassageTable, vectors_of
from shoal.v1.search_pb2 import Hit

_US_PER_S: Final = 1_000_000
_DOCUMENT_COLUMNS: Final = (
    schema.DOCUMENT_ID,
    schema.ORDINAL,
    schema.SPAN_START,
    schema.SPAN_END,
    schema.CONTENT_HASH,
    schema.UPDATED_AT,
    schema.CREATED_AT,
    schema.EXPIRES_AT,
    *schema.CONTENT_COLUMNS,
)


class References:
    """What the directories say of some passages, as lists: quick to go through one by one."""

    def __init__(self, directory: Directory | TailDirectory, positions: Positions) -> None:
        """Read those at `positions`."""
        records = directory.records[positions]
        self.row_ids: list[int] = records["row_id"].tolist()
        self.document_ids = directory.ids_at(positions)
        self._ordinals: list[int] = records["ordinal"].tolist()
        self._starts: list[int] = records["span_start"].tolist()
        self._ends: list[int] = records["span_end"].tolist()
        self._updated_us: list[int] = records["updated_us"].tolist()
        self._hashes = records["content_hash"].tobytes()

    def write(self, at: int, hit: Hit) -> None:
        """Write one of them into a message."""
        width = schema.CONTENT_HASH_BYTES
        hit.document_id = self.document_ids[at]
        hit.passage = self._ordinals[at]
        hit.content_hash = self._hashes[at * width : (at + 1) * width]
        span = hit.span
        span.start = self._starts[at]
        span.end = self._ends[at]
        write_time(self._updated_us[at], hit.update_time)


def write_time(time_us: int, timestamp: Timestamp) -> None:
    """Write microseconds since 1970 into a message."""
    seconds, rest_us = divmod(time_us, _US_PER_S)
    timestamp.seconds = seconds
    timestamp.nanos = rest_us * 1000


@dataclass(frozen=True)
class Content:
    """Title, text and metadata of rows, by row id."""

    titles: list[str]
    texts: list[str]
    metadata: list[str]
    places: dict[int, int]
    # float32 [rows, dimension]; None if they were not asked for.
    vectors: NDArray[np.float32] | None = None

    def write(self, row_id: int, hit: Hit) -> bool:
        """Write a row's content into a message; False if the table does not have the row."""
        place = self.places.get(row_id)
        if place is None:
            return False
        hit.title = self.titles[place]
        hit.text = self.texts[place]
        if self.metadata[place]:
            write_metadata(self.metadata[place], hit.metadata)
        return True


def read_content(
    table: PassageTable, row_ids: Iterable[int], *, with_vectors: bool = False
) -> Content:
    """Read the content of rows from the table, each once. Blocks."""
    columns = (*schema.CONTENT_COLUMNS, schema.VECTOR) if with_vectors else schema.CONTENT_COLUMNS
    rows = table.take(sorted(set(row_ids)), columns)
    vectors = vectors_of(rows.column(schema.VECTOR), table.dimension) if with_vectors else None
    return Content(
        titles=rows.column(schema.TITLE).to_pylist(),
        texts=rows.column(schema.TEXT).to_pylist(),
        metadata=rows.column(schema.METADATA).to_pylist(),
        places={row_id: at for at, row_id in enumerate(rows.column(schema.ROW_ID).to_pylist())},
        vectors=vectors,
    )


def write_metadata(text: str, metadata: Struct) -> None:
    """Write a JSON object into a message."""
    metadata.update(json.loads(text))


def write_lists(
    targets: Sequence[Target],
    ranking: Ranking,
    top_ks: Sequence[int],
    results: Sequence[CandidateList],
) -> None:
    """Write ids, scores and shards of each query into its list of the answer."""
    shard_of_part = np.repeat([target.shard for target in targets], 2).astype(UINT32)
    counts = (ranking.positions >= 0).sum(axis=1).tolist()
    scores = ranking.scores.astype(FLOAT32, copy=False)
    row_ids = ranking.row_ids.astype(UINT64, copy=False)
    shards = shard_of_part[ranking.parts]
    for at, (result, top_k) in enumerate(zip(results, top_ks, strict=True)):
        lexical = ranking.lexical[at] if ranking.lexical else None
        # With words there are up to `top_k` of either kind, and no more.
        end = min(top_k, counts[at]) if lexical is None else counts[at]
        result.lexical_scores = b"" if lexical is None else pack(lexical, FLOAT32)
        result.row_ids = row_ids[at, :end].tobytes()
        result.scores = scores[at, :end].tobytes()
        result.shards = shards[at, :end].tobytes()


def write_references(
    targets: Sequence[Target],
    ranking: Ranking,
    results: Sequence[tuple[int, CandidateList]],
) -> None:
    """Add the hits of some queries, given by their index in the ranking, to their lists."""
    lengths = [len(result.row_ids) // UINT64.itemsize for _, result in results]
    if not any(lengths):
        return
    parts = np.concatenate(
        [ranking.parts[at, :n] for (at, _), n in zip(results, lengths, strict=True)]
    )
    positions = np.concatenate(
        [ranking.positions[at, :n] for (at, _), n in zip(results, lengths, strict=True)]
    )
    hits = [
        result.hits.add() for (_, result), n in zip(results, lengths, strict=True) for _ in range(n)
    ]
    for part in np.unique(parts).tolist():
        here = np.flatnonzero(parts == part)
        directory = targets[part // 2].directory(part % 2 == 1)
        references = References(directory, positions[here])
        for number, at in enumerate(here.tolist()):
            references.write(number, hits[at])


def read_documents(
    table: PassageTable, row_ids: NDArray[np.uint64], order: Sequence[str]
) -> list[StoredDocument]:
    """Put documents together from all of their rows. Blocks.

    order: ids, in the order in which the documents are wanted.
    """
    if len(row_ids) == 0:
        return []
    rows: pa.Table = table.take(row_ids, _DOCUMENT_COLUMNS)
    rows = rows.sort_by([(schema.DOCUMENT_ID, "ascending"), (schema.ORDINAL, "ascending")])
    times = {
        name: rows.column(name).cast(pa.int64()).to_pylist()
        for name in (schema.CREATED_AT, schema.UPDATED_AT, schema.EXPIRES_AT)
    }
    columns = {name: rows.column(name).to_pylist() for name in _DOCUMENT_COLUMNS} | times
    documents: dict[str, StoredDocument] = {}
    texts: dict[str, list[str]] = {}
    reaches: dict[str, int] = {}
    for at, document_id in enumerate(columns[schema.DOCUMENT_ID]):
        if document_id not in documents:
            documents[document_id] = _document(columns, at)
        documents[document_id].passages.add(
            start=columns[schema.SPAN_START][at], end=columns[schema.SPAN_END][at]
        )
        parts, reached = texts.setdefault(document_id, []), reaches.get(document_id, 0)
        # A passage may begin with the end of the one before.
        parts.append(columns[schema.TEXT][at][reached - columns[schema.SPAN_START][at] :])
        reaches[document_id] = columns[schema.SPAN_END][at]
    for document_id, document in documents.items():
        document.text = "".join(texts[document_id])
    return [documents[document_id] for document_id in order if document_id in documents]


def _document(columns: dict[str, list[Any]], at: int) -> StoredDocument:
    document = StoredDocument(
        document_id=columns[schema.DOCUMENT_ID][at],
        title=columns[schema.TITLE][at],
        content_hash=columns[schema.CONTENT_HASH][at],
    )
    if columns[schema.METADATA][at]:
        write_metadata(columns[schema.METADATA][at], document.metadata)
    write_time(columns[schema.CREATED_AT][at], document.create_time)
    write_time(columns[schema.UPDATED_AT][at], document.update_time)
    if columns[schema.EXPIRES_AT][at] is not None:
        write_time(columns[schema.EXPIRES_AT][at], document.expires_at)
    return document
