"""IVF-SQ8: how are codes of one byte a number, in lists, searched?

The code is the wide code itself, so nothing is stored twice and nothing is scored again: the fewest
bytes that rank well, for a scan that reads eight times as many of them as the default's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shoal.shard.centroids import place_centroids
from shoal.shard.codes import Codebook
from shoal.shard.kernel import faiss
from shoal.shard.kind_lists import CodesInLists, ListKind, ListSegment
from shoal.shard.segment import Vectors
from shoal.shard.segment_folder import FolderReader
from shoal.shard.wide_code import WideCode


class Sq8Kind(ListKind):
    """The wide code in lists."""

    name = "ivf-sq8"
    refines = False
    wides = ("sq8",)
    refine_factors = (1,)
    code_ns = 20.0

    def factory(self, dimension: int, list_count: int) -> str:
        """One byte a number."""
        del dimension
        return f"IVF{list_count},SQ8"

    def train(self, sample: Vectors, list_count: int, wide: WideCode, seed: int) -> Any:
        """Train the coarse quantizer; the code is the wide one."""
        dimension = sample.shape[1]
        factory = self.factory(dimension, list_count)
        template = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        # Not of residuals: a code then is the same in whichever list.
        template.by_residual = False
        place_centroids(template, sample, seed)
        template.train(sample)
        use_wide(template.sq, wide)
        return template

    def empty(self, template: Any, quantizer: Any) -> Any:
        """Lists with the template's code."""
        lists = faiss.IndexIVFScalarQuantizer(
            quantizer,
            template.d,
            template.nlist,
            faiss.ScalarQuantizer.QT_8bit,
            template.metric_type,
            template.by_residual,
        )
        lists.sq = template.sq
        lists.is_trained = True
        return lists

    def segment(self, codebook: Codebook, lists: Any, wide: Any) -> ListSegment:
        """Make a segment whose wide codes are those in its lists."""
        assert wide is None
        return ListSegment(self, codebook, lists, CodesInLists(lists))

    def wide_rows(self, codebook: Codebook, capacity: int) -> NDArray[Any] | None:
        """The lists hold them."""
        del codebook, capacity
        return None

    def wide_folded(self, old: ListSegment, mask: NDArray[np.bool_] | None, added: Vectors) -> Any:
        """The lists hold them."""
        del old, mask, added

    def wide_gathered(self, parts: Sequence[tuple[ListSegment, NDArray[np.bool_]]]) -> Any:
        """The lists hold them."""
        del parts

    def wide_read(self, reader: FolderReader) -> Any:
        """The lists hold them."""
        del reader


def use_wide(quantizer: Any, wide: WideCode) -> None:
    """Have FAISS's scalar quantizer encode and decode exactly as a wide code of one byte does.

    FAISS's code is the floor of a number's place in the range, and stands for the middle of its
    step; the wide code is the nearest multiple of a step, so that its range begins half a step
    earlier.
    """
    assert wide.kind == "sq8"
    lowest, widths = wide.lowest - 0.5 * wide.step, 255 * wide.step
    trained = np.concatenate([lowest, widths]).astype(np.float32)
    faiss.copy_array_to_vector(trained, quantizer.trained)
