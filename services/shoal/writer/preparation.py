"""What do messages of a stream become before they can be written?

Documents that were checked and split, with the texts that the encoder must read. Pure work of the
processor, done in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from shoal.filters.fields import Field
from shoal.lexical.analysis import analyzer_of, pack_terms
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.table import DocumentRows, PassageSpan
from shoal.v1.documents_pb2 import UpsertDocumentsRequest, UpsertFailure
from shoal.v1.status import reason_name
from shoal.writer.config import WriterSettings
from shoal.writer.splitting import SplitBounds, split_text
from shoal.writer.tokens import Measure
from shoal.writer.validation import ValidDocument, check_document, shown_to_models

# Tokens that a model adds at the beginning and the end, and the full stop after a title.
_EXTRA_TOKENS = 3


@dataclass(frozen=True, slots=True)
class PreparedDocument:
    """A document, split."""

    number: int
    document: ValidDocument
    passages: Sequence[PassageSpan]
    # What the encoder reads, one a passage. Empty if the document brought its vector.
    texts: Sequence[str]
    # The terms of each passage, packed; empty if the table keeps none.
    terms: Sequence[bytes]


@dataclass
class PreparedChunk:
    """Messages that go through the writer together, in the order of the stream."""

    # Number of the last message.
    number: int
    documents: list[PreparedDocument] = field(default_factory=list)
    failures: list[UpsertFailure] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """What the encoder must read."""
        return [text for each in self.documents for text in each.texts]

    def rows(self, vectors: NDArray[np.float32] | None, now_us: int) -> list[DocumentRows]:
        """Put documents and the vectors of `texts` together."""
        rows: list[DocumentRows] = []
        first = 0
        for each in self.documents:
            own = each.document.vector
            if own is None:
                assert vectors is not None
                own = vectors[first : first + len(each.texts)]
                first += len(each.texts)
            rows.append(_rows_of(each, own, now_us))
        return rows


class Preparer:
    """Checks and splits documents of one index. Thread-safe."""

    def __init__(
        self,
        settings: WriterSettings,
        measure: Measure,
        dimension: int,
        fields: Sequence[Field] = (),
        analyzer: str = "",
    ) -> None:
        """Measure: how the encoder of the index sees texts. fields: that the index declares.

        analyzer: of the index's table.
        """
        self._settings = settings
        self._measure = measure
        self._dimension = dimension
        self._fields = fields
        self._analyzer = analyzer_of(analyzer)

    def prepare(self, requests: Sequence[UpsertDocumentsRequest]) -> PreparedChunk:
        """Prepare messages, one or more. Documents that are wrong become failures."""
        chunk = PreparedChunk(requests[-1].number)
        for request in requests:
            try:
                chunk.documents.append(self._prepare_one(request))
            except ServiceError as error:
                chunk.failures.append(failure_of(request.number, request.document.id, error))
        return chunk

    def _prepare_one(self, request: UpsertDocumentsRequest) -> PreparedDocument:
        if not request.HasField("document"):
            raise InvalidFieldError("document", "is missing")
        document = check_document(request.document, self._dimension, self._fields)
        if document.vector is not None:
            whole = PassageSpan(0, len(document.text), document.text)
            terms = self._terms(document.title, [whole])
            return PreparedDocument(request.number, document, [whole], (), terms)
        title, title_tokens = self._shown_title(document.title)
        room = self._measure.model_tokens - _EXTRA_TOKENS - title_tokens
        max_tokens = max(1, min(self._settings.passage_tokens, room))
        bounds = SplitBounds(
            max_tokens,
            self._settings.passage_chars,
            # Where a title leaves little room, half of it is still for what is new.
            min(self._settings.passage_overlap_tokens, max_tokens // 2),
        )
        shown = shown_to_models(document.text)
        spans = split_text(document.text, bounds, self._measure.tokens)
        passages = [PassageSpan(start, end, document.text[start:end]) for start, end in spans]
        prefix = f"{title}. " if title else ""
        texts = [prefix + shown[start:end].strip() for start, end in spans]
        terms = self._terms(document.title, passages)
        return PreparedDocument(request.number, document, passages, texts, terms)

    def _terms(self, title: str, passages: Sequence[PassageSpan]) -> list[bytes]:
        """The terms of each passage: those of the title are every passage's."""
        if self._analyzer is None:
            return []
        titles = self._analyzer.terms(title)
        return [pack_terms(titles + self._analyzer.terms(each.text)) for each in passages]

    def _shown_title(self, title: str) -> tuple[str, int]:
        """The title as the model is to read it, and its tokens."""
        shown = " ".join(shown_to_models(title).split())
        if not shown:
            return "", 0
        tokens = self._measure.tokens(shown)
        limit = self._settings.title_tokens
        if len(tokens) <= limit:
            return shown[: self._settings.passage_chars], len(tokens)
        return shown[: tokens[limit][0]].rstrip(), limit


def failure_of(number: int, document_id: str, error: ServiceError) -> UpsertFailure:
    """Say why a document was refused."""
    return UpsertFailure(
        number=number,
        document_id=document_id[:512],
        reason=reason_name(error.reason),
        message=error.failure.message,
    )


def _rows_of(prepared: PreparedDocument, vectors: NDArray[np.float32], now_us: int) -> DocumentRows:
    document = prepared.document
    created_at_us = document.created_at_us
    return DocumentRows(
        document_id=document.document_id,
        title=document.title,
        metadata=document.metadata,
        content_hash=document.content_hash,
        created_at_us=now_us if created_at_us is None else created_at_us,
        passages=prepared.passages,
        vectors=vectors,
        expires_at_us=document.expires_at_us,
        values=document.values,
        terms=prepared.terms,
    )


def now_us() -> int:
    """The time, in microseconds since 1970, UTC."""
    return time.time_ns() // 1000
