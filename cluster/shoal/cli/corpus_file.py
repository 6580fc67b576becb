"""Which documents does a file hold, and what is wrong with its other lines?

A file is JSONL as BEIR has it, plain or gzipped: a line is an object with `_id` (or `id`), `text`,
and perhaps `title`, `metadata` (an object), `vector` (a list of numbers) and `expires_at` (seconds
since 1970, or RFC 3339 as in "2027-01-31T12:00:00Z"). A line is read, checked and forgotten; only
the ids are kept, to find those that come twice (about 200 bytes each).

What a document may be is the writer's to say, so its own check is called here: whatever passes
would be taken, and whatever does not is reported before anything is sent.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import sys
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn, cast

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from shoal.cli.output import CliError
from shoal.rpc.errors import InvalidFieldError
from shoal.v1.documents_pb2 import Document
from shoal.v1.search_pb2 import VectorType
from shoal.writer.validation import check_document

STDIN: Final = "-"
# A text of 1 MiB may have every byte escaped (`\u00e4`), and a vector and metadata beside it.
MAX_LINE_BYTES: Final = 16 * 1024 * 1024
# Beyond it a number would lose digits on its way through JSON's numbers.
MAX_EXACT: Final = 2**53
KEYS: Final = ("_id", "id", "title", "text", "metadata", "vector", "expires_at")

_GZIP_MAGIC: Final = b"\x1f\x8b"
_BOM: Final = b"\xef\xbb\xbf"
_KINDS: Final = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


class LineError(ValueError):
    """What is wrong with a line."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file, and what it says."""

    file: str
    number: int
    document: Document | None
    problem: str = ""
    """What is wrong with it; empty if there is a document."""

    @property
    def place(self) -> str:
        """Where it stands: `FILE:LINE`."""
        return f"{self.file}:{self.number}"


class CorpusReader:
    """Reads files that are to hold each id once."""

    def __init__(self, dimension: int | None = None) -> None:
        """dimension: of the index, for vectors; None takes that of the first vector."""
        self.dimension = dimension
        self._files: list[str] = []
        # Ids, and where each was first: the file's place in the list, and its line.
        self._seen: dict[str, tuple[int, int]] = {}

    def read(self, name: str, stream: BinaryIO) -> Iterator[Line]:
        """Read a file's lines, each with a document or a problem. Empty lines are passed over.

        A file that breaks off (a damaged gzip) ends with a problem.
        """
        self._files.append(name)
        number = 0
        while True:
            number += 1
            try:
                raw = stream.readline(MAX_LINE_BYTES + 1)
            except (OSError, EOFError, zlib.error) as error:
                yield Line(name, number, None, f"the file cannot be read on: {error}")
                return
            if not raw:
                return
            if number == 1:
                raw = raw.removeprefix(_BOM)
            if not raw.strip():
                continue
            try:
                if len(raw) > MAX_LINE_BYTES:
                    _skip_line(stream)
                    raise LineError(f"is longer than {MAX_LINE_BYTES:,} bytes")
                yield Line(name, number, self._document(raw, number))
            except LineError as error:
                yield Line(name, number, None, str(error))

    def _document(self, raw: bytes, number: int) -> Document:
        document = to_document(parse_line(raw))
        self._check(document)
        first = self._seen.setdefault(document.id, (len(self._files) - 1, number))
        if first != (len(self._files) - 1, number):
            raise LineError(
                f"the id {document.id!r} stands in {self._files[first[0]]}:{first[1]} already"
            )
        return document

    def _check(self, document: Document) -> None:
        if document.HasField("vector") and self.dimension is None:
            self.dimension = document.vector.dimension
        try:
            check_document(document, self.dimension or 0)
            if document.HasField("metadata"):
                # Deeper than protobuf's parser goes, it would break the whole stream.
                Document.FromString(document.SerializeToString())
        except InvalidFieldError as error:
            raise LineError(str(error).removeprefix("document.")) from None
        except DecodeError:
            raise LineError("metadata: is nested too deep") from None


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """Open a file, gzipped or not; `-` is standard input."""
    if name == STDIN:
        yield _plain(sys.stdin.buffer)
        return
    try:
        with Path(name).open("rb") as stream:
            yield _plain(stream)
    except IsADirectoryError:
        raise CliError(f"{name} is a folder: name the files in it") from None
    except OSError as error:
        raise CliError(f"cannot read {name}: {error.strerror}") from error


def _plain(stream: BinaryIO) -> BinaryIO:
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)  # type: ignore[type-var]
    if buffered.peek(2)[:2] == _GZIP_MAGIC:
        return cast(BinaryIO, gzip.GzipFile(fileobj=buffered))
    return cast(BinaryIO, buffered)


def _skip_line(stream: BinaryIO) -> None:
    while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
        pass


def parse_line(raw: bytes) -> dict[str, Any]:
    """Read a line as a JSON object. Raises LineError."""
    try:
        value = json.loads(
            raw.rstrip(b"\r\n").decode("utf-8"),
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_exact,
        )
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise LineError(f"is not UTF-8: byte 0x{byte:02x} at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise LineError(f"malformed JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise LineError("malformed JSON: it is nested too deep") from None
    if not isinstance(value, dict):
        raise LineError(f"must be a JSON object, not {_kind(value)}")
    return value


def to_document(fields: dict[str, Any]) -> Document:
    """Make a document of a line's object, seeing to types alone. Raises LineError."""
    unknown = sorted(set(fields) - set(KEYS))
    if unknown:
        raise LineError(f"unknown key {unknown[0]!r}: what is not text belongs in `metadata`")
    document_id = _text(fields, "_id" if "_id" in fields else "id")
    if "_id" in fields and fields.get("id", document_id) != document_id:
        raise LineError("`_id` and `id` differ: keep one of them")
    try:
        document = Document(
            id=document_id, title=_text(fields, "title", ""), text=_text(fields, "text")
        )
        metadata = fields.get("metadata")
        if metadata is not None:
            if not isinstance(metadata, dict):
                raise LineError(f"`metadata` must be an object, not {_kind(metadata)}")
            json_format.ParseDict(metadata, document.metadata)
    except UnicodeEncodeError:
        raise LineError("holds half of a surrogate pair (\\ud800 to \\udfff)") from None
    except (json_format.Error, RecursionError) as error:
        raise LineError(f"metadata: {error}") from None
    if fields.get("vector") is not None:
        _put_vector(document, fields["vector"])
    if fields.get("expires_at") is not None:
        _put_expiry(document, fields["expires_at"])
    return document


def _put_expiry(document: Document, value: Any) -> None:
    try:
        if isinstance(value, str):
            document.expires_at.FromJsonString(value)
        elif type(value) in (int, float):
            document.expires_at.FromMicroseconds(round(value * 1_000_000))
        else:
            raise LineError(f"`expires_at` must be a string or a number, not {_kind(value)}")
    except (ValueError, OverflowError) as error:
        if isinstance(error, LineError):
            raise
        raise LineError(
            f"`expires_at` must be seconds since 1970, or RFC 3339 with a zone: {error}"
        ) from None


def _put_vector(document: Document, values: Any) -> None:
    if not isinstance(values, list):
        raise LineError(f"`vector` must be a list of numbers, not {_kind(values)}")
    for each in values:
        if type(each) not in (int, float):
            raise LineError(f"`vector` must be a list of numbers; one of them is {_kind(each)}")
    packed = array("f", values)
    if sys.byteorder == "big":
        packed.byteswap()
    document.vector.values = packed.tobytes()
    document.vector.count = 1
    document.vector.dimension = len(packed)
    document.vector.type = VectorType.VECTOR_TYPE_FLOAT32


def _text(fields: dict[str, Any], key: str, default: str | None = None) -> str:
    value = fields.get(key)
    if value is None:
        if default is None:
            name = "`_id` (or `id`)" if key == "id" else f"`{key}`"
            raise LineError(f"{name} is missing")
        return default
    if not isinstance(value, str):
        raise LineError(f"`{key}` must be a string, not {_kind(value)}")
    return value


def _kind(value: object) -> str:
    return _KINDS.get(type(value), type(value).__name__)


def _no_constant(name: str) -> NoReturn:
    raise LineError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise LineError(f"the number {digits[:40]} is too large")
    return value


def _exact(digits: str) -> int:
    if len(digits) > 17 or abs(int(digits)) > MAX_EXACT:
        raise LineError(f"the number {digits[:40]} would lose digits: make it a string")
    return int(digits)
