"""Does an index answer as it should, with filters and without?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from shoal.client import AsyncClient
from shoal.v1.search_pb2 import SearchResponse

from tests.model.conditions import Condition, some
from tests.model.oracle import Oracle, check_answer

# Part of the nearest passages that searches by codes must find in an example: builds promise 0.95.
RECALL_FLOOR: Final = 0.9
MOST_HITS: Final = 1000
# Recall is promised at so many hits.
FEW_HITS: Final = 10


@dataclass
class Tally:
    """Neighbours found, and neighbours."""

    found: int = 0
    wanted: int = 0

    def add(self, found: int, wanted: int) -> None:
        """Count a search."""
        self.found, self.wanted = self.found + found, self.wanted + wanted

    def check(self, what: str) -> None:
        """Searches by codes have found about what builds promise."""
        assert self.found >= RECALL_FLOOR * self.wanted, f"{what}: {self.found} of {self.wanted}"


@dataclass(frozen=True)
class Shape:
    """What of an index is no document."""

    index_version: int
    shards: int


class Searches:
    """Asks an index, and compares its answers with an oracle."""

    def __init__(self, client: AsyncClient, index: str, oracle: Oracle) -> None:
        """Nothing was asked yet."""
        self._client, self._index, self._oracle = client, index, oracle
        self.whole, self.filtered = Tally(), Tally()

    async def near_and_far(self, query: NDArray[np.float32], shape: Shape) -> None:
        """Ask for the nearest, and for all there is."""
        for top_k in (FEW_HITS, MOST_HITS):
            await self.ask(query, top_k, shape)

    async def with_filters(
        self, query: NDArray[np.float32], random: np.random.Generator, shape: Shape
    ) -> None:
        """Ask for the nearest of what some filters leave, and for all of it."""
        for condition in some(random, 3):
            for top_k in (FEW_HITS, MOST_HITS):
                await self.ask(query, top_k, shape, condition)

    async def ask(
        self,
        query: Any,
        top_k: int,
        shape: Shape,
        condition: Condition | None = None,
        *,
        cached: bool = False,
    ) -> set[str]:
        """Ask once; return the documents that were found.

        cached: the answer may come from the cache, and does not say which version it wants: every
        replica has reached the last one.
        """
        version = self._oracle.table_version
        answer = await self._client.search(
            self._index,
            query,
            top_k=top_k,
            filter=condition.text if condition else "",
            min_table_version=0 if cached else version,
            explain=True,
            bypass_cache=not cached,
        )
        assert answer.coverage.complete, answer.coverage
        assert answer.table_version >= version, "an old answer"
        self._check(answer, query, top_k, shape, condition)
        return {hit.document_id for hit in answer.hits}

    def _check(
        self,
        answer: SearchResponse,
        query: NDArray[np.float32],
        top_k: int,
        shape: Shape,
        condition: Condition | None,
    ) -> None:
        oracle = self._oracle
        assert answer.coverage.shards_total == shape.shards
        assert answer.coverage.passages_total == oracle.passage_count
        assert answer.explanation.index_version == shape.index_version
        check_answer(answer, query, oracle.author, condition)
        oracle.check_present(answer)
        if condition is not None:
            oracle.check_filtered(answer, query, top_k, condition)
        if shape.index_version == 0:
            oracle.check_exact(answer, query, top_k, condition)
        elif top_k == FEW_HITS:
            tally = self.whole if condition is None else self.filtered
            tally.add(*oracle.recall(answer, query, top_k, condition))
