"""What must a kind of segment be able to do, from training to being moved?

                       train            new, filled         write, read
    vectors ─────────────────> template ──────────> segment ──────────> files
                                                    │  ▲
                              candidates <── probe ─┘  └── folded, gathered

A kind is one module that implements `Kind` and `CodedSegment`, and an entry in `shoal.shard.kinds`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from shoal.shard.codes import Codebook, Manifest, OperatingPoint
from shoal.shard.kind_names import KindName
from shoal.shard.segment import CodedSegment, Vectors
from shoal.shard.segment_folder import FolderReader, FolderWriter
from shoal.shard.survivors import Part
from shoal.shard.wide_code import WideCode, WideKind

# What scoring a candidate again costs on one core, in nanoseconds, measured on AVX-512 at 384
# numbers; only its proportion to what the kinds say of their codes matters.
REFINED_NS: Final = 150.0


@dataclass(frozen=True)
class Trial:
    """Search parameters that are tried, and what they cost in nanoseconds before any refining.

    Only the proportions of costs matter, within one kind.
    """

    cost_ns: float
    nprobe: int = 1
    ef_search: int = 0


class Filling(Protocol):
    """A segment that is being made of vectors that come in pieces."""

    def add(self, vectors: Vectors) -> None:
        """Add vectors at the end."""
        ...

    def finish(self) -> CodedSegment:
        """Give the segment."""
        ...


class Kind(ABC):
    """A way to hold and search coded vectors."""

    name: ClassVar[KindName]
    # True: candidates are scored again by the wide code. False: their scores are final.
    refines: ClassVar[bool]
    # Wide codes that may be chosen, narrowest first.
    wides: ClassVar[tuple[WideKind, ...]]
    # Candidates for each result that are tried, ascending.
    refine_factors: ClassVar[tuple[int, ...]]
    # True if there are inverted lists, whose number is chosen from that of the passages.
    has_lists: ClassVar[bool]
    # Most vectors that recall is measured among while training; the segments are verified anyway.
    measured_at_most: ClassVar[int]

    @abstractmethod
    def factory(self, dimension: int, list_count: int) -> str:
        """Name the index in FAISS's words."""

    @abstractmethod
    def train(self, sample: Vectors, list_count: int, wide: WideCode, seed: int) -> Any:
        """Make a trained FAISS index without vectors: the template of all segments."""

    @abstractmethod
    def trials(self, list_count: int, count: int) -> Iterator[Trial]:
        """Parameters to try, the cheapest first, in an index of `count` vectors."""

    def wanting(self, trial: Trial, top_k: int) -> Trial:
        """Say what a trial becomes where so many results are wanted."""
        del top_k
        return trial

    @abstractmethod
    def tried(
        self, index: Any, queries: Vectors, k: int, trial: Trial
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Search a FAISS index that was filled after training: scores and rows, [n, k]."""

    @abstractmethod
    def probe(
        self, codebook: Codebook, queries: Vectors, point: OperatingPoint, growth: float
    ) -> Any:
        """Say where to look for each query: made once, and used by the segments of all shards.

        growth: passages now, to those among which recall was measured.
        """

    @abstractmethod
    def narrowed_ns(self, manifest: Manifest, top_k: int, parts: Sequence[Part]) -> float:
        """What searching codes for what a filter leaves will cost a query, in nanoseconds.

        manifest: the codebook's, with the search parameters that are in force.
        """

    @abstractmethod
    def narrowed_probe(
        self,
        codebook: Codebook,
        manifest: Manifest,
        queries: Vectors,
        top_k: int,
        growth: float,
        parts: Sequence[Part],
    ) -> tuple[Any, int]:
        """Say where to look for each query among what matches, and how many candidates to weigh.

        manifest, growth: as for `narrowed_ns` and `probe`.
        """

    @abstractmethod
    def filling(self, codebook: Codebook, capacity: int) -> Filling:
        """Begin a segment of that many vectors."""

    @abstractmethod
    def gathered(self, parts: Sequence[tuple[Any, NDArray[np.bool_]]]) -> CodedSegment:
        """Make a segment of the marked positions of others of this kind and codebook.

        One after another, without encoding text or training anything.
        """

    @abstractmethod
    def write(self, segment: Any, writer: FolderWriter) -> None:
        """Write a segment's files. Raises OSError."""

    @abstractmethod
    def read(self, reader: FolderReader, codebook: Codebook) -> CodedSegment:
        """Read a segment's files, which were checked. Raises ValueError, OSError, RuntimeError."""
