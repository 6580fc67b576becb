"""Which vectors does the benchmark search, and what is the right answer to each query?

Synthetic clustered unit vectors: gaussian clouds around random directions, clouds of unequal size,
wide in few directions and narrow in most, as the embeddings of real passages are. Made once from a
seed, kept in a cache folder, and read memory-mapped from there. Queries come from the same clouds
and are not in the table. The right answers are found by exact search.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

_Rows = NDArray[np.float32]
_CHUNK_ROWS: Final = 50_000
# Queries that search parameters are chosen by.
TUNING_COUNT: Final = 400


@dataclass(frozen=True)
class VectorSet:
    """What to make: the same numbers make the same vectors."""

    count: int = 500_000
    """Vectors in the table."""
    dimension: int = 384
    """Numbers in a vector: that of all-MiniLM-L6-v2."""
    query_count: int = 2_000
    """Held-out queries; the last `TUNING_COUNT` are not asked."""
    cluster_count: int = 4_000
    """Gaussian clouds: about as many as a corpus of this size has topics."""
    spread: float = 0.6
    """Length of the noise around a centre of length 1: neighbours have an inner product of about
    1 / (1 + spread^2), which is 0.74, as passages on one topic have."""
    decay: float = 0.4
    """How fast a cloud narrows from direction to direction: its width in the i-th is i^-decay. 0
    would make clouds round, whose neighbours no code of a few bits a number can tell apart."""
    seed: int = 7
    """Of the generator."""

    @property
    def name(self) -> str:
        """A folder name that differs wherever the vectors do."""
        numbers = "-".join(str(value) for value in asdict(self).values())
        return f"vectors-{numbers}"


class _Clouds:
    """What vectors are drawn from."""

    def __init__(self, chosen: VectorSet, random: np.random.Generator) -> None:
        self._centres = unit(random.standard_normal((chosen.cluster_count, chosen.dimension)))
        # Zipf-like sizes: a few broad topics and many narrow ones.
        weights = 1.0 / np.sqrt(np.arange(1, chosen.cluster_count + 1))
        self._weights = weights / weights.sum()
        widths = np.arange(1, chosen.dimension + 1, dtype=np.float32) ** -chosen.decay
        widths *= chosen.spread / np.linalg.norm(widths)
        # The clouds share their directions, which are none of the axes.
        rotation = np.linalg.qr(random.standard_normal((chosen.dimension, chosen.dimension)))[0]
        self._noise = (widths[:, None] * rotation).astype(np.float32)

    def draw(self, count: int, random: np.random.Generator) -> _Rows:
        numbers = random.choice(len(self._centres), size=count, p=self._weights)
        chosen_centres = self._centres[numbers]
        noise = random.standard_normal(chosen_centres.shape, dtype=np.float32)
        return unit(chosen_centres + noise @ self._noise)


class Vectors:
    """The vectors and queries of a set, on disk under `cache`; made on first use."""

    def __init__(self, chosen: VectorSet, cache: Path) -> None:
        """cache: a folder with about 1.6 kB a vector to spare."""
        self.chosen = chosen
        self.folder = cache / chosen.name
        self._make_once()
        self.rows: _Rows = np.load(self.folder / "rows.npy", mmap_mode="r")
        self.queries: _Rows = np.load(self.folder / "queries.npy")

    def _make_once(self) -> None:
        done = self.folder / "done"
        if done.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        chosen, random = self.chosen, np.random.default_rng(self.chosen.seed)
        clouds = _Clouds(chosen, random)

        shape = (chosen.count, chosen.dimension)
        rows = np.lib.format.open_memmap(
            self.folder / "rows.npy", mode="w+", dtype=np.float32, shape=shape
        )
        for start in range(0, chosen.count, _CHUNK_ROWS):
            count = min(_CHUNK_ROWS, chosen.count - start)
            rows[start : start + _CHUNK_ROWS] = clouds.draw(count, random)
        rows.flush()
        np.save(self.folder / "queries.npy", clouds.draw(chosen.query_count, random))
        done.touch()

    def more(self, count: int, seed: int) -> _Rows:
        """Further vectors from the same clouds, of a generator of their own: [count, dimension]."""
        clouds = _Clouds(self.chosen, np.random.default_rng(self.chosen.seed))
        random = np.random.default_rng((self.chosen.seed, seed))
        drawn = np.empty((count, self.chosen.dimension), dtype=np.float32)
        for start in range(0, count, _CHUNK_ROWS):
            end = min(count, start + _CHUNK_ROWS)
            drawn[start:end] = clouds.draw(end - start, random)
        return drawn

    @property
    def asked(self) -> _Rows:
        """The queries that are asked."""
        return self.queries[:-TUNING_COUNT]

    @property
    def tuning_queries(self) -> _Rows:
        """Queries of the same kind that are not asked, to choose search parameters by."""
        return self.queries[-TUNING_COUNT:]

    def nearest(self, query_count: int, top_k: int) -> NDArray[np.int64]:
        """The rows nearest to the first queries, best first, by exact search.

        Shape [query_count, top_k]. Takes a second or so for every hundred queries and half a
        million vectors.
        """
        import faiss

        best_scores = np.empty((query_count, 0), dtype=np.float32)
        best_rows = np.empty((query_count, 0), dtype=np.int64)
        queries = np.ascontiguousarray(self.queries[:query_count])
        for start in range(0, len(self.rows), _CHUNK_ROWS):
            chunk = np.ascontiguousarray(self.rows[start : start + _CHUNK_ROWS])
            scores, rows = faiss.knn(queries, chunk, top_k, metric=faiss.METRIC_INNER_PRODUCT)
            best_scores = np.hstack([best_scores, scores])
            best_rows = np.hstack([best_rows, rows + start])
        order = np.argsort(-best_scores, axis=1, kind="stable")[:, :top_k]
        return np.take_along_axis(best_rows, order, axis=1)


def unit(rows: NDArray[np.floating]) -> _Rows:
    """Scale each row to length 1."""
    scaled: _Rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def document_id(row: int) -> str:
    """The id that a row of the set has as a document."""
    return f"d{row:07d}"


def row_of(document: str) -> int:
    """The row that has this document id."""
    return int(document[1:])
