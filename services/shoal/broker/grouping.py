"""Which hits stand for their documents, and how deep must a search look for enough of them?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from shoal.broker.answer import Ranked, Trace
from shoal.broker.coverage import cut
from shoal.broker.fan_out import Found
from shoal.broker.merge import Candidates
from shoal.broker.validation import MAX_TOP_K, Query
from shoal.internal.v1.shard_pb2 import Fill
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import Stage

# How many times as deep the next look goes.
DEEPER: Final = 4

Look = Callable[[int, Fill.ValueType], Awaitable[Found]]
Rank = Callable[[Found, int], Candidates]


async def look_for_documents(
    query: Query, wanted: int, look: Look, rank: Rank, trace: Trace
) -> tuple[Found, Candidates]:
    """Look deeper and deeper, until there are passages of `wanted` documents.

    The candidates are the best passages of those documents, of each no more than the query wants.
    look: searches to a depth, with a fill. rank: ranks what was found, to a depth.
    """
    depth = min(MAX_TOP_K, wanted * (query.per_document + 1))
    while True:
        found = await look(depth, Fill.FILL_REFERENCE)
        candidates = rank(found, depth)
        documents = [hit.document_id if hit is not None else None for hit in candidates.hits]
        kept = keep_best(documents, query.per_document, wanted)
        document_count = len({documents[at] for at in kept})
        if document_count >= wanted or len(candidates) < depth:
            break
        if depth == MAX_TOP_K:
            if document_count < query.top_k:
                message = f"the best {depth:,} passages are those of {document_count} documents"
                trace.cuts.append(cut(Stage.STAGE_SEARCH, Reason.REASON_DEPTH_REACHED, message))
            break
        depth = min(MAX_TOP_K, depth * DEEPER)
    return found, candidates.at(kept)


def keep_best(documents: Sequence[str | None], per_document: int, count: int) -> list[int]:
    """Positions of the first `per_document` passages of the first `count` documents, in order.

    documents: the document of each passage, best passage first; None where it is not known.
    """
    seen: Counter[str] = Counter()
    kept = []
    for position, document in enumerate(documents):
        if document is None or (document not in seen and len(seen) == count):
            continue
        seen[document] += 1
        if seen[document] <= per_document:
            kept.append(position)
    return kept


def best_passages(ranked: Sequence[Ranked], count: int) -> Sequence[Ranked]:
    """The first `count` passages."""
    return ranked[:count]


def best_documents(ranked: Sequence[Ranked], count: int) -> Sequence[Ranked]:
    """The passages of the first `count` documents, in the order in which they are."""
    kept: set[str] = set()
    for each in ranked:
        if len(kept) == count:
            break
        kept.add(each.hit.document_id)
    return [each for each in ranked if each.hit.document_id in kept]
