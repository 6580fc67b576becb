"""A real table, what should be found in it, and the topology that shards of it stand in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shoal.filters.fields import Field, read_values
from shoal.internal.v1.topology_pb2 import IndexPlacement, Layout, ShardPlacement, Topology
from shoal.lexical.analysis import DEFAULT_ANALYZER, analyzer_of, pack_terms
from shoal.table.rows import DocumentRows, Operation, PassageSpan, Tombstone, build_batch
from shoal.table.table import PassageTable

UID = "0123456789abcdef"
SERVER = "shard-server-0"


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Rows of unit length."""
    scaled: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(
        np.float32
    )
    return scaled


@dataclass
class Stored:
    """A document, as it should be found."""

    title: str
    texts: list[str]
    metadata: dict[str, Any]
    vectors: NDArray[np.float32]

    @property
    def content_hash(self) -> bytes:
        whole = f"{self.title}\0{''.join(self.texts)}"
        return hashlib.sha256(whole.encode()).digest()


@dataclass
class Corpus:
    """A table and its present state, kept beside it."""

    folder: Path
    dimension: int = 16
    seed: int = 0
    fields: tuple[Field, ...] = ()
    present: dict[str, Stored] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.uri = str(self.folder / "table.lance")
        self.table = PassageTable.create(self.uri, self.dimension, self.fields)
        self._centres = self.random.standard_normal((50, self.dimension))
        self._sequence = 0
        self._gathered: tuple[int, list[tuple[str, int]], NDArray[np.float32]] = (
            -1,
            [],
            np.empty((0, self.dimension), np.float32),
        )

    def vectors(self, count: int) -> NDArray[np.float32]:
        """Clustered vectors of unit length."""
        centres = self._centres[self.random.integers(0, len(self._centres), count)]
        return unit(centres + 0.7 * self.random.standard_normal(centres.shape))

    def document(self, name: str, passages: int = 1) -> Stored:
        """A document with random vectors."""
        texts = [f"{name}, part {at}: šoal ✓ 𝄞 {self._sequence}. " for at in range(passages)]
        metadata = {"name": name, "nested": {"list": [1, "two", None]}}
        return Stored(f"title of {name}", texts, metadata, self.vectors(passages))

    def write(self, upserts: dict[str, Stored], deletes: tuple[str, ...] = ()) -> int:
        """Commit, and return the table's version."""
        operations: list[Operation] = [
            DocumentRows(
                document_id=document_id,
                title=stored.title,
                metadata=json.dumps(stored.metadata),
                content_hash=stored.content_hash,
                created_at_us=1_700_000_000_000_001,
                passages=_spans(stored.texts),
                vectors=stored.vectors,
                values=read_values(stored.metadata, self.fields),
                terms=[_terms(f"{stored.title}\n{text}") for text in stored.texts],
            )
            for document_id, stored in upserts.items()
        ]
        operations += [Tombstone(document_id) for document_id in deletes]
        batch = build_batch(
            operations,
            first_sequence=self._sequence,
            updated_at_us=1_750_000_000_000_000 + self._sequence,
            dimension=self.dimension,
            fields=self.fields,
        )
        self._sequence += len(operations)
        self.present |= upserts
        for document_id in deletes:
            self.present.pop(document_id, None)
        return self.table.append(batch)

    def fill(self, count: int, prefix: str = "doc") -> int:
        """Add documents of one to three passages."""
        passages = self.random.integers(1, 4, count).tolist()
        names = [f"{prefix}-{at}" for at in range(count)]
        return self.write(
            {name: self.document(name, n) for name, n in zip(names, passages, strict=True)}
        )

    def best(self, query: NDArray[np.float32], count: int) -> list[tuple[str, int, float]]:
        """What an exact search should find: document, passage and score."""
        if self._gathered[0] != self._sequence:
            names = [
                (document_id, ordinal)
                for document_id, stored in self.present.items()
                for ordinal in range(len(stored.texts))
            ]
            vectors = [stored.vectors for stored in self.present.values()]
            self._gathered = self._sequence, names, np.concatenate(vectors)
        _, names, rows = self._gathered
        scores = rows @ query
        order = np.argsort(-scores, kind="stable")[:count].tolist()
        return [(*names[at], float(scores[at])) for at in order]

    @property
    def passage_count(self) -> int:
        """Passages that should be found."""
        return sum(len(stored.texts) for stored in self.present.values())


def _terms(text: str) -> bytes:
    analyzer = analyzer_of(DEFAULT_ANALYZER)
    assert analyzer is not None
    return pack_terms(analyzer.terms(text))


def _spans(texts: list[str]) -> list[PassageSpan]:
    spans, start = [], 0
    for text in texts:
        spans.append(PassageSpan(start, start + len(text), text))
        start += len(text)
    return spans


def layout(
    shard_count: int, *, codebook: Path | None = None, server: str = SERVER, version: int = 1
) -> Layout:
    """All shards on one server."""
    return Layout(
        index_version=0 if codebook is None else version,
        codebook_uri="" if codebook is None else str(codebook),
        shard_count=shard_count,
        placements=[ShardPlacement(shard_server=server, shards=range(shard_count))],
    )


def topology(corpus: Corpus, epoch: int, serving: Layout, preparing: Layout | None = None) -> Any:
    """A topology with one index."""
    index = IndexPlacement(
        name="test",
        uid=UID,
        table_uri=corpus.uri,
        dimension=corpus.dimension,
        serving=serving,
    )
    if preparing is not None:
        index.preparing.CopyFrom(preparing)
    return Topology(cluster="test", epoch=epoch, indexes=[index])
