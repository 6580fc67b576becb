"""Is a request one that can be answered?

Checks that need no state but the index's dimension. Each names the field that is wrong.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from shoal.filters.fields import Field
from shoal.filters.parsing import parse
from shoal.internal.v1.shard_pb2 import (
    CountTermsRequest,
    FetchDocumentsRequest,
    FetchPassagesRequest,
    Fill,
    LayoutKey,
    SearchShardsRequest,
)
from shoal.rpc.arrays import UINT64, unpack, unpack_vectors
from shoal.rpc.errors import InvalidFieldError
from shoal.shard.field_columns import Condition

MAX_QUERY_COUNT: Final = 1024
MAX_TOP_K: Final = 1000
MAX_ROW_COUNT: Final = 10_000
MAX_DOCUMENT_COUNT: Final = 1_000
# As many as can be reranked, which is what vectors are read for.
MAX_VECTOR_COUNT: Final = 200

_FILLS: Final = frozenset({Fill.FILL_UNSPECIFIED, Fill.FILL_REFERENCE, Fill.FILL_TEXT})


def check_layout(layout: LayoutKey) -> None:
    """A layout must be named."""
    if not layout.index_uid:
        raise InvalidFieldError("layout.index_uid", "is required")
    if layout.shard_count == 0:
        raise InvalidFieldError("layout.shard_count", "must be at least 1")


def check_search(request: SearchShardsRequest) -> None:
    """Everything of a search but its vectors."""
    check_layout(request.layout)
    count = request.queries.count
    if not 1 <= count <= MAX_QUERY_COUNT:
        raise InvalidFieldError("queries.count", f"must be 1 to {MAX_QUERY_COUNT}, not {count}")
    for name, values in (("top_k", request.top_k), ("fill", request.fill)):
        if len(values) != count:
            raise InvalidFieldError(
                name, f"has {len(values)} entries for {count} queries: give one a query"
            )
    for at, top_k in enumerate(request.top_k):
        if not 1 <= top_k <= MAX_TOP_K:
            raise InvalidFieldError(f"top_k[{at}]", f"must be 1 to {MAX_TOP_K}, not {top_k}")
    for at, fill in enumerate(request.fill):
        if fill not in _FILLS:
            raise InvalidFieldError(f"fill[{at}]", f"{fill} is no fill that this server knows")
    if request.filters and len(request.filters) != count:
        raise InvalidFieldError(
            "filters", f"has {len(request.filters)} entries for {count} queries: give one a query"
        )
    if len(request.lexical) not in (0, count):
        raise InvalidFieldError(
            "lexical", f"has {len(request.lexical)} entries for {count} queries: give one a query"
        )
    _check_shards(request)


def read_conditions(
    request: SearchShardsRequest, fields: tuple[Field, ...]
) -> list[Condition | None]:
    """The filter of each query, None where it has none. Raises InvalidFilterError."""
    if not any(request.filters):
        return [None] * request.queries.count
    return [Condition(text, parse(text, fields)) if text else None for text in request.filters]


def check_count(request: CountTermsRequest) -> None:
    """A count of terms."""
    check_layout(request.layout)
    if not 1 <= len(request.texts) <= MAX_QUERY_COUNT:
        raise InvalidFieldError(
            "texts", f"must be 1 to {MAX_QUERY_COUNT}, not {len(request.texts)}"
        )
    _check_shards(request)


def _check_shards(request: SearchShardsRequest | CountTermsRequest) -> None:
    if not request.shards:
        raise InvalidFieldError("shards", "must name at least one shard")
    seen: set[int] = set()
    for at, shard in enumerate(request.shards):
        if shard >= request.layout.shard_count:
            raise InvalidFieldError(
                f"shards[{at}]", f"is {shard}, but the layout has {request.layout.shard_count}"
            )
        if shard in seen:
            raise InvalidFieldError(f"shards[{at}]", f"names shard {shard} a second time")
        seen.add(shard)


def read_queries(request: SearchShardsRequest, dimension: int) -> NDArray[np.float32]:
    """The queries: float32 [n, dimension], contiguous."""
    return unpack_vectors(request.queries, "queries", dimension=dimension)


def read_row_ids(request: FetchPassagesRequest) -> NDArray[np.uint64]:
    """The row ids of a fetch."""
    check_layout(request.layout)
    if request.fill not in _FILLS:
        raise InvalidFieldError("fill", f"{request.fill} is no fill that this server knows")
    row_ids: NDArray[Any] = unpack(request.row_ids, UINT64, "row_ids")
    if len(row_ids) > MAX_ROW_COUNT:
        raise InvalidFieldError("row_ids", f"has {len(row_ids)}; there may be {MAX_ROW_COUNT}")
    if request.vector_count > MAX_VECTOR_COUNT:
        raise InvalidFieldError(
            "vector_count", f"is {request.vector_count}; at most {MAX_VECTOR_COUNT} can be read"
        )
    return row_ids


def check_documents(request: FetchDocumentsRequest) -> None:
    """A fetch of documents."""
    check_layout(request.layout)
    if len(request.document_ids) > MAX_DOCUMENT_COUNT:
        raise InvalidFieldError(
            "document_ids", f"has {len(request.document_ids)}; there may be {MAX_DOCUMENT_COUNT}"
        )
