"""How does plain Python become a request?

Only shapes and types are seen to here. What a value may be is for the server to say, so that there
is one place that says it.
"""

from __future__ import annotations

import sys
import uuid
from array import array
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf import json_format
from shoal.v1.cluster_pb2 import Scale, ScaleClusterRequest
from shoal.v1.documents_pb2 import (
    DeleteDocumentsRequest,
    Document,
    GetDocumentsRequest,
    PurgeDocumentsRequest,
)
from shoal.v1.indexes_pb2 import CreateIndexRequest, FieldType, MetadataField
from shoal.v1.search_pb2 import (
    BatchSearchRequest,
    Group,
    Hybrid,
    Rerank,
    RetrieveContextRequest,
    SearchKind,
    SearchRequest,
    Vectors,
    VectorType,
)

_TYPE: Final = "FIELD_TYPE_"
_DOCUMENT_KEYS: Final = frozenset(
    {"id", "title", "text", "metadata", "vector", "create_time", "expires_at"}
)


def vectors(values: Sequence[float]) -> Vectors:
    """Pack one vector. Any sequence of numbers will do, a numpy array too."""
    try:
        packed = array("f", values)
    except (TypeError, OverflowError) as error:
        raise TypeError(f"a vector is a flat sequence of numbers: {error}") from None
    if sys.byteorder == "big":
        packed.byteswap()
    return Vectors(
        values=packed.tobytes(),
        count=1,
        dimension=len(packed),
        type=VectorType.VECTOR_TYPE_FLOAT32,
    )


def search_request(
    index: str,
    query: str | Sequence[float],
    *,
    top_k: int | None = None,
    rerank: bool = True,
    candidate_count: int | None = None,
    min_table_version: int = 0,
    require_complete: bool = False,
    explain: bool = False,
    omit_text: bool = False,
    bypass_cache: bool = False,
    hits_per_document: int | None = None,
    filter: str = "",  # noqa: A002  # the field's name
    hybrid: bool = True,
    lexical_weight: float | None = None,
    no_feedback: bool = False,
    index_version: int | None = None,
    spaces: Sequence[str] = (),
) -> SearchRequest:
    """One search: what `Client.search` sends, and what `Client.batch_search` takes many of.

    query: a question, or one vector made with the index's model. top_k: 1 to 1,000; None means 10.
    candidate_count: how many to rerank, 1 to 200; None means the cluster's default.
    min_table_version: one that a write returned, to read your own writes. hits_per_document: a
    number groups hits by document, no more than so many of each, and `top_k` counts documents.
    filter: on the fields that the index declares, such as `lang == "en" && year >= 2020`.
    hybrid: whether the words of a question count beside its vector. lexical_weight: how much, 0 to
    1, where 1 is words alone; None means the cluster's default. no_feedback: keep nothing of this
    search to learn from.
    index_version: search in this version, which must be loaded; None means the one that serves.
    spaces: the vector spaces to search, fused if they are several; none means the default one,
    `default`.
    What each field means is written in `shoal/v1/search.proto`.
    """
    request = SearchRequest(
        index=index,
        top_k=top_k,
        rerank=Rerank(disabled=not rerank, candidate_count=candidate_count or 0),
        min_table_version=min_table_version,
        require_complete=require_complete,
        explain=explain,
        omit_text=omit_text,
        bypass_cache=bypass_cache,
        filter=filter,
        no_feedback=no_feedback,
        group=None if hits_per_document is None else Group(per_document=hits_per_document),
        index_version=index_version,
        spaces=_names(spaces),
    )
    if not hybrid or lexical_weight is not None:
        request.hybrid.CopyFrom(Hybrid(disabled=not hybrid, lexical_weight=lexical_weight))
    if isinstance(query, str):
        request.text = query
    else:
        request.vector.CopyFrom(vectors(query))
    return request


def _names(spaces: Sequence[str]) -> list[str]:
    if isinstance(spaces, str):
        # It would be taken for a sequence of names of one letter each.
        raise TypeError(f"spaces come as a list: [{spaces!r}]")
    return list(spaces)


def context_request(
    search: SearchRequest, token_budget: int | None, neighbours: int | None
) -> RetrieveContextRequest:
    """A search whose hits are to be glued into texts."""
    return RetrieveContextRequest(
        search=search, token_budget=token_budget or 0, neighbours=neighbours
    )


def batch_search_request(searches: Iterable[SearchRequest]) -> BatchSearchRequest:
    """Many searches in one call."""
    return BatchSearchRequest(searches=searches)


def document(source: Document | Mapping[str, Any], position: int) -> Document:
    """A document, from a message or from a mapping with its fields.

    Keys: `id`, `title`, `text`, `metadata` (anything that JSON can hold), `vector` (a sequence of
    numbers), `create_time` and `expires_at` (datetimes; without a zone they are UTC). None is the
    same as no key.
    position: where it stands among those given, from 1, for errors. Raises ValueError for any other
    key, and TypeError for a value of the wrong type.
    """
    if isinstance(source, Document):
        return source
    try:
        return _document_of(source)
    except (TypeError, ValueError) as error:
        raise type(error)(f"document {position}: {error}") from error


def _document_of(source: Mapping[str, Any]) -> Document:
    unknown = sorted(set(source) - _DOCUMENT_KEYS)
    if unknown:
        raise ValueError(
            f"there is no {', '.join(map(repr, unknown))}: the keys are "
            f"{', '.join(sorted(_DOCUMENT_KEYS))}; anything else belongs in `metadata`"
        )
    message = Document(
        id=source.get("id") or "", title=source.get("title") or "", text=source.get("text") or ""
    )
    if source.get("metadata") is not None:
        try:
            json_format.ParseDict(dict(source["metadata"]), message.metadata)
        except json_format.ParseError as error:
            raise TypeError(f"its metadata is not JSON: {error}") from None
    if source.get("vector") is not None:
        message.vector.CopyFrom(vectors(source["vector"]))
    created: datetime | None = source.get("create_time")
    if created is not None:
        message.create_time.FromDatetime(_with_zone(created))
    expires: datetime | None = source.get("expires_at")
    if expires is not None:
        message.expires_at.FromDatetime(_with_zone(expires))
    return message


def _with_zone(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def delete_request(index: str, document_ids: Iterable[str]) -> DeleteDocumentsRequest:
    """Which documents to delete."""
    return DeleteDocumentsRequest(index=index, document_ids=_ids(document_ids))


def purge_request(index: str, document_ids: Iterable[str]) -> PurgeDocumentsRequest:
    """Which documents to purge."""
    return PurgeDocumentsRequest(index=index, document_ids=_ids(document_ids))


def get_request(
    index: str, document_ids: Iterable[str], min_table_version: int
) -> GetDocumentsRequest:
    """Which documents to read."""
    return GetDocumentsRequest(
        index=index, document_ids=_ids(document_ids), min_table_version=min_table_version
    )


def _ids(document_ids: Iterable[str]) -> list[str]:
    if isinstance(document_ids, str):
        # It would be taken for a sequence of ids of one letter each.
        raise TypeError(f"document ids come as a list: [{document_ids!r}]")
    return list(document_ids)


def create_index_request(
    name: str,
    dimension: int,
    fields: Mapping[str, str] | None = None,
    *,
    recall_target: float = 0.0,
    kind: SearchKind.ValueType = SearchKind.SEARCH_KIND_UNSPECIFIED,
) -> CreateIndexRequest:
    """What index to make, with an id that makes it safe to send twice.

    fields: their types by their names. Raises ValueError for a type that there is not.
    """
    return CreateIndexRequest(
        name=name,
        dimension=dimension,
        request_id=uuid.uuid4().hex,
        recall_target=recall_target,
        kind=kind,
        fields=[
            MetadataField(name=field, type=field_type(type_))
            for field, type_ in (fields or {}).items()
        ],
    )


def field_type(name: str) -> FieldType.ValueType:
    """A type of metadata by its name, such as `string`. Raises ValueError."""
    known = [each.removeprefix(_TYPE).lower() for each in FieldType.keys()[1:]]
    if name not in known:
        raise ValueError(f"{name!r} is no type for a field: one of {', '.join(known)}")
    return FieldType.Value(_TYPE + name.upper())


def scale_request(numbers: Mapping[str, int | None], index: str = "") -> ScaleClusterRequest:
    """The numbers to change, of an index or, if that is empty, of the cluster.

    None leaves one as it is.
    """
    return ScaleClusterRequest(scale=Scale(**numbers), index=index)
