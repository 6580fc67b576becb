"""Where does the text of the winners come from?

From the shard server that found each, unless it came along with the candidates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from shoal.broker.fan_out import GroupAnswer
from shoal.broker.merge import Candidates
from shoal.broker.routes import IndexRoute
from shoal.broker.targets import Targets
from shoal.internal.v1.shard_pb2 import FetchPassagesRequest, Fill
from shoal.internal.v1.shard_pb2_grpc import ShardServiceStub
from shoal.rpc.arrays import UINT64, pack, unpack
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
    ) -> tuple[list[Hit | None], list[ReadFailure]]:
        """Read the hit of each candidate; None where it is gone, or could not be read.

        The failures say which could not be read.
        """
        hits = list(candidates.hits)
        missing = [position for position, each in enumerate(hits) if each is None]
        by_source: dict[int, list[int]] = {}
        for position in missing:
            by_source.setdefault(int(candidates.sources[position]), []).append(position)
        fetched = await asyncio.gather(
            *(
                self._fetch(route, answers[source], candidates.row_ids[positions], fill, deadline)
                for source, positions in by_source.items()
            )
        )
        failures = []
        for (source, positions), found in zip(by_source.items(), fetched, strict=True):
            if isinstance(found, Exception):
                failures.append(ReadFailure(answers[source].server, len(positions), found))
                continue
            for position in positions:
                hits[position] = found.get(int(candidates.row_ids[position]))
        return hits, failures

    async def _fetch(
        self,
        route: IndexRoute,
        answer: GroupAnswer,
        row_ids: np.ndarray[tuple[int], np.dtype[np.uint64]],
        fill: Fill.ValueType,
        deadline: Deadline,
    ) -> dict[int, Hit] | Exception:
        request = FetchPassagesRequest(
            layout=route.layout, row_ids=pack(row_ids, UINT64), fill=fill
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
        return dict(zip(found, response.hits, strict=True))
