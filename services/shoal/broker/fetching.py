"""Where does the text of the winners come from?

From the shard server that found each, unless it came along with the candidates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from shoal.broker.fan_out import GroupAnswer
from shoal.broker.merge import Candidates
from shoal.broker.routes import IndexRoute
from shoal.broker.targets import Targets
from shoal.internal.v1.shard_pb2 import FetchPassagesRequest, Fill
from shoal.internal.v1.shard_pb2_grpc import ShardServiceStub
from shoal.rpc.arrays import FLOAT32, UINT64, pack, unpack
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.v1.search_pb2 import Hit


@dataclass(frozen=True)
class ReadFailure:
    """Passages that could not be read."""

    server: str
    """The shard server that had found them."""
    count: int
    error: Exception


@dataclass(frozen=True)
class Fetched:
    """What was read of some candidates, in their order."""

    hits: list[Hit | None]
    """None where a passage is gone, or could not be read."""
    vectors: dict[int, NDArray[np.float32]]
    """By the candidate's position, of those whose vectors were asked for and read."""
    failures: list[ReadFailure]


@dataclass(frozen=True)
class _Read:
    """What one shard server read: by row id."""

    hits: dict[int, Hit]
    vectors: dict[int, NDArray[np.float32]]


class FetchStage:
    """Reads passages."""

    def __init__(self, targets: Targets) -> None:
        """targets: the shard servers."""
        self._targets = targets

    async def fetch(
        self,
        route: IndexRoute,
        candidates: Candidates,
        answers: Sequence[GroupAnswer],
        fill: Fill.ValueType,
        deadline: Deadline,
        vector_count: int = 0,
    ) -> Fetched:
        """Read the hit of each candidate, and of the first `vector_count` the vectors too."""
        hits = list(candidates.hits)
        missing = [position for position, each in enumerate(hits) if each is None]
        by_source: dict[int, list[int]] = {}
        for position in missing:
            by_source.setdefault(int(candidates.sources[position]), []).append(position)
        fetched = await asyncio.gather(
            *(
                self._fetch(
                    route,
                    answers[source],
                    candidates.row_ids[positions],
                    fill,
                    deadline,
                    sum(position < vector_count for position in positions),
                )
                for source, positions in by_source.items()
            )
        )
        failures: list[ReadFailure] = []
        vectors: dict[int, NDArray[np.float32]] = {}
        for (source, positions), found in zip(by_source.items(), fetched, strict=True):
            if isinstance(found, Exception):
                failures.append(ReadFailure(answers[source].server, len(positions), found))
                continue
            for position in positions:
                row_id = int(candidates.row_ids[position])
                hits[position] = found.hits.get(row_id)
                if row_id in found.vectors:
                    vectors[position] = found.vectors[row_id]
        return Fetched(hits, vectors, failures)

    async def _fetch(
        self,
        route: IndexRoute,
        answer: GroupAnswer,
        row_ids: np.ndarray[tuple[int], np.dtype[np.uint64]],
        fill: Fill.ValueType,
        deadline: Deadline,
        vector_count: int,
    ) -> _Read | Exception:
        request = FetchPassagesRequest(
            layout=route.layout,
            row_ids=pack(row_ids, UINT64),
            fill=fill,
            vector_count=vector_count,
        )
        try:
            # No other copy will do: one that is behind would leave out what it does not have yet.
            _, response = await self._targets.first_to_do(
                lambda target: target.call(
                    lambda: ShardServiceStub(target.channel).FetchPassages(
                        request, timeout=deadline.budget_s
                    )
                ),
                deadline,
                [answer.server],
            )
        except (ServiceError, TimeoutError) as error:
            return error
        found = unpack(response.row_ids, UINT64, "row_ids").tolist()
        asked = set(row_ids[:vector_count].tolist())
        near = [row_id for row_id in found if row_id in asked]
        vectors: dict[int, NDArray[np.float32]] = {}
        if response.vectors:
            rows = unpack(response.vectors, FLOAT32, "vectors").reshape(len(near), -1)
            vectors = dict(zip(near, rows, strict=True))
        return _Read(dict(zip(found, response.hits, strict=True)), vectors)
