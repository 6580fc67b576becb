"""How are inverted lists searched on a GPU?

The CPU's four-bit codes and their kernels do not exist there. A GPU has memory and bandwidth
instead: the same lists hold the vectors as fp16, and the same `nprobe` is searched, so that recall
is no lower than the one that was measured. The CPU keeps the narrow codes (folds work on them) and
the wide ones; it answers what looks into more lists than a GPU can.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from shoal.shard.codes import CoarseAssignment, Codebook
from shoal.shard.kernel import faiss
from shoal.shard.kind_lists import ListSegment
from shoal.shard.merge import MISSING_SCORE
from shoal.shard.segment import Found
from shoal.shard.shard import Main
from shoal.shard.tombstones import Live

_ADD_ROWS: Final = 65_536
# FAISS's own limits of results from a GPU, and of lists that a query looks into there.
_MAX_RESULTS: Final = 2048
_MAX_NPROBE: Final = 2048


# FAISS's GPU resources, temporary memory above all, are for one thread at a time.
_gpu: Final = threading.Lock()


@functools.cache
def _resources() -> Any:
    return faiss.StandardGpuResources()


class NoGpuError(ValueError):
    """There is no GPU, or FAISS was built without."""


class GpuLists:
    """A segment's inverted lists on a GPU."""

    max_nprobe = _MAX_NPROBE

    def __init__(self, codebook: Codebook, wide: NDArray[Any]) -> None:
        """Wide: codes of all vectors, by position. Raises NoGpuError."""
        check_gpu()
        manifest = codebook.manifest
        quantizer = faiss.IndexFlatIP(manifest.dimension)
        quantizer.add(codebook.centroids())
        template = faiss.IndexIVFScalarQuantizer(
            quantizer,
            manifest.dimension,
            manifest.list_count,
            faiss.ScalarQuantizer.QT_fp16,
            faiss.METRIC_INNER_PRODUCT,
            False,
        )
        # The quantizer is given, and fp16 has nothing to learn.
        template.is_trained = True
        with _gpu:
            self._index = faiss.index_cpu_to_gpu(_resources(), 0, template)
            self._add(codebook, wide)

    def _add(self, codebook: Codebook, wide: NDArray[Any]) -> None:
        for first in range(0, len(wide), _ADD_ROWS):
            self._index.add(codebook.wide.decode(wide[first : first + _ADD_ROWS]))

    def candidates(
        self, queries: NDArray[np.float32], assignment: CoarseAssignment, count: int, live: Live
    ) -> Found:
        """Find candidates of each query. FAISS's GPU indexes know no bitmaps: the dead are dropped
        afterwards, so more are asked for while too few are left.
        """  # noqa: D205
        nprobe = assignment.lists.shape[1]
        asked = min(_MAX_RESULTS, count + min(count, live.dead_count))
        while True:
            with _gpu:
                scores, positions = self._index.search(
                    queries, asked, params=faiss.SearchParametersIVF(nprobe=nprobe)
                )
            flat = positions.reshape(-1)
            gone = flat < 0
            exhausted = gone.reshape(positions.shape).any(axis=1)
            gone[~gone] = ~live.contains(flat[~gone])
            gone = gone.reshape(positions.shape)
            enough = ((~gone).sum(axis=1) >= count) | exhausted
            if enough.all() or asked == _MAX_RESULTS:
                scores[gone], positions[gone] = MISSING_SCORE, -1
                return scores, positions
            asked = min(_MAX_RESULTS, 2 * asked)


def placed(main: Main) -> Main:
    """The same main segment with its lists on the GPU, if it has narrow codes in lists.

    Other kinds are searched on the processor all the same. Raises NoGpuError.
    """
    segment = main.segment
    if not isinstance(segment, ListSegment) or not isinstance(segment.wide, np.ndarray):
        return main
    return replace(main, segment=replace(segment, gpu=GpuLists(segment.codebook, segment.wide)))


def check_gpu() -> None:
    """Raise NoGpuError if there is no GPU to search on."""
    if not hasattr(faiss, "StandardGpuResources"):
        raise NoGpuError(
            "device is cuda, but this FAISS has no GPU support: install the extra `gpu` instead of "
            "`cpu`, or set device to cpu"
        )
    if faiss.get_num_gpus() == 0:
        raise NoGpuError(
            "device is cuda, but FAISS finds no GPU: check the driver and the container"
        )
