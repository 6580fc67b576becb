"""What is done for a call, off the event loop, and how does it become an answer?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.internal.v1.shard_pb2 import (
    CandidateList,
    FetchDocumentsResponse,
    FetchPassagesResponse,
    Fill,
    SearchShardsResponse,
    ShardState,
)
from shoal.rpc.arrays import UINT64, pack
from shoal.rpc.errors import ServiceError
from shoal.shard.fill import (
    References,
    read_content,
    read_documents,
    write_lists,
    write_references,
)
from shoal.shard.held import HeldLayout
from shoal.shard.search import Ranking, Target, search
from shoal.table.table import PassageTable
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import Hit

# A block for fewer queries costs more in the switch between threads than it gains.
_MIN_BLOCK_QUERIES: Final = 8


@dataclass(frozen=True)
class Block:
    """Queries that are searched together, with one `top_k`, in one thread."""

    queries: tuple[int, ...]
    top_k: int


@dataclass(frozen=True)
class Found:
    """What a block found."""

    block: Block
    ranking: Ranking
    failures: dict[int, str]


@dataclass(frozen=True)
class Searching:
    """A search of many queries in many shards."""

    targets: Sequence[Target]
    layout: HeldLayout
    queries: NDArray[np.float32]
    top_ks: Sequence[int]

    def blocks(self, threads: int) -> list[Block]:
        """Divide the queries: one that wants many results must not make the others pay for it."""
        groups: dict[int, list[int]] = {}
        for at, top_k in enumerate(self.top_ks):
            groups.setdefault(_effort(top_k), []).append(at)
        blocks = []
        for members in groups.values():
            parts = max(1, min(threads, len(members) // _MIN_BLOCK_QUERIES))
            for part in range(parts):
                chosen = members[part::parts]
                blocks.append(Block(tuple(chosen), max(self.top_ks[at] for at in chosen)))
        return blocks

    def run(self, block: Block) -> Found:
        """Search one block."""
        queries = self.queries
        if len(block.queries) < len(queries):
            queries = queries[np.array(block.queries)]
        ranking, failures = search(
            self.targets,
            self.layout.codebook,
            queries,
            block.top_k,
            shard_count=self.layout.id.shard_count,
            effort=self.layout.effort,
        )
        return Found(block, ranking, failures)


def _effort(top_k: int) -> int:
    """A number that is the same for searches of about the same cost."""
    return next(bound for bound in (10, 32, 100, 320, 1000) if top_k <= bound)


def respond(
    shards: Sequence[int],
    searching: Searching,
    found: Sequence[Found],
    fills: Sequence[Fill.ValueType],
) -> SearchShardsResponse:
    """Put the answer together, references included. Raises NOT_READY if every shard failed."""
    targets, top_ks, layout = searching.targets, searching.top_ks, searching.layout
    response = SearchShardsResponse(shards=_states(layout, shards, targets, found))
    if not any(state.ready for state in response.shards):
        why = "; ".join(state.message for state in response.shards)
        raise ServiceError(Reason.REASON_NOT_READY, f"no shard could be searched: {why}")
    results = [response.results.add() for _ in top_ks]
    for part in found:
        members = [results[at] for at in part.block.queries]
        write_lists(targets, part.ranking, [top_ks[at] for at in part.block.queries], members)
        filled = [
            (row, results[at])
            for row, at in enumerate(part.block.queries)
            if fills[at] != Fill.FILL_UNSPECIFIED
        ]
        write_references(targets, part.ranking, filled)
    return response


def _states(
    layout: HeldLayout, shards: Sequence[int], targets: Sequence[Target], found: Sequence[Found]
) -> Iterator[ShardState]:
    failures = {shard: why for part in found for shard, why in part.failures.items()}
    searched = {target.shard: target.view for target in targets}
    for number in shards:
        state = layout.state(number)
        view = searched.get(number)
        if number in failures or view is None:
            state.ready = False
            state.message = failures.get(number, state.message or "it has just been loaded")
        else:
            # Of the state that was searched, which may have been left behind since.
            state.ready = True
            state.table_version = view.cursor.version
            state.passage_count = view.passage_count
            state.document_count = view.document_count
        yield state


def rows_wanted(response: SearchShardsResponse, fills: Sequence[Fill.ValueType]) -> set[int]:
    """Row ids whose content is wanted, of all queries of a call."""
    return {
        row_id
        for result, fill in zip(response.results, fills, strict=True)
        if fill == Fill.FILL_TEXT
        for row_id in _row_ids(result)
    }


def add_content(
    table: PassageTable,
    response: SearchShardsResponse,
    fills: Sequence[Fill.ValueType],
    wanted: set[int],
) -> None:
    """Add title, text and metadata where they are wanted. Blocks."""
    content = read_content(table, wanted)
    for result, fill in zip(response.results, fills, strict=True):
        if fill == Fill.FILL_TEXT:
            for row_id, hit in zip(_row_ids(result), result.hits, strict=True):
                content.write(row_id, hit)


def _row_ids(result: CandidateList) -> list[int]:
    row_ids: list[int] = np.frombuffer(result.row_ids, dtype=UINT64).tolist()
    return row_ids


def fetch_passages(
    targets: Sequence[Target], row_ids: NDArray[np.uint64], table: PassageTable | None
) -> FetchPassagesResponse:
    """Read passages that are live, in the order of the ids. Blocks.

    table: None if only references are wanted.
    """
    found: dict[int, Hit] = {}
    for target in targets:
        for indexes, directory, positions in target.view.find_rows(row_ids):
            references = References(directory, positions)
            for number, at in enumerate(indexes.tolist()):
                found[at] = Hit()
                references.write(number, found[at])
    places = sorted(found)
    hits, rows = [found[at] for at in places], row_ids[np.array(places, dtype=np.intp)]
    if table is not None and found:
        content = read_content(table, rows.tolist())
        for row_id, hit in zip(rows.tolist(), hits, strict=True):
            content.write(row_id, hit)
    return FetchPassagesResponse(hits=hits, row_ids=pack(rows, UINT64))


def fetch_documents(
    targets: Sequence[Target], owners: Sequence[int], ids: Sequence[str], table: PassageTable
) -> FetchDocumentsResponse:
    """Read documents that are live, in the order of the ids. Blocks.

    owners: the shard of each id.
    """
    row_ids = []
    for target in targets:
        mine = [each for each, owner in zip(ids, owners, strict=True) if owner == target.shard]
        row_ids += [
            directory.records["row_id"][positions]
            for _, directory, positions in target.view.find_documents(mine)
        ]
    joined = np.concatenate([np.empty(0, UINT64), *row_ids])
    return FetchDocumentsResponse(documents=read_documents(table, joined, ids))
