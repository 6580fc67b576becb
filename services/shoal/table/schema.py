"""What are the columns of a table of passages?

The table is a log, one row a passage: nothing in it is ever changed, only appended. A document's
present state is the rows of its highest sequence; if that row is a tombstone, it is deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from shoal.filters.fields import Field, arrow_type, kind_of
from shoal.lexical.analysis import DEFAULT_ANALYZER

# Rises when a column changes its meaning; tables of a newer version are refused.
# Version 2: documents expire, and deletions are forgotten (TRIMMED_KEY).
SCHEMA_VERSION: Final = 2
SCHEMA_VERSION_KEY: Final = b"shoal.schema_version"
# Names the analyzer that made the column of terms. Tables that were made before there was one have
# neither.
ANALYZER_KEY: Final = b"shoal.analyzer"

# Rises with every operation on a document. All rows of one operation share it.
SEQUENCE: Final = "sequence"
DOCUMENT_ID: Final = "document_id"
# Position of the passage in its document, from 0.
ORDINAL: Final = "ordinal"
SLOT: Final = "slot"
# True in the one row that a deletion appends; such a row has no vector, text, hash or span.
TOMBSTONE: Final = "tombstone"
TITLE: Final = "title"
# The document's text[span_start:span_end]. The passages of a document cover its text, in order,
# without gaps; each may begin with the end of the one before.
TEXT: Final = "text"
# In code points of the document's text.
SPAN_START: Final = "span_start"
SPAN_END: Final = "span_end"
# JSON, an object; empty if the document has none.
METADATA: Final = "metadata"
# SHA-256 over title, a zero byte, and text.
CONTENT_HASH: Final = "content_hash"
CREATED_AT: Final = "created_at"
UPDATED_AT: Final = "updated_at"
# The terms of title and text, with their counts: see `shoal.lexical.analysis`. Null if they were
# not analysed. Kept so that no shard has to read and analyse the text: that takes 0.1 ms a passage.
TERMS: Final = "terms"
# Unit length.
VECTOR: Final = "vector"
# From when on the document is not to be found; null means never. The same in all its rows.
EXPIRES_AT: Final = "expires_at"

# The vectors of a model beside the one that the table was made with, by that model's fingerprint:
# null in tombstones, and in rows that it has not encoded yet.
VECTOR_PREFIX: Final = "vector_"
# Key of such a column's metadata: `name@fingerprint`.
MODEL_KEY: Final = b"shoal.model"

# A declared field of the metadata, by its name. Null where a document does not have it.
FIELD_PREFIX: Final = "field_"

# Lance's own: names a row for ever, also after compaction.
ROW_ID: Final = "_rowid"

# What a shard keeps in memory of each passage, beside its vector.
DIRECTORY_COLUMNS: Final = (
    SEQUENCE,
    DOCUMENT_ID,
    ORDINAL,
    SLOT,
    TOMBSTONE,
    SPAN_START,
    SPAN_END,
    CONTENT_HASH,
    UPDATED_AT,
    EXPIRES_AT,
)
# What is read from the table when a passage is shown.
CONTENT_COLUMNS: Final = (TITLE, TEXT, METADATA)

# Key of the table's configuration: how far deletions are forgotten (shoal.table.trimming).
TRIMMED_KEY: Final = "shoal.trimmed"

TIMESTAMP: Final = pa.timestamp("us", tz="UTC")
CONTENT_HASH_BYTES: Final = 32


def field_column(field: Field) -> str:
    """The column that holds a declared field."""
    return FIELD_PREFIX + field.name


def fields_of(layout: pa.Schema) -> tuple[Field, ...]:
    """The fields that a table declares."""
    return tuple(
        Field(each.name.removeprefix(FIELD_PREFIX), kind_of(each.type))
        for each in layout
        if each.name.startswith(FIELD_PREFIX)
    )


@dataclass(frozen=True)
class ModelVectors:
    """The column of a model beside the one that a table was made with."""

    # `name@fingerprint`.
    model: str
    # Numbers in a vector.
    dimension: int

    @property
    def column(self) -> str:
        """Its name."""
        return VECTOR_PREFIX + self.model.rpartition("@")[2]

    @property
    def field(self) -> pa.Field:
        """The column in a schema."""
        kind = pa.list_(pa.float32(), self.dimension)
        return pa.field(self.column, kind, metadata={MODEL_KEY: self.model.encode()})


def models_of(layout: pa.Schema) -> tuple[ModelVectors, ...]:
    """The models that a table has vectors of, but for the one that it was made with."""
    return tuple(
        ModelVectors(each.metadata[MODEL_KEY].decode(), each.type.list_size)
        for each in layout
        if each.metadata and MODEL_KEY in each.metadata
    )


def table_schema(
    dimension: int, fields: Sequence[Field] = (), models: Sequence[ModelVectors] = ()
) -> pa.Schema:
    """Schema of a table whose vectors have `dimension` numbers.

    models: that it has vectors of too.
    """
    return pa.schema(
        [
            pa.field(SEQUENCE, pa.int64(), nullable=False),
            pa.field(DOCUMENT_ID, pa.string(), nullable=False),
            pa.field(ORDINAL, pa.int32(), nullable=False),
            pa.field(SLOT, pa.int16(), nullable=False),
            pa.field(TOMBSTONE, pa.bool_(), nullable=False),
            pa.field(TITLE, pa.string()),
            # A batch of 1 MiB texts passes the 2 GiB that 32-bit offsets reach.
            pa.field(TEXT, pa.large_string()),
            pa.field(SPAN_START, pa.int32()),
            pa.field(SPAN_END, pa.int32()),
            pa.field(METADATA, pa.large_string()),
            pa.field(CONTENT_HASH, pa.binary(CONTENT_HASH_BYTES)),
            pa.field(CREATED_AT, TIMESTAMP),
            pa.field(UPDATED_AT, TIMESTAMP, nullable=False),
            pa.field(TERMS, pa.large_binary()),
            pa.field(VECTOR, pa.list_(pa.float32(), dimension)),
            pa.field(EXPIRES_AT, TIMESTAMP),
            *(pa.field(field_column(each), arrow_type(each.kind)) for each in fields),
            *(each.field for each in models),
        ],
        metadata={
            SCHEMA_VERSION_KEY: str(SCHEMA_VERSION).encode(),
            ANALYZER_KEY: DEFAULT_ANALYZER.encode(),
        },
    )
