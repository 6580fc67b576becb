"""Where are the passages that came after the main segment was made?

In a growable array beside a growable directory, searched exactly, until a fold takes them into the
main segment.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from shoal.shard.directory import Records, TailDirectory, grown
from shoal.shard.postings import CountedTerms, TailPostings, no_terms
from shoal.shard.segment import Found, search_exact
from shoal.shard.tombstones import Live


class LiveTail:
    """Passages in the order of their arrival.

    One thread appends; others search the first `live.count`, which an append does not touch.
    """

    def __init__(self, dimension: int) -> None:
        """Start empty."""
        self.directory = TailDirectory()
        self.postings = TailPostings()
        self._vectors = np.empty((0, dimension), dtype=np.float32)

    @property
    def count(self) -> int:
        """Passages, dead ones included."""
        return len(self.directory.ids)

    @property
    def memory_bytes(self) -> int:
        """Bytes that it takes."""
        return self._vectors.nbytes + self.directory.memory_bytes + self.postings.memory_bytes

    def vectors(self, count: int) -> NDArray[np.float32]:
        """The first `count` vectors; they do not change."""
        return self._vectors[:count]

    def append(
        self,
        vectors: NDArray[np.float32],
        records: Records,
        ids: Sequence[str],
        fields: pa.Table | None = None,
        counted: CountedTerms | None = None,
    ) -> None:
        """Add passages at the end.

        fields: their declared metadata, if any is declared. counted: their terms; None if they are
        not known.
        """
        counted = counted or no_terms(len(ids))
        assert len(vectors) == len(records) == len(ids) == len(counted.counts)
        count = self.count
        self._vectors = grown(self._vectors, count, len(vectors))
        self._vectors[count : count + len(vectors)] = vectors
        self.postings.append(counted)
        self.directory.append(records, ids, fields)

    def search(self, queries: NDArray[np.float32], k: int, live: Live) -> Found:
        """Find the best k of each query among the first `live.count`."""
        return search_exact(self._vectors[: live.count], queries, k, live)
