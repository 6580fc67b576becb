"""What is in the index, and what must a search, a read and a description of it say?

A dictionary of documents and exact search in NumPy. It changes by acknowledged operations alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Final

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray
from shoal.table.slots import shard_of, slot_of
from shoal.v1.documents_pb2 import Document
from shoal.v1.search_pb2 import Hit, SearchResponse

from tests.harness.stand_ins import vector_of
from tests.model.conditions import Condition, Metadata, metadata

DIMENSION: Final = 16
# Scores of stored vectors differ from NumPy's by rounding. Those of codes differ by 0.01, and by
# 0.02 at most where numbers are beyond the room that a code has for vectors to come. A score of
# another vector would be further off.
EXACT_TOLERANCE: Final = 1e-5
CODED_TOLERANCE: Final = 0.05
# Sentences of ten words: with passages of 16 tokens, each becomes a passage.
_WORDS: Final = [f"{a}{b}" for a in ("ko", "mi", "ta", "ru", "shu") for b in ("ral", "fen", "dor")]
_CENTRES: Final = np.random.default_rng(7).standard_normal((40, DIMENSION))


@dataclass(frozen=True)
class Stored:
    """A document in one state."""

    id: str
    title: str
    text: str
    metadata: Metadata
    # Unit length. None: it is encoded, passage by passage.
    vector: NDArray[np.float32] | None
    # From when on it is not there any more, to the microsecond.
    expires_at: datetime | None = None

    @cached_property
    def content_hash(self) -> bytes:
        """What tells it from all other states: every text names its revision."""
        return hashlib.sha256(f"{self.title}\0{self.text}".encode()).digest()

    def fields(self) -> dict[str, Any]:
        """What the client takes."""
        return {
            "id": self.id,
            "title": self.title,
            "text": self.text,
            "metadata": self.metadata,
            "vector": self.vector,
            "expires_at": self.expires_at,
        }

    def has_expired(self, now: datetime) -> bool:
        """True if it is not there any more."""
        return self.expires_at is not None and self.expires_at <= now

    @cached_property
    def _vectors(self) -> dict[tuple[int, int], NDArray[np.float32]]:
        return {}

    def passage_vector(self, start: int, end: int) -> NDArray[np.float32]:
        """The vector of a passage, as the encoder makes it."""
        if self.vector is not None:
            return self.vector
        if (start, end) not in self._vectors:
            prefix = f"{self.title}. " if self.title else ""
            shown = prefix + self.text[start:end].strip()
            self._vectors[start, end] = vector_of(shown, DIMENSION)
        return self._vectors[start, end]


class Author:
    """Makes documents; no two have the same text."""

    def __init__(self) -> None:
        """None was made yet."""
        self._revision = 0
        # All that were ever made, by their content hash.
        self.made: dict[bytes, Stored] = {}

    def document(
        self, document_id: str, random: np.random.Generator, expires_at: datetime | None = None
    ) -> Stored:
        """A document: with a vector, or with a text of one to three passages.

        expires_at: None lets it stay, or expire in an hour, which no example sees.
        """
        if expires_at is None and random.random() < 0.1:
            expires_at = datetime.now(UTC) + timedelta(hours=1)
        self._revision += 1
        sentences = 1
        vector = None
        if random.random() < 0.6:
            vector = unit(_CENTRES[random.integers(40)] + 0.5 * random.standard_normal(DIMENSION))
        else:
            sentences = int(random.integers(1, 4))
        text = " ".join(_sentence(random) for _ in range(sentences))
        made = Stored(
            document_id,
            "" if random.random() < 0.5 else f"Title {random.choice(_WORDS)}",
            f"{text} Revision {self._revision}. ✓",
            metadata(random),
            vector,
            expires_at,
        )
        self.made[made.content_hash] = made
        return made

    def query(self, random: np.random.Generator) -> NDArray[np.float32]:
        """Something to ask for, near what there is."""
        return unit(_CENTRES[random.integers(40)] + 0.7 * random.standard_normal(DIMENSION))


def _sentence(random: np.random.Generator) -> str:
    return " ".join(random.choice(_WORDS, 10)).capitalize() + "."


def unit(row: NDArray[Any]) -> NDArray[np.float32]:
    """A row of unit length."""
    scaled: NDArray[np.float32] = (row / np.linalg.norm(row)).astype(np.float32)
    return scaled


@dataclass
class Oracle:
    """The index as it must be."""

    author: Author
    present: dict[str, Stored] = field(default_factory=dict)
    # Table version that the last operation was acknowledged with.
    table_version: int = 0
    # Spans of each state's passages, as they were read: they are the writer's to choose, once.
    spans: dict[bytes, list[tuple[int, int]]] = field(default_factory=dict)
    # Documents that have expired, and that no cleaning has found yet.
    expired: set[str] = field(default_factory=set)

    def wrote(self, documents: Iterable[Stored], table_version: int) -> None:
        """Documents were acknowledged, in this order."""
        for each in documents:
            self.present[each.id] = each
            self.expired.discard(each.id)
        self._reached(table_version)

    def deleted(self, ids: Iterable[str], table_version: int) -> None:
        """Deletions were acknowledged."""
        for each in ids:
            self.present.pop(each, None)
            self.expired.discard(each)
        self._reached(table_version)

    def expire(self, now: datetime) -> list[str]:
        """Drop what has expired; return its ids."""
        gone = [each.id for each in self.present.values() if each.has_expired(now)]
        for each in gone:
            del self.present[each]
        self.expired.update(gone)
        return gone

    def _reached(self, table_version: int) -> None:
        assert table_version > 0
        self.table_version = max(self.table_version, table_version)

    # What was read.

    def check_document(self, read: Document) -> None:
        """A document that was read is the one that is present."""
        stored = self.present[read.id]
        assert read.content_hash == stored.content_hash, f"{read.id} is in another state"
        assert (read.title, read.text) == (stored.title, stored.text)
        assert json_format.MessageToDict(read.metadata) == stored.metadata
        expires_at = read.expires_at.ToDatetime(UTC) if read.HasField("expires_at") else None
        assert expires_at == stored.expires_at
        spans = [(each.start, each.end) for each in read.passages]
        assert spans == self.spans.setdefault(stored.content_hash, spans)
        assert [0, *(end for _, end in spans)] == [*(start for start, _ in spans), len(read.text)]
        assert stored.vector is None or len(spans) == 1

    @property
    def unread(self) -> list[str]:
        """Documents whose passages are not known yet."""
        return [each.id for each in self.present.values() if each.content_hash not in self.spans]

    @property
    def passage_count(self) -> int:
        """Passages that can be found. Only once all documents were read."""
        return self.matching_count(None)

    def matching_count(self, condition: Condition | None) -> int:
        """Those of them whose documents match a filter."""
        return sum(len(self.spans[each.content_hash]) for each in self.matching(condition))

    def matching(self, condition: Condition | None) -> list[Stored]:
        """Documents that match a filter; None lets all of them through."""
        all_ = self.present.values()
        return [each for each in all_ if condition is None or condition.matches(each.metadata)]

    # What was found.

    def ranking(
        self, query: NDArray[np.float32], condition: Condition | None = None
    ) -> list[tuple[float, str, int]]:
        """All passages by exact search: score, document, passage. Once all documents were read."""
        names, rows = [], [np.empty((0, DIMENSION), np.float32)]
        for each in self.matching(condition):
            for at, (start, end) in enumerate(self.spans[each.content_hash]):
                names.append((each.id, at))
                rows.append(each.passage_vector(start, end)[None])
        scores = np.concatenate(rows) @ query
        order = np.argsort(-scores, kind="stable").tolist()
        return [(float(scores[at]), *names[at]) for at in order]

    def check_present(self, answer: SearchResponse) -> None:
        """Nothing is returned but what is present."""
        for hit in answer.hits:
            stored = self.present.get(hit.document_id)
            assert stored is not None, f"{hit.document_id} was deleted, and was found"
            assert hit.content_hash == stored.content_hash, f"{hit.document_id} was replaced"
            spans = self.spans[stored.content_hash]
            assert spans[hit.passage] == (hit.span.start, hit.span.end)

    def check_filtered(
        self, answer: SearchResponse, query: NDArray[np.float32], top_k: int, condition: Condition
    ) -> None:
        """What a filter finds, whatever the kind: as much as matches, and all of that if it fits.

        That nothing else is found is in `check_answer`.
        """
        count = self.matching_count(condition)
        matching = sum(each.passages_matching for each in answer.explanation.shards)
        assert matching == count, f"{matching} of {count} passages match {condition.text}"
        assert len(answer.hits) == min(top_k, count), condition.text
        if count <= top_k:
            found = {(hit.document_id, hit.passage) for hit in answer.hits}
            assert found == {(id_, at) for _, id_, at in self.ranking(query, condition)}

    def check_exact(
        self,
        answer: SearchResponse,
        query: NDArray[np.float32],
        top_k: int,
        condition: Condition | None = None,
    ) -> None:
        """Everything is returned that exact search finds, in its order but for equal scores."""
        expected = self.ranking(query, condition)
        scores = {(id_, passage): score for score, id_, passage in expected}
        assert len(answer.hits) == min(top_k, len(expected))
        for hit, (score, _, _) in zip(answer.hits, expected, strict=False):
            assert abs(hit.score - score) < EXACT_TOLERANCE
            assert abs(hit.score - scores[hit.document_id, hit.passage]) < EXACT_TOLERANCE

    def recall(
        self,
        answer: SearchResponse,
        query: NDArray[np.float32],
        top_k: int,
        condition: Condition | None = None,
    ) -> tuple[int, int]:
        """How many of the best exact search finds were returned, and how many there are."""
        expected = self.ranking(query, condition)
        count = min(top_k, len(expected))
        if not count:
            return 0, 0
        worst = expected[count - 1][0] - EXACT_TOLERANCE
        scores = {(id_, passage): score for score, id_, passage in expected}
        found = sum(scores[hit.document_id, hit.passage] >= worst for hit in answer.hits)
        return found, count


def check_answer(
    answer: SearchResponse,
    query: NDArray[np.float32],
    author: Author,
    condition: Condition | None = None,
) -> None:
    """What holds of an answer at any time: it is made of states that were written, and in order.

    The answer explains itself. condition: what each hit matches, in the state that it has.
    """
    scores = [hit.score for hit in answer.hits]
    assert scores == sorted(scores, reverse=True), "scores rise along the answer"
    names = [(hit.document_id, hit.passage) for hit in answer.hits]
    assert len(set(names)) == len(names), "two hits are alike"
    version = answer.explanation.index_version
    assert {hit.provenance.index_version for hit in answer.hits} <= {version}
    shard_count = answer.coverage.shards_total
    for hit in answer.hits:
        assert hit.provenance.shard == shard_of(slot_of(hit.document_id), shard_count)
        stored = check_hit(hit, query, author, CODED_TOLERANCE if version else EXACT_TOLERANCE)
        assert condition is None or condition.matches(stored.metadata), (
            f"{hit.document_id} does not match {condition.text}: {stored.metadata}"
        )


def check_hit(hit: Hit, query: NDArray[np.float32], author: Author, tolerance: float) -> Stored:
    """A hit is a passage of a state that was written, with the score of its vector."""
    stored = author.made.get(hit.content_hash)
    assert stored is not None, f"nobody ever wrote this state of {hit.document_id}"
    assert (hit.document_id, hit.title) == (stored.id, stored.title)
    start, end = hit.span.start, hit.span.end
    assert 0 <= start < end <= len(stored.text)
    assert hit.text == stored.text[start:end]
    assert json_format.MessageToDict(hit.metadata) == stored.metadata
    score = float(stored.passage_vector(start, end) @ query)
    assert abs(hit.score - score) < tolerance, f"{hit.document_id} scores {score:.4f}"
    return stored


def states_of(hits: Sequence[Hit]) -> dict[str, bytes]:
    """The state that each document was found in. It is one."""
    found: dict[str, bytes] = {}
    for hit in hits:
        assert found.setdefault(hit.document_id, hit.content_hash) == hit.content_hash, (
            f"{hit.document_id} was found in two states at once"
        )
    return found
