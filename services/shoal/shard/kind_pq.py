"""IVF-PQ: how are codes of four bits for a few numbers each searched?

The default. FAISS's fast-scan compares 32 codes at once in registers, so that a code of an eighth
of a byte a number finds candidates for the price of reading it; the wide code ranks them.
"""

from __future__ import annotations

from typing import Any

from shoal.shard.centroids import place_centroids
from shoal.shard.kernel import faiss
from shoal.shard.kind_lists import ListKind
from shoal.shard.segment import Vectors
from shoal.shard.wide_code import WideCode


class PqKind(ListKind):
    """Product-quantised codes, refined."""

    name = "ivf-pq"
    code_ns = 2.5

    def factory(self, dimension: int, list_count: int) -> str:
        """Four bits for as few numbers as divide the dimension, and four at most."""
        width = next(width for width in (4, 3, 2, 1) if dimension % width == 0)
        return f"IVF{list_count},PQ{dimension // width}x4fsr"

    def train(self, sample: Vectors, list_count: int, wide: WideCode, seed: int) -> Any:
        """Train the coarse quantizer, and the product quantiser on residuals."""
        del wide
        dimension = sample.shape[1]
        factory = self.factory(dimension, list_count)
        template = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        place_centroids(template, sample, seed)
        template.pq.cp.seed = 1 + seed
        template.train(sample)
        return template

    def empty(self, template: Any, quantizer: Any) -> Any:
        """Lists with the template's product quantiser."""
        lists = faiss.IndexIVFPQFastScan(
            quantizer,
            template.d,
            template.nlist,
            template.pq.M,
            template.pq.nbits,
            template.metric_type,
            template.bbs,
        )
        lists.pq, lists.by_residual = template.pq, template.by_residual
        lists.use_precomputed_table = template.use_precomputed_table
        lists.is_trained = True
        return lists
