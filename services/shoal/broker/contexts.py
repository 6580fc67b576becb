"""How do hits become texts that a generator can answer from?

The passages of the hits come first, best hit first, as far as the budget of tokens goes; then their
neighbours, nearest first. What follows each other in a document is glued into one context. Texts
are cut from the documents as they are now: a document that is not the one that was found, by its
hash, is left out, so that every citation is proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from shoal.broker.reading import DocumentReader
from shoal.broker.routes import IndexRoute
from shoal.internal.v1.shard_pb2 import StoredDocument
from shoal.rpc.deadline import Deadline
from shoal.rpc.tokens import rough_token_count
from shoal.v1.search_pb2 import Citation, Context, Hit, SearchResponse, Span


class ContextStage:
    """Reads the documents of hits, and glues."""

    def __init__(self, reader: DocumentReader) -> None:
        """reader: reads documents."""
        self._reader = reader

    async def glue(
        self,
        route: IndexRoute,
        found: SearchResponse,
        token_budget: int,
        neighbours: int,
        deadline: Deadline,
        min_table_version: int = 0,
    ) -> list[Context]:
        """Make contexts of an answer, best first. Raises what reading raises."""
        ids = dict.fromkeys(hit.document_id for hit in found.hits)
        documents = await self._reader.read(route, ids, deadline, min_table_version)
        return glue(found.hits, documents, token_budget, neighbours)


def glue(
    hits: Sequence[Hit],
    documents: Mapping[str, StoredDocument],
    token_budget: int,
    neighbours: int,
) -> list[Context]:
    """Make contexts of hits, given best first, and of the documents that they are from."""
    choice = _Choice(documents, token_budget)
    kept = [hit for hit in hits if _is_of(hit, documents.get(hit.document_id)) and choice.add(hit)]
    for distance in range(1, neighbours + 1):
        for hit in kept:
            for ordinal in (hit.passage + distance, hit.passage - distance):
                choice.extend(hit.document_id, ordinal)
    contexts = [
        _context(documents[document_id], run, kept)
        for document_id, ordinals in choice.chosen.items()
        for run in _runs(sorted(ordinals))
    ]
    contexts.sort(key=lambda context: -context.score)
    return contexts


class _Choice:
    """The passages that are chosen, and what is left of the budget."""

    def __init__(self, documents: Mapping[str, StoredDocument], token_budget: int) -> None:
        self.chosen: dict[str, set[int]] = {}
        self._documents, self._left = documents, token_budget

    def add(self, hit: Hit) -> bool:
        """Choose a hit's passage; False if the budget has no room for it."""
        return self._take(hit.document_id, hit.passage)

    def extend(self, document_id: str, ordinal: int) -> None:
        """Choose a passage next to one that is chosen, if there is one and room for it."""
        beside = {ordinal - 1, ordinal + 1} & self.chosen[document_id]
        if beside and 0 <= ordinal < len(self._documents[document_id].passages):
            self._take(document_id, ordinal)

    def _take(self, document_id: str, ordinal: int) -> bool:
        chosen = self.chosen.get(document_id, set())
        if ordinal not in chosen:
            document = self._documents[document_id]
            span = document.passages[ordinal]
            cost = rough_token_count(document.text[span.start : span.end])
            if cost > self._left:
                return False
            self._left -= cost
            self.chosen.setdefault(document_id, set()).add(ordinal)
        return True


def _is_of(hit: Hit, document: StoredDocument | None) -> bool:
    """True if a document is the one that a hit was found in, and not a later state of it."""
    return (
        document is not None
        and document.content_hash == hit.content_hash
        and hit.passage < len(document.passages)
        and document.passages[hit.passage] == hit.span
    )


def _runs(ordinals: Sequence[int]) -> list[list[int]]:
    """Part rising numbers where one is missing."""
    runs = [[ordinals[0]]]
    for before, ordinal in pairwise(ordinals):
        if ordinal == before + 1:
            runs[-1].append(ordinal)
        else:
            runs.append([ordinal])
    return runs


def _context(document: StoredDocument, run: Sequence[int], hits: Sequence[Hit]) -> Context:
    held = [hit for hit in hits if hit.document_id == document.document_id and hit.passage in run]
    # Passages may overlap: the text is cut from the document, not put together from theirs.
    start, end = document.passages[run[0]].start, document.passages[run[-1]].end
    text = document.text[start:end]
    context = Context(
        document_id=document.document_id,
        title=document.title,
        text=text,
        span=Span(start=start, end=end),
        content_hash=document.content_hash,
        update_time=document.update_time,
        token_count=rough_token_count(text),
        score=held[0].score,
        citations=[_citation(hit) for hit in held],
    )
    if document.HasField("metadata"):
        context.metadata.CopyFrom(document.metadata)
    return context


def _citation(hit: Hit) -> Citation:
    citation = Citation(
        passage=hit.passage, span=hit.span, score=hit.score, dense_score=hit.dense_score
    )
    if hit.HasField("rerank_score"):
        citation.rerank_score = hit.rerank_score
    return citation
