"""Is a request one that can be answered?"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shoal.broker.config import BrokerSettings
from shoal.broker.fusion import HybridPlan
from shoal.broker.routes import IndexRoute
from shoal.filters.parsing import check_filter
from shoal.rpc.arrays import unit_row
from shoal.rpc.errors import InvalidFieldError
from shoal.v1.search_pb2 import Fusion, Hybrid, RetrieveContextRequest, SearchRequest

DEFAULT_TOP_K: Final = 10
MAX_TOP_K: Final = 1_000
MAX_RERANKED: Final = 200
MAX_PER_DOCUMENT: Final = 100
MIN_CONTEXT_TOKENS: Final = 16
MAX_CONTEXT_TOKENS: Final = 1_000_000
DEFAULT_CONTEXT_TOKENS: Final = 2_000
MAX_NEIGHBOURS: Final = 20
DEFAULT_NEIGHBOURS: Final = 1
MAX_QUERY_BYTES: Final = 32_768
MAX_BATCH: Final = 256
MAX_ID_BYTES: Final = 512
MAX_GET_IDS: Final = 1_000
MAX_DELETE_IDS: Final = 10_000
MAX_PAGE: Final = 1_000
DEFAULT_PAGE: Final = 100

_FUSIONS: Final = frozenset(
    {Fusion.FUSION_UNSPECIFIED, Fusion.FUSION_CONVEX, Fusion.FUSION_RECIPROCAL_RANK}
)
_INDEX_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")


@dataclass(frozen=True)
class Query:
    """A valid search request."""

    text: str
    """Empty if it is a query by vector."""
    vector: bytes
    """Little-endian float32, unit length; empty if it is a query by text."""
    top_k: int
    rerank_count: int
    """Candidates to rerank; 0 for none."""
    per_document: int = 0
    """Hits of one document at most; 0 if hits are not grouped."""
    filter: str = ""
    """Canonical; empty if there is none."""
    hybrid: HybridPlan | None = None
    """How words count beside the vector; None if they do not."""
    unencoded: bool = False
    """Whether no encoder is to be waited for: then only a vector from the cache answers it."""


def check_search(request: SearchRequest, route: IndexRoute, settings: BrokerSettings) -> Query:
    """Check a search against its index. Raises InvalidFieldError."""
    top_k = request.top_k if request.HasField("top_k") else DEFAULT_TOP_K
    if not 1 <= top_k <= MAX_TOP_K:
        raise InvalidFieldError("top_k", f"is {top_k}; ask for 1 to {MAX_TOP_K} hits")
    if request.rerank.candidate_count > MAX_RERANKED:
        raise InvalidFieldError(
            "rerank.candidate_count",
            f"is {request.rerank.candidate_count}; at most {MAX_RERANKED} can be reranked",
        )
    text, vector = "", b""
    match request.WhichOneof("query"):
        case "text":
            text = _check_text(request.text)
        case "vector":
            vector = unit_row(request.vector, "vector", dimension=route.dimension)
        case _:
            raise InvalidFieldError("query", "is not set: give a text or a vector")
    rerank_count = 0
    if text and not request.rerank.disabled:
        rerank_count = request.rerank.candidate_count or settings.rerank_candidates
    per_document = 0
    if request.HasField("group"):
        per_document = request.group.per_document or 1
        if per_document > MAX_PER_DOCUMENT:
            raise InvalidFieldError(
                "group.per_document",
                f"is {per_document}; ask for 1 to {MAX_PER_DOCUMENT} hits of a document",
            )
    hybrid = _check_hybrid(request.hybrid, settings) if text else None
    condition = check_filter(request.filter, route.fields) if request.filter else ""
    return Query(text, vector, top_k, rerank_count, per_document, condition, hybrid)


def _check_hybrid(asked: Hybrid, settings: BrokerSettings) -> HybridPlan | None:
    weight = settings.lexical_weight
    if asked.HasField("lexical_weight"):
        weight = asked.lexical_weight
        if not 0.0 <= weight <= 1.0:
            raise InvalidFieldError("hybrid.lexical_weight", f"is {weight}; give 0 to 1")
    if asked.candidate_count > MAX_TOP_K:
        raise InvalidFieldError(
            "hybrid.candidate_count",
            f"is {asked.candidate_count}; at most {MAX_TOP_K} of each kind can be fused",
        )
    if asked.fusion not in _FUSIONS:
        raise InvalidFieldError("hybrid.fusion", f"{asked.fusion} is no fusion that is known here")
    if asked.disabled or weight == 0.0:
        return None
    fusion = asked.fusion or Fusion.FUSION_CONVEX
    return HybridPlan(weight, fusion, asked.candidate_count or settings.hybrid_candidates)


def check_context(request: RetrieveContextRequest) -> tuple[int, int]:
    """Check what is wanted of contexts: the budget of tokens, and neighbours on each side."""
    if not request.HasField("search"):
        raise InvalidFieldError("search", "is not set: say what to search for")
    budget = request.token_budget or DEFAULT_CONTEXT_TOKENS
    if not MIN_CONTEXT_TOKENS <= budget <= MAX_CONTEXT_TOKENS:
        raise InvalidFieldError(
            "token_budget",
            f"is {budget}; give {MIN_CONTEXT_TOKENS} to {MAX_CONTEXT_TOKENS:,} tokens",
        )
    neighbours = request.neighbours if request.HasField("neighbours") else DEFAULT_NEIGHBOURS
    if neighbours > MAX_NEIGHBOURS:
        raise InvalidFieldError(
            "neighbours", f"is {neighbours}; at most {MAX_NEIGHBOURS} come along"
        )
    return budget, neighbours


def _check_text(text: str) -> str:
    size = len(text.encode())
    if size > MAX_QUERY_BYTES:
        raise InvalidFieldError("text", f"has {size} bytes; a query has at most {MAX_QUERY_BYTES}")
    if not any(not (char.isspace() or unicodedata.category(char) == "Cc") for char in text):
        raise InvalidFieldError("text", "is empty, or nothing but white space")
    return text


def check_index_name(name: str, path: str = "name") -> str:
    """Check the name of an index that is to be made."""
    if not _INDEX_NAME.fullmatch(name):
        raise InvalidFieldError(
            path,
            f"{name!r} is no name for an index: a lower-case letter, then up to 62 lower-case "
            f"letters, digits, - and _",
        )
    return name


def check_ids(ids: Sequence[str], most: int, path: str = "document_ids") -> None:
    """Check a list of document ids."""
    if not 1 <= len(ids) <= most:
        raise InvalidFieldError(path, f"holds {len(ids)} ids; give 1 to {most:,}")
    for position, id_ in enumerate(ids):
        if not 1 <= len(id_.encode()) <= MAX_ID_BYTES:
            raise InvalidFieldError(
                f"{path}[{position}]", f"an id has 1 to {MAX_ID_BYTES} bytes of UTF-8"
            )
