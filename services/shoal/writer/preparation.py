"""What do messages of a stream become before they can be written?

Documents that were checked and split, with the texts that the encoder must read. Pure work of the
processor, done in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from shoal.filters.fields import Field
from shoal.lexical.analysis import analyzer_of, pack_terms
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.table import DocumentRows, PassageSpan
from shoal.v1.documents_pb2 import UpsertDocumentsRequest, UpsertFailure
from shoal.v1.status import reason_name
from shoal.writer.config import WriterSettings
from shoal.writer.shown import ShownTexts
from shoal.writer.splitting import SplitBounds, split_text
from shoal.writer.tokens import Measure
from shoal.writer.validation import ValidDocument, check_document

# Tokens that a model adds at the beginning and the end, and the full stop after a title.
_EXTRA_TOKENS = 3


@dataclass(frozen=True, slots=True)
class PreparedDocument:
    """A document, split."""

    number: int
    document: ValidDocument
    passages: Sequence[PassageSpan]
    # What an encoder reads, one a passage.
    shown: Sequence[str]
    # The terms of each passage, packed; empty if the table keeps none.
    terms: Sequence[bytes]

    @property
    def texts(self) -> Sequence[str]:
        """What the encoder of the index must read. Empty if the document brought its vector."""
        return self.shown if self.document.vector is None else ()


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

    @property
    def shown(self) -> list[str]:
        """What any other encoder must read: of the documents too that brought their vectors."""
        return [text for each in self.documents for text in each.shown]

    def rows(
        self,
        vectors: NDArray[np.float32] | None,
        now_us: int,
        further: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> list[DocumentRows]:
        """Put documents and the vectors of `texts` together.

        vectors: None if there are no texts, or the index's own model is not asked any more.
        further: the vectors of `shown` that other models have made, by model.
        """
        rows: list[DocumentRows] = []
        first = passage = 0
        for each in self.documents:
            own = each.document.vector
            if own is None and vectors is not None:
                own = vectors[first : first + len(each.texts)]
                first += len(each.texts)
            end = passage + len(each.shown)
            others = {model: made[passage:end] for model, made in (further or {}).items()}
            passage = end
            rows.append(replace(_rows_of(each, own, now_us), further=others))
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
        *,
        takes_vectors: bool = True,
    ) -> None:
        """Measure: how the encoder of the index sees texts. fields: that the index declares.

        analyzer: of the index's table. takes_vectors: whether documents may bring vectors.
        """
        self._takes_vectors = takes_vectors
        self._settings = settings
        self._measure = measure
        self._dimension = dimension
        self._fields = fields
        self._analyzer = analyzer_of(analyzer)
        self._shown = ShownTexts(measure, settings.title_tokens, settings.passage_chars)

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
        if document.vector is not None and not self._takes_vectors:
            raise InvalidFieldError(
                "document.vector",
                "is given, but the model that the index was made with is gone from it: write the "
                "document without a vector",
            )
        if document.vector is not None:
            whole = PassageSpan(0, len(document.text), document.text)
            terms = self._terms(document.title, [whole])
            title, _ = self._shown.title(document.title)
            texts = [self._shown.passage(title, document.text)]
            return PreparedDocument(request.number, document, [whole], texts, terms)
        title, title_tokens = self._shown.title(document.title)
        room = self._measure.model_tokens - _EXTRA_TOKENS - title_tokens
        max_tokens = max(1, min(self._settings.passage_tokens, room))
        bounds = SplitBounds(
            max_tokens,
            self._settings.passage_chars,
            # Where a title leaves little room, half of it is still for what is new.
            min(self._settings.passage_overlap_tokens, max_tokens // 2),
        )
        spans = split_text(document.text, bounds, self._measure.tokens)
        passages = [PassageSpan(start, end, document.text[start:end]) for start, end in spans]
        texts = [self._shown.passage(title, each.text) for each in passages]
        terms = self._terms(document.title, passages)
        return PreparedDocument(request.number, document, passages, texts, terms)

    def _terms(self, title: str, passages: Sequence[PassageSpan]) -> list[bytes]:
        """The terms of each passage: those of the title are every passage's."""
        if self._analyzer is None:
            return []
        titles = self._analyzer.terms(title)
        return [pack_terms(titles + self._analyzer.terms(each.text)) for each in passages]


def failure_of(number: int, document_id: str, error: ServiceError) -> UpsertFailure:
    """Say why a document was refused."""
    return UpsertFailure(
        number=number,
        document_id=document_id[:512],
        reason=reason_name(error.reason),
        message=error.failure.message,
    )


def _rows_of(
    prepared: PreparedDocument, vectors: NDArray[np.float32] | None, now_us: int
) -> DocumentRows:
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
