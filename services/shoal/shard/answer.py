"""What is done for a call, off the event loop, and how does it become an answer?"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.internal.v1.shard_pb2 import (
    CandidateList,
    CountTermsResponse,
    FetchDocumentsResponse,
    FetchPassagesResponse,
    Fill,
    SearchShardsResponse,
    ShardState,
)
from shoal.lexical.analysis import Analyzer
from shoal.rpc.arrays import FLOAT32, UINT32, UINT64, pack
from shoal.rpc.errors import ServiceError
from shoal.shard.field_columns import Condition
from shoal.shard.fill import (
    References,
    read_content,
    read_documents,
    write_lists,
    write_references,
)
from shoal.shard.held import HeldLayout, write_next_expiry
from shoal.shard.lexical_leg import LexicalLeg, Words, count_terms, statistics_of, write_statistics
from shoal.shard.live_recall import QueryWindow
from shoal.shard.search import Ranking, Target, search
from shoal.table.table import PassageTable
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import Hit

_log = logging.getLogger(__name__)

# A block for fewer queries costs more in the switch between threads than it gains.
_MIN_BLOCK_QUERIES: Final = 8


@dataclass(frozen=True)
class Block:
    """Queries that are searched together, with one `top_k` and one filter, in one thread."""

    queries: tuple[int, ...]
    top_k: int
    condition: Condition | None = None


@dataclass(frozen=True)
class Found:
    """What a block found."""

    block: Block
    ranking: Ranking
    failures: dict[int, str]
    # Passages that match the filter, by shard; empty if there is none.
    matching_counts: dict[int, int]


@dataclass(frozen=True)
class Searching:
    """A search of many queries in many shards."""

    targets: Sequence[Target]
    layout: HeldLayout
    queries: NDArray[np.float32]
    top_ks: Sequence[int]
    # One a query.
    conditions: Sequence[Condition | None]
    # None if no query has words.
    words: Words | None = None

    def blocks(self, threads: int) -> list[Block]:
        """Divide the queries: one that wants many results must not make the others pay for it."""
        groups: dict[tuple[int, str], list[int]] = {}
        for at, top_k in enumerate(self.top_ks):
            condition = self.conditions[at]
            text = "" if condition is None else condition.text
            groups.setdefault((_cost_class(top_k), text), []).append(at)
        blocks = []
        for members in groups.values():
            parts = max(1, min(threads, len(members) // _MIN_BLOCK_QUERIES))
            for part in range(parts):
                chosen = members[part::parts]
                top_k = max(self.top_ks[at] for at in chosen)
                blocks.append(Block(tuple(chosen), top_k, self.conditions[chosen[0]]))
        return blocks

    def offer_to(self, window: QueryWindow) -> None:
        """Have queries checked later on: those without a filter, whose truth is that of all."""
        if not any(self.conditions):
            window.offer(self.queries, self.top_ks)
            return
        plain = [at for at, condition in enumerate(self.conditions) if condition is None]
        if plain:
            window.offer(self.queries[plain], [self.top_ks[at] for at in plain])

    def run(self, block: Block) -> Found:
        """Search one block."""
        queries = self.queries
        if len(block.queries) < len(queries):
            queries = queries[np.array(block.queries)]
        targets, unread = _matching(self.targets, block.condition)
        ranking, failures = search(
            targets,
            self.layout.codebook,
            queries,
            block.top_k,
            shard_count=self.layout.id.shard_count,
            effort=self.layout.effort,
        )
        if self.words is not None:
            leg = LexicalLeg(targets, self.layout.codebook)
            # Weighed by what is live, whatever the filter.
            words = self.words.read(block.queries, self.targets)
            top_ks = [self.top_ks[at] for at in block.queries]
            ranking = leg.widened(ranking, queries, words, top_ks)
            failures |= leg.failures
        counts = {each.shard: each.view.passage_count for each in targets}
        matching_counts = {} if block.condition is None else counts
        return Found(block, ranking, failures | unread, matching_counts)


def _matching(
    targets: Sequence[Target], condition: Condition | None
) -> tuple[Sequence[Target], dict[int, str]]:
    """The targets, narrowed by a filter, and what failed, by shard.

    A shard whose columns cannot be read is left with nothing, so that positions stay as they are.
    """
    if condition is None:
        return targets, {}
    narrowed, failures = [], {}
    for target in targets:
        try:
            narrowed.append(target.matching(condition))
        except Exception as error:  # noqa: BLE001  # the other shards answer
            _log.exception("shard %d cannot be filtered", target.shard)
            failures[target.shard] = f"{type(error).__name__}: {error}"
            narrowed.append(target.emptied())
    return narrowed, failures


def _cost_class(top_k: int) -> int:
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
        if part.matching_counts:
            counts = [part.matching_counts.get(shard, 0) for shard in shards]
            for member in members:
                member.matching_counts.extend(counts)
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
            write_next_expiry(view, state)
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
    """Add title, text and metadata where they are wanted. Blocks.

    A candidate whose row has left the table meanwhile is left out.
    """
    content = read_content(table, wanted)
    for result, fill in zip(response.results, fills, strict=True):
        if fill == Fill.FILL_TEXT:
            rows = zip(_row_ids(result), result.hits, strict=True)
            kept = [at for at, (row_id, hit) in enumerate(rows) if content.write(row_id, hit)]
            if len(kept) < len(result.hits):
                _keep(result, kept)


def _keep(result: CandidateList, places: Sequence[int]) -> None:
    """Leave out all candidates but those at some places."""
    for name, dtype in (("row_ids", UINT64), ("scores", FLOAT32), ("shards", UINT32)):
        values = np.frombuffer(getattr(result, name), dtype=dtype)
        setattr(result, name, values[list(places)].tobytes())
    hits = [result.hits[at] for at in places]
    del result.hits[:]
    result.hits.extend(hits)


def _row_ids(result: CandidateList) -> list[int]:
    row_ids: list[int] = np.frombuffer(result.row_ids, dtype=UINT64).tolist()
    return row_ids


def count_texts(
    targets: Sequence[Target], texts: Sequence[str], analyzer: Analyzer | None
) -> CountTermsResponse:
    """Count the terms of texts in shards; nothing if the table has no terms."""
    response = CountTermsResponse(shards=[target.shard for target in targets])
    for text in texts if analyzer is not None else ():
        assert analyzer is not None
        terms, _ = count_terms(analyzer, text)
        response.statistics.append(write_statistics(statistics_of(targets, terms), terms))
    return response


def fetch_passages(
    targets: Sequence[Target],
    row_ids: NDArray[np.uint64],
    table: PassageTable | None,
    vector_count: int = 0,
) -> FetchPassagesResponse:
    """Read passages that are live, in the order of the ids. Blocks.

    table: None if only references are wanted. vector_count: of how many of the ids, from the first
    on, to read the vectors too.
    """
    found: dict[int, Hit] = {}
    for target in targets:
        for indexes, directory, positions in target.view.find_rows(row_ids):
            references = References(directory, positions)
            for number, at in enumerate(indexes.tolist()):
                found[at] = Hit()
                references.write(number, found[at])
    places = sorted(found)
    vectors = b""
    if table is not None and found:
        wanted = row_ids[np.array(places, dtype=np.intp)].tolist()
        content = read_content(table, wanted, with_vectors=vector_count > 0)
        # A row that has left the table since is as good as never found.
        places = [at for at in places if content.write(int(row_ids[at]), found[at])]
        if content.vectors is not None:
            near = [content.places[int(row_ids[at])] for at in places if at < vector_count]
            vectors = pack(content.vectors[near], FLOAT32)
    rows = row_ids[np.array(places, dtype=np.intp)]
    return FetchPassagesResponse(
        hits=[found[at] for at in places], row_ids=pack(rows, UINT64), vectors=vectors
    )


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
            directory.row_ids[positions]
            for _, directory, positions in target.view.find_documents(mine)
        ]
    joined = np.concatenate([np.empty(0, UINT64), *row_ids])
    return FetchDocumentsResponse(documents=read_documents(table, joined, ids))
