"""Which documents are taken, and what is wrong with the others?

A document is checked by itself and refused by itself: InvalidFieldError with the path of the field.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray
from shoal.filters.fields import Field, Value, read_values
from shoal.rpc.arrays import unit_rows, unpack_vectors
from shoal.rpc.errors import InvalidFieldError
from shoal.v1.documents_pb2 import Document

MAX_ID_BYTES: Final = 512
MAX_TITLE_BYTES: Final = 4 * 1024
MAX_TEXT_BYTES: Final = 1024 * 1024
MAX_METADATA_BYTES: Final = 64 * 1024
MAX_REMOVED_IDS: Final = 10_000
MAX_REQUEST_ID_BYTES: Final = 64

_INDEX_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Years 1 to 9999, as google.protobuf.Timestamp has them.
_MIN_SECONDS: Final = -62_135_596_800
_MAX_SECONDS: Final = 253_402_300_799


@dataclass(frozen=True, slots=True)
class ValidDocument:
    """A document that was found good."""

    document_id: str
    title: str
    text: str
    # A JSON object, or empty.
    metadata: str
    content_hash: bytes
    # Microseconds since 1970, UTC; None means the time of the write.
    created_at_us: int | None
    # Microseconds since 1970, UTC; None means never.
    expires_at_us: int | None
    # Unit length, float32 [1, dimension]; None if it is to be encoded.
    vector: NDArray[np.float32] | None
    # One for each declared field, None where it has none.
    values: tuple[Value, ...] = ()


def check_document(
    document: Document, dimension: int, fields: Sequence[Field] = ()
) -> ValidDocument:
    """Check a document for an index of that dimension and fields. Raises InvalidFieldError."""
    check_document_id(document.id, "document.id")
    _check_bytes(document.title, "document.title", MAX_TITLE_BYTES)
    size_bytes = _check_bytes(document.text, "document.text", MAX_TEXT_BYTES)
    if size_bytes == 0:
        raise InvalidFieldError("document.text", "is empty: a document needs a text")
    if document.text.isspace():
        raise InvalidFieldError("document.text", "is nothing but white space")
    metadata, values = _metadata(document, fields)
    created = document.create_time if document.HasField("create_time") else None
    return ValidDocument(
        document_id=document.id,
        title=document.title,
        text=document.text,
        metadata=metadata,
        content_hash=content_hash(document.title, document.text),
        created_at_us=None if created is None else _microseconds(created, "create_time"),
        expires_at_us=(
            _microseconds(document.expires_at, "expires_at")
            if document.HasField("expires_at")
            else None
        ),
        vector=_vector(document, dimension),
        values=values,
    )


def check_document_id(document_id: str, path: str) -> None:
    """Check a document's id. Raises InvalidFieldError naming `path`."""
    if not document_id:
        raise InvalidFieldError(path, "is empty: a document needs an id")
    _check_bytes(document_id, path, MAX_ID_BYTES)
    if _CONTROL.search(document_id):
        raise InvalidFieldError(path, "holds a control character")


def check_index_name(name: str, path: str) -> None:
    """Check an index's name. Raises InvalidFieldError naming `path`."""
    if not _INDEX_NAME.fullmatch(name):
        raise InvalidFieldError(
            path,
            "must be a lower-case letter, then up to 62 lower-case letters, digits, '-' and '_'",
        )


def content_hash(title: str, text: str) -> bytes:
    """SHA-256 over title, a zero byte, and text: 32 bytes."""
    return hashlib.sha256(b"%b\0%b" % (title.encode(), text.encode())).digest()


def shown_to_models(text: str) -> str:
    """The text without its control characters, each a space, so that positions stay."""
    return _CONTROL.sub(" ", text)


def _check_bytes(value: str, path: str, limit_bytes: int) -> int:
    size_bytes = len(value) if value.isascii() else len(value.encode())
    if size_bytes > limit_bytes:
        raise InvalidFieldError(path, f"is {size_bytes:,} bytes; at most {limit_bytes:,} are taken")
    return size_bytes


def _metadata(document: Document, fields: Sequence[Field]) -> tuple[str, tuple[Value, ...]]:
    """A document's metadata as JSON, empty if it has none, and its values of the fields."""
    if not document.HasField("metadata"):
        return "", (None,) * len(fields)
    plain, text = _metadata_json(document.metadata)
    return text, read_values(plain, fields)


def _metadata_json(metadata: Struct) -> tuple[dict[str, Any], str]:
    try:
        plain = json_format.MessageToDict(metadata)
        text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, json_format.Error, RecursionError) as error:
        raise InvalidFieldError("document.metadata", f"is not JSON: {error}") from error
    _check_bytes(text, "document.metadata", MAX_METADATA_BYTES)
    return plain, text


def _microseconds(time: Timestamp, field: str) -> int:
    if not (_MIN_SECONDS <= time.seconds <= _MAX_SECONDS and 0 <= time.nanos < 10**9):
        raise InvalidFieldError(f"document.{field}", "lies outside the years 1 to 9999")
    return time.seconds * 1_000_000 + time.nanos // 1000


def _vector(document: Document, dimension: int) -> NDArray[np.float32] | None:
    if not document.HasField("vector"):
        return None
    path = "document.vector"
    if document.vector.count != 1:
        raise InvalidFieldError(f"{path}.count", f"is {document.vector.count}; must be 1")
    return unit_rows(unpack_vectors(document.vector, path, dimension=dimension), path)
