"""How do the words of a question find passages beside its vector, in all shards together?

Each place (a main segment or a tail) gives its best by BM25, under the same bitmap of what is live
as the vectors' search. Then every candidate is scored in the way that did not find it: one that the
words found gets its inner product, one that the vector found gets its BM25, so that both scores of
each are known to who fuses them. The terms are weighed by counts over the whole index, of what is
live: the dead are counted out exactly, as they are many here and few there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.internal.v1.shard_pb2 import LexicalQuery, TermStatistics
from shoal.lexical.analysis import Analyzer
from shoal.rpc.arrays import UINT32, UINT64, pack, unpack
from shoal.rpc.errors import InvalidFieldError
from shoal.shard import bm25
from shoal.shard.bm25 import Statistics, TermQuery
from shoal.shard.codes import Codebook
from shoal.shard.merge import MISSING_SCORE
from shoal.shard.postings import PostingSource, Terms
from shoal.shard.search import Ranking, Target
from shoal.shard.segment import ExactSegment
from shoal.shard.tombstones import Live

_log = logging.getLogger(__name__)

# Of a question, the rarest: a document pasted in as a question has more than it needs.
MAX_TERMS: Final = 256


@dataclass(frozen=True)
class Words:
    """The words of a call's queries, as they came."""

    # One a query.
    queries: Sequence[LexicalQuery]
    analyzer: Analyzer

    def read(self, chosen: Sequence[int], targets: Sequence[Target]) -> list[TermQuery | None]:
        """Weigh the terms of some queries; None for one without words.

        Raises InvalidFieldError.
        """
        return [_read(self.queries[at], self.analyzer, targets) for at in chosen]


def words_of(queries: Sequence[LexicalQuery], analyzer: Analyzer | None) -> Words | None:
    """The words of a call; None if there are none, or the table has no terms."""
    if analyzer is None or not any(query.text for query in queries):
        return None
    return Words(queries, analyzer)


def count_terms(analyzer: Analyzer, text: str) -> tuple[Terms, NDArray[np.int64]]:
    """The terms of a question, ascending, each once, and how often it has each."""
    terms, counts = np.unique(np.array(analyzer.terms(text), np.uint32), return_counts=True)
    return terms, counts


def statistics_of(targets: Sequence[Target], terms: Terms) -> Statistics:
    """Count terms in what is live in some shards."""
    parts = [
        bm25.statistics_of(place.source, terms, place.live)
        for target in targets
        for place in _places(0, target)
    ]
    return bm25.summed(parts, len(terms))


def _read(query: LexicalQuery, analyzer: Analyzer, targets: Sequence[Target]) -> TermQuery | None:
    if not query.text:
        return None
    terms, counts = count_terms(analyzer, query.text)
    if query.HasField("statistics"):
        statistics = read_statistics(query.statistics, terms)
    else:
        statistics = statistics_of(targets, terms)
    weighed = bm25.term_query(terms, counts, statistics)
    return TermQuery(weighed.terms[:MAX_TERMS], weighed.weights[:MAX_TERMS], weighed.average_length)


def read_statistics(message: TermStatistics, terms: Terms) -> Statistics:
    """Read counts that a broker has added up. Raises InvalidFieldError if of other terms."""
    found: Terms = unpack(message.terms, UINT32, "lexical.statistics.terms")
    frequencies = unpack(message.frequencies, UINT64, "lexical.statistics.frequencies")
    if not np.array_equal(found, terms) or len(frequencies) != len(terms):
        raise InvalidFieldError(
            "lexical.statistics", "are not of the text's terms: count with this release's servers"
        )
    return Statistics(message.passage_count, message.total_length, frequencies.astype(np.int64))


def write_statistics(statistics: Statistics, terms: Terms) -> TermStatistics:
    """Write counts into a message."""
    return TermStatistics(
        passage_count=statistics.passage_count,
        total_length=statistics.total_length,
        terms=pack(terms, UINT32),
        frequencies=pack(statistics.frequencies.astype(np.uint64), UINT64),
    )


@dataclass(frozen=True)
class _Place:
    """A main segment or a tail, as the words see it."""

    part: int
    source: PostingSource
    live: Live
    row_ids: NDArray[np.uint64]


def _places(at: int, target: Target) -> Iterator[_Place]:
    view = target.view
    if view.main.postings is not None:
        row_ids = view.main.directory.row_ids
        yield _Place(2 * at, view.main.postings, view.main_live, row_ids)
    count = view.tail_live.count
    if count:
        postings = view.tail.postings.first(count)
        row_ids = view.tail.directory.row_ids[:count]
        yield _Place(2 * at + 1, postings, view.tail_live, row_ids)


@dataclass(frozen=True)
class _Found:
    """Candidates of one query: arrays [n]."""

    row_ids: NDArray[np.uint64]
    parts: NDArray[np.int64]
    positions: NDArray[np.int64]
    dense: NDArray[np.float32]
    lexical: NDArray[np.float32]

    def chosen(self, places: NDArray[np.int64]) -> _Found:
        return _Found(
            self.row_ids[places],
            self.parts[places],
            self.positions[places],
            self.dense[places],
            self.lexical[places],
        )


class LexicalLeg:
    """Searches a block's questions by their words, and joins what the vectors have found."""

    def __init__(self, targets: Sequence[Target], codebook: Codebook | None) -> None:
        """codebook: of the layout; None if it is searched exactly."""
        self._targets, self._codebook = targets, codebook
        self.failures: dict[int, str] = {}

    def widened(
        self,
        ranking: Ranking,
        queries: NDArray[np.float32],
        words: Sequence[TermQuery | None],
        top_ks: Sequence[int],
    ) -> Ranking:
        """Add to each query's candidates those that its words find, up to its top_k of either kind.

        Both scores of all candidates are given, in the order of the dense ones.
        """
        rows = [
            self._joined(_row(ranking, at, top_k), vector, query, top_k)
            for at, (vector, query, top_k) in enumerate(zip(queries, words, top_ks, strict=True))
        ]
        return _ranking_of(rows, [query is not None for query in words])

    def _joined(
        self, dense: _Found, vector: NDArray[np.float32], query: TermQuery | None, top_k: int
    ) -> _Found:
        if query is None:
            return dense
        words = self._search(query, top_k)
        fresh = np.flatnonzero(~np.isin(words.row_ids, dense.row_ids))
        words = words.chosen(fresh)
        self._score_vectors(words, vector)
        self._score_words(dense, query)
        both = _Found(
            np.concatenate([dense.row_ids, words.row_ids]),
            np.concatenate([dense.parts, words.parts]),
            np.concatenate([dense.positions, words.positions]),
            np.concatenate([dense.dense, words.dense]),
            np.concatenate([dense.lexical, words.lexical]),
        )
        return both.chosen(np.lexsort((both.row_ids, -both.dense)))

    def _search(self, query: TermQuery, top_k: int) -> _Found:
        """The best of all places together by the words alone; their dense scores are missing."""
        rows = [np.empty(0, np.uint64)]
        parts, positions = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        scores = [np.empty(0, np.float32)]
        for place in self._everywhere():
            found = self._guarded(
                place,
                lambda place=place: bm25.search(  # type: ignore[misc]  # bound as it is called
                    place.source, query, top_k, place.live, place.row_ids
                ),
            )
            if found is not None:
                scores.append(found[0])
                positions.append(found[1])
                rows.append(place.row_ids[found[1]])
                parts.append(np.full(len(found[1]), place.part, dtype=np.int64))
        lexical = np.concatenate(scores)
        every = _Found(
            np.concatenate(rows),
            np.concatenate(parts),
            np.concatenate(positions),
            np.full(len(lexical), MISSING_SCORE, dtype=np.float32),
            lexical,
        )
        return every.chosen(np.lexsort((every.row_ids, -lexical))[:top_k])

    def _everywhere(self) -> Iterator[_Place]:
        for at, target in enumerate(self._targets):
            if target.shard not in self.failures:
                yield from _places(at, target)

    def _guarded(
        self,
        place: _Place,
        work: Callable[[], tuple[NDArray[np.float32], NDArray[np.int64]]],
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        shard = self._targets[place.part // 2].shard
        try:
            return work()
        except Exception as error:  # noqa: BLE001  # the other shards answer
            _log.exception("the words of shard %d cannot be searched", shard)
            self.failures[shard] = f"{type(error).__name__}: {error}"
            return None

    def _score_words(self, found: _Found, query: TermQuery) -> None:
        for place in self._everywhere():
            here = np.flatnonzero(found.parts == place.part)
            if len(here):
                found.lexical[here] = bm25.scores_at(place.source, query, found.positions[here])

    def _score_vectors(self, found: _Found, vector: NDArray[np.float32]) -> None:
        for at, target in enumerate(self._targets):
            for part in (2 * at, 2 * at + 1):
                here = np.flatnonzero(found.parts == part)
                if len(here):
                    positions = found.positions[here]
                    found.dense[here] = self._products(target, part % 2 == 1, positions, vector)

    def _products(
        self, target: Target, tail: bool, positions: NDArray[np.int64], vector: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Inner products, by the best code that there is of each passage."""
        view = target.view
        if tail:
            rows = view.tail.vectors(view.tail_live.count)
        elif isinstance(view.main.segment, ExactSegment):
            rows = view.main.segment.vectors
        else:
            assert self._codebook is not None
            wide = view.main.segment.wide[positions][None]
            scores: NDArray[np.float32] = self._codebook.wide.scores(vector[None], wide)[0]
            return scores
        products: NDArray[np.float32] = rows[positions] @ vector
        return products


def _row(ranking: Ranking, at: int, top_k: int) -> _Found:
    count = min(top_k, int((ranking.positions[at] >= 0).sum()))
    return _Found(
        ranking.row_ids[at, :count],
        ranking.parts[at, :count],
        ranking.positions[at, :count],
        ranking.scores[at, :count],
        np.zeros(count, dtype=np.float32),
    )


def _ranking_of(rows: Sequence[_Found], with_words: Sequence[bool]) -> Ranking:
    """Put rows of different lengths together."""
    shape = len(rows), max((len(row.row_ids) for row in rows), default=0)
    scores = np.full(shape, MISSING_SCORE, dtype=np.float32)
    row_ids, parts = np.zeros(shape, np.uint64), np.zeros(shape, np.int64)
    positions = np.full(shape, -1, dtype=np.int64)
    for at, row in enumerate(rows):
        end = len(row.row_ids)
        scores[at, :end], row_ids[at, :end] = row.dense, row.row_ids
        parts[at, :end], positions[at, :end] = row.parts, row.positions
    lexical = [row.lexical if has else None for row, has in zip(rows, with_words, strict=True)]
    return Ranking(scores, row_ids, parts, positions, lexical)
