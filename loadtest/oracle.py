"""What could a query have found, given which writes were begun and acknowledged when?

A model of the index that knows no FAISS: for each document the vectors that it had, each with the
time at which the write that brought it began and was acknowledged, and the same of the write that
took it away. Between beginning and acknowledgement either state is right, and whoever asks without
naming a version of the table is allowed to be `slack_s` behind. Against that, every answer is
judged: recall by exact search, and hits that should not be there any more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

_Rows = NDArray[np.float32]
_NEVER: Final = math.inf
_ALWAYS: Final = -math.inf
# Candidates of each query that are looked at before further ones are searched for.
_DEPTH: Final = 64
# Rows that are compared with all queries at once.
_BLOCK_ROWS: Final = 50_000


@dataclass
class State:
    """A vector that a document had, and when. Times are monotonic, in seconds."""

    document: int
    vector: int
    """Row of the base vectors; beyond them, of the further ones."""
    begun_s: float = _ALWAYS
    """When the write that brought it was sent."""
    here_s: float = _ALWAYS
    """When that was acknowledged; infinite if it never was."""
    ending_s: float = _NEVER
    """When the write that took it away was sent; infinite if there was none."""
    gone_s: float = _NEVER
    """When that was acknowledged."""

    def is_possible(self, known_s: float, done_s: float) -> bool:
        """True if an answer of that time may have found it."""
        return self.begun_s < done_s and self.gone_s > known_s


@dataclass(frozen=True)
class Write:
    """A write that was sent."""

    brought: State | None
    """None: it is a deletion."""
    ended: tuple[State, ...]
    """What it takes the place of."""


@dataclass(frozen=True)
class Asked:
    """An answer that is to be judged."""

    query: int
    """Row of the queries."""
    known_s: float
    """What was acknowledged by then must have been seen."""
    done_s: float
    """When the answer came."""
    documents: Sequence[int]
    """Numbers of the documents that were found, best first."""
    scores: Sequence[float]


@dataclass(frozen=True)
class Judged:
    """What an answer was worth."""

    recall: float
    """Share of the right documents among those that were found."""
    outdated: int
    """Hits on documents, or on vectors of them, that had been replaced or deleted."""


class Oracle:
    """All states of all documents."""

    def __init__(self, base: _Rows, further: _Rows, queries: _Rows, top_k: int) -> None:
        """base: the vectors of documents 0, 1, ... at the start. further: those written later."""
        self._base, self._further, self._queries, self._top_k = base, further, queries, top_k
        self._states: dict[int, list[State]] = {}
        self._document_of: dict[int, int] = {}
        # By query: vectors, by their rows, and their scores; best first.
        self._candidates: dict[int, dict[int, float]] = {}

    def begin(self, document: int, vector: int | None, now_s: float) -> Write:
        """A write is sent: of a further vector, by its row; None: a deletion.

        One write of a document at a time.
        """
        states = self._states_of(document)
        ended = tuple(state for state in states if state.gone_s == _NEVER)
        for state in ended:
            state.ending_s = min(state.ending_s, now_s)
        if vector is None:
            return Write(None, ended)
        row = len(self._base) + vector
        self._document_of[row] = document
        states.append(State(document, row, begun_s=now_s, here_s=_NEVER))
        return Write(states[-1], ended)

    def acknowledge(self, write: Write, now_s: float) -> None:
        """A write was acknowledged."""
        if write.brought is not None:
            write.brought.here_s = now_s
        for state in write.ended:
            state.gone_s = min(state.gone_s, now_s)

    def judge(self, answers: Sequence[Asked]) -> list[Judged]:
        """Judge answers, once all writes are known, by exact search.

        Takes a second or so for each hundred different queries and million vectors.
        """
        self._candidates.clear()
        self._search(sorted({each.query for each in answers}), _DEPTH)
        return [self._judge_one(each) for each in answers]

    def _states_of(self, document: int) -> list[State]:
        first = [State(document, document)] if document < len(self._base) else []
        return self._states.setdefault(document, first)

    def _judge_one(self, asked: Asked) -> Judged:
        found = set(asked.documents)
        outdated = sum(
            not self._may_be_found(document, score, asked)
            for document, score in zip(asked.documents, asked.scores, strict=True)
        )
        right = self._right(asked, found)
        return Judged(len(found & right) / len(right) if right else 1.0, outdated)

    def _may_be_found(self, document: int, score: float, asked: Asked) -> bool:
        states = self._states.get(document)
        if states is None:
            return document < len(self._base)
        # Which of its vectors was found is told by the score: codes change it a little.
        found = min(
            states,
            key=lambda state: abs(self._score_of(state.vector, asked.query) - score),
            default=None,
        )
        return found is not None and found.is_possible(asked.known_s, asked.done_s)

    def _possible(self, document: int, asked: Asked) -> list[State]:
        states = self._states[document]
        return [each for each in states if each.is_possible(asked.known_s, asked.done_s)]

    def _score_of(self, row: int, query: int) -> float:
        score = self._candidates[query].get(row)
        if score is None:
            start = len(self._base)
            vector = self._base[row] if row < start else self._further[row - start]
            score = float(vector @ self._queries[query])
        return score

    def _right(self, asked: Asked, found: set[int]) -> set[int]:
        """The documents that should have been found. Where either state is right: as was found."""
        depth = _DEPTH
        while True:
            ranked: dict[int, float] = {}
            candidates = self._candidates[asked.query]
            for document in self._documents_of(candidates):
                score = self._score(document, asked, document in found)
                if score is not None:
                    ranked[document] = score
            best = sorted(ranked, key=lambda document: -ranked[document])[: self._top_k]
            # Whatever is no candidate has a lower score than the last of them.
            lowest = min(candidates.values(), default=_NEVER)
            if len(candidates) < depth or (len(best) == self._top_k and ranked[best[-1]] > lowest):
                return set(best)
            depth *= 4
            self._search([asked.query], depth)

    def _documents_of(self, rows: Iterable[int]) -> set[int]:
        """The documents that have had these vectors; some vectors may never have been written."""
        start = len(self._base)
        found = (row if row < start else self._document_of.get(row) for row in rows)
        return {document for document in found if document is not None}

    def _score(self, document: int, asked: Asked, was_found: bool) -> float | None:
        """The score that a document should have had; None if it need not be there."""
        if document not in self._states:
            return self._score_of(document, asked.query)
        possible = self._possible(document, asked)
        if not possible or not (was_found or _is_there(possible, asked)):
            return None
        scores = [self._score_of(each.vector, asked.query) for each in possible]
        return max(scores) if was_found else min(scores)

    def _search(self, numbers: Sequence[int], depth: int) -> None:
        """Find the best candidates of some queries among all vectors that ever were."""
        import faiss

        if not numbers:
            return
        queries = np.ascontiguousarray(self._queries[list(numbers)])
        scores = np.empty((len(queries), 0), dtype=np.float32)
        rows = np.empty((len(queries), 0), dtype=np.int64)
        for first, block in self._blocks():
            k = min(depth, len(block))
            found, places = faiss.knn(queries, block, k, metric=faiss.METRIC_INNER_PRODUCT)
            scores, rows = np.hstack([scores, found]), np.hstack([rows, places + first])
            order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
            scores = np.take_along_axis(scores, order, axis=1)
            rows = np.take_along_axis(rows, order, axis=1)
        for at, number in enumerate(numbers):
            best = zip(rows[at].tolist(), scores[at].tolist(), strict=True)
            self._candidates[number] = dict(best)

    def _blocks(self) -> Iterator[tuple[int, _Rows]]:
        start = len(self._base)
        written = max(self._document_of, default=start - 1) + 1 - start
        for array, first in ((self._base, 0), (self._further[:written], start)):
            for at in range(0, len(array), _BLOCK_ROWS):
                yield first + at, np.ascontiguousarray(array[at : at + _BLOCK_ROWS])


def _is_there(possible: Sequence[State], asked: Asked) -> bool:
    """True if a document was there all the time, as one vector or as another."""
    return (
        possible[0].here_s <= asked.known_s
        and possible[-1].ending_s >= asked.done_s
        and all(before.ending_s >= after.begun_s for before, after in pairwise(possible))
    )
