"""Which passages have a term, and how often?

The postings of a main segment: for each term the positions of the passages that have it, ascending,
and how often each has it. Arrays that can be mapped, with their terms sorted. Like a segment they
never change: a fold or a move gathers others' postings, without their text. A live tail keeps its
postings in the order of their arrival and looks through all of them for a term, as it is short.

Why not a library: what a shard needs is that terms are weighed by counts of other shards too, that
a bitmap of this very query decides what is found, that fifty passages are added in no time, and
that the files are mapped, checked and moved like a segment's. Lance's index, tantivy and bm25s
weigh by their own counts alone, and none takes a bitmap. 63,665 descriptions of Debian packages,
300 summaries as questions, the 100 best, on two cores that others used too:

                   build    bytes     a question, p50 / p95   add 50 passages
    this           0.4 s    11 MB     0.5 / 2.8 ms            0.1 ms
    tantivy 0.27   10.7 s   10 MB     0.6 / 4.2 ms            400 ms
    Lance 14       8.1 s    7 MB      2.4 / 11.6 ms           2,600 ms
    bm25s 0.3      12.1 s   17 MB     12.5 / 44.9 ms          all anew

The build is of terms that were counted when the passage was written, which takes 0.1 to 0.3 ms
each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from shoal.lexical.analysis import COUNTED_TERM
from shoal.shard.directory import grown
from shoal.table import schema

Terms = NDArray[np.uint32]
# Positions, ascending, uint32 [n]; frequencies, uint8 [n].
PostingList = tuple[NDArray[np.uint32], NDArray[np.uint8]]

_NO_POSTINGS: Final[PostingList] = (np.empty(0, np.uint32), np.empty(0, np.uint8))
# Passages whose postings are sorted at once: their keys take 8 bytes a posting meanwhile.
_BLOCK_PASSAGES: Final = 32_768


class PostingSource(Protocol):
    """Where postings are looked up."""

    @property
    def lengths(self) -> NDArray[np.uint32]:
        """Terms of each passage, each counted as often as it stands there: [passages]."""
        ...

    def find(self, terms: Terms) -> list[PostingList]:
        """The postings of each of some terms."""
        ...


@dataclass(frozen=True)
class Postings:
    """The postings of a main segment."""

    # Ascending, each once: uint32 [terms].
    terms: Terms
    # Where the postings of each term begin, and where the last ones end: int64 [terms + 1].
    offsets: NDArray[np.int64]
    # uint32 and uint8 [postings].
    positions: NDArray[np.uint32]
    frequencies: NDArray[np.uint8]
    # uint32 [passages].
    lengths: NDArray[np.uint32]

    @property
    def count(self) -> int:
        """Passages."""
        return len(self.lengths)

    @property
    def memory_bytes(self) -> int:
        """Bytes that they take."""
        return sum(array.nbytes for array in self.columns().values())

    def columns(self) -> dict[str, NDArray[Any]]:
        """What they are made of, to be stored."""
        return {
            "terms": self.terms,
            "term_offsets": self.offsets,
            "posting_positions": self.positions,
            "posting_frequencies": self.frequencies,
            "lengths": self.lengths,
        }

    @classmethod
    def of_columns(cls, columns: dict[str, NDArray[Any]]) -> Postings:
        """Make them of what `columns` gave. Raises ValueError if that cannot be."""
        terms, offsets = columns["terms"], columns["term_offsets"]
        positions, frequencies = columns["posting_positions"], columns["posting_frequencies"]
        if len(offsets) != len(terms) + 1 or not len(positions) == len(frequencies) == offsets[-1]:
            raise ValueError("its postings do not fit each other")
        return cls(terms, offsets, positions, frequencies, columns["lengths"])

    def find(self, terms: Terms) -> list[PostingList]:
        """The postings of each of some terms."""
        if len(self.terms) == 0:
            return [_NO_POSTINGS] * len(terms)
        places = np.searchsorted(self.terms, terms)
        places[places == len(self.terms)] = 0
        known = self.terms[places] == terms
        firsts, ends = self.offsets[places].tolist(), self.offsets[places + 1].tolist()
        return [
            (self.positions[first:end], self.frequencies[first:end]) if there else _NO_POSTINGS
            for there, first, end in zip(known.tolist(), firsts, ends, strict=True)
        ]


@dataclass(frozen=True)
class CountedTerms:
    """The terms of some passages, one passage after another."""

    # uint32 and uint8 [postings].
    terms: Terms
    frequencies: NDArray[np.uint8]
    # Terms of each passage, each once: int64 [passages].
    counts: NDArray[np.int64]

    @classmethod
    def read(cls, column: pa.Array | pa.ChunkedArray) -> CountedTerms:
        """Read a column of what `pack_terms` packed; a null is a passage without terms."""
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if len(column) == 0:
            return no_terms(0)
        offsets = np.frombuffer(column.buffers()[1], np.int64)
        offsets = offsets[column.offset : column.offset + len(column) + 1]
        data = np.frombuffer(column.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
        counted = data.view(COUNTED_TERM)
        counts = np.diff(offsets) // COUNTED_TERM.itemsize
        return cls(counted["term"].copy(), counted["frequency"].copy(), counts)

    @property
    def lengths(self) -> NDArray[np.uint32]:
        """Terms of each passage, each as often as it stands there."""
        ends = np.concatenate([[0], np.cumsum(self.frequencies, dtype=np.int64)])
        bounds = np.concatenate([[0], np.cumsum(self.counts)])
        lengths: NDArray[np.uint32] = np.diff(ends[bounds]).astype(np.uint32)
        return lengths

    def positions(self, first: int = 0) -> NDArray[np.uint32]:
        """The passage that each of the terms is of, counted from `first`."""
        numbers = np.arange(first, first + len(self.counts), dtype=np.uint32)
        return np.repeat(numbers, self.counts)


def no_terms(count: int) -> CountedTerms:
    """So many passages without terms."""
    return CountedTerms(
        np.empty(0, np.uint32), np.empty(0, np.uint8), np.zeros(count, dtype=np.int64)
    )


def counted_of(rows: pa.Table | pa.RecordBatch) -> CountedTerms:
    """The terms of rows of the table, which need not have any."""
    if schema.TERMS not in rows.schema.names:
        return no_terms(rows.num_rows)
    return CountedTerms.read(rows.column(schema.TERMS))


def sorted_postings(
    terms: Terms,
    positions: NDArray[np.uint32],
    frequencies: NDArray[np.uint8],
    lengths: NDArray[np.uint32],
) -> Postings:
    """Make postings of terms in any order."""
    keys = terms.astype(np.uint64) << np.uint64(32) | positions
    order = np.argsort(keys)
    ordered = terms[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] ^ np.uint32(1)))
    offsets = np.append(starts, len(ordered)).astype(np.int64)
    return Postings(ordered[starts], offsets, positions[order], frequencies[order], lengths)


class PostingsBuilder:
    """Makes postings of passages that come in pieces."""

    def __init__(self) -> None:
        """Start empty."""
        self._pending: list[CountedTerms] = []
        self._pending_count = 0
        self._blocks: list[Postings] = []

    def add(self, counted: CountedTerms) -> None:
        """Add passages at the end."""
        self._pending.append(counted)
        self._pending_count += len(counted.counts)
        if self._pending_count >= _BLOCK_PASSAGES:
            self._flush()

    def finish(self) -> Postings:
        """Give the postings."""
        self._flush()
        return gathered([(block, np.ones(block.count, dtype=bool)) for block in self._blocks])

    def _flush(self) -> None:
        pending, self._pending, self._pending_count = self._pending, [], 0
        if pending:
            joined = CountedTerms(
                np.concatenate([each.terms for each in pending]),
                np.concatenate([each.frequencies for each in pending]),
                np.concatenate([each.counts for each in pending]),
            )
            positions = joined.positions()
            block = sorted_postings(joined.terms, positions, joined.frequencies, joined.lengths)
            self._blocks.append(block)


def gathered(parts: Sequence[tuple[Postings, NDArray[np.bool_]]]) -> Postings:
    """Make postings of the marked passages of others, one after another. A copy of what is kept."""
    if not parts:
        return EMPTY_POSTINGS
    if len(parts) == 1 and parts[0][1].all():
        return parts[0][0]
    kept, first = [], 0
    for postings, mask in parts:
        kept.append(_kept(postings, mask, first))
        first += int(mask.sum())
    terms = np.unique(np.concatenate([each.terms for each in kept]))
    places = [np.searchsorted(terms, each.terms) for each in kept]
    sizes = np.zeros(len(terms), dtype=np.int64)
    for each, place in zip(kept, places, strict=True):
        sizes[place] += np.diff(each.offsets)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    positions = np.empty(offsets[-1], dtype=np.uint32)
    frequencies = np.empty(offsets[-1], dtype=np.uint8)
    # Where the next posting of each term goes: parts come in the order of their positions.
    free = offsets[:-1].copy()
    for each, place in zip(kept, places, strict=True):
        counts = np.diff(each.offsets)
        targets = np.arange(len(each.positions)) + np.repeat(
            free[place] - each.offsets[:-1], counts
        )
        positions[targets] = each.positions
        frequencies[targets] = each.frequencies
        free[place] += counts
    lengths = np.concatenate([each.lengths for each in kept])
    return Postings(terms, offsets, positions, frequencies, lengths)


def _kept(postings: Postings, mask: NDArray[np.bool_], first: int) -> Postings:
    """The postings of the marked passages, which are numbered from `first`."""
    if mask.all():
        positions = postings.positions + np.uint32(first)
        return Postings(
            postings.terms, postings.offsets, positions, postings.frequencies, postings.lengths
        )
    numbers = (np.cumsum(mask) - 1 + first).astype(np.uint32)
    chosen = mask[postings.positions]
    before = np.concatenate([[0], np.cumsum(chosen)])[postings.offsets]
    used = np.diff(before) > 0
    return Postings(
        postings.terms[used],
        np.append(before[:-1][used], before[-1]),
        numbers[postings.positions[chosen]],
        postings.frequencies[chosen],
        postings.lengths[mask],
    )


EMPTY_POSTINGS: Final = Postings(
    np.empty(0, np.uint32), np.zeros(1, np.int64), *_NO_POSTINGS, np.empty(0, np.uint32)
)


class TailPostings:
    """The postings of a live tail. Grows; what is there stays as it is.

    One thread appends. Others may look among the first passages, as many as they know of.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._terms = np.empty(0, np.uint32)
        self._positions, self._frequencies = _NO_POSTINGS
        self._lengths = np.empty(0, np.uint32)
        self._count = self._posting_count = 0

    @property
    def memory_bytes(self) -> int:
        """Bytes that they take."""
        arrays = (self._terms, self._positions, self._frequencies, self._lengths)
        return sum(array.nbytes for array in arrays)

    def append(self, counted: CountedTerms) -> None:
        """Add passages at the end."""
        count, added = self._posting_count, len(counted.terms)
        self._terms = grown(self._terms, count, added)
        self._positions = grown(self._positions, count, added)
        self._frequencies = grown(self._frequencies, count, added)
        self._terms[count : count + added] = counted.terms
        self._positions[count : count + added] = counted.positions(self._count)
        self._frequencies[count : count + added] = counted.frequencies
        passages = len(counted.counts)
        self._lengths = grown(self._lengths, self._count, passages)
        self._lengths[self._count : self._count + passages] = counted.lengths
        self._posting_count += added
        self._count += passages

    def first(self, count: int) -> FlatPostings:
        """Those of the first `count` passages; they do not change."""
        # The count of postings is written after they are.
        end = int(np.searchsorted(self._positions[: self._posting_count], count))
        return FlatPostings(
            self._terms[:end], self._positions[:end], self._frequencies[:end], self._lengths[:count]
        )


@dataclass(frozen=True)
class FlatPostings:
    """Postings in the order of their passages."""

    terms: Terms
    positions: NDArray[np.uint32]
    frequencies: NDArray[np.uint8]
    lengths: NDArray[np.uint32]

    def find(self, terms: Terms) -> list[PostingList]:
        """The postings of each of some terms. Looks through all: 60 us for 1,000,000 and term."""
        found = []
        for term in terms:
            here = np.flatnonzero(self.terms == term)
            found.append((self.positions[here], self.frequencies[here]))
        return found

    def sorted(self) -> Postings:
        """The same by term."""
        return sorted_postings(self.terms, self.positions, self.frequencies, self.lengths)

    def counted(self, chosen: NDArray[np.bool_]) -> CountedTerms:
        """The terms of the chosen passages, bool [passages]."""
        kept = chosen[self.positions]
        counts = np.bincount(self.positions, minlength=len(self.lengths))[chosen]
        return CountedTerms(self.terms[kept], self.frequencies[kept], counts.astype(np.int64))
