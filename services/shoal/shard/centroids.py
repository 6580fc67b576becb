"""Where are the centroids of the inverted lists?

K-means, most of whose rounds see a part of the sample. Where clusters roughly are takes few points
to find, and many rounds; where exactly takes many points, and few rounds once they are nearly
there. After Newling and Fleuret 2016 (Nested Mini-Batch K-Means, arXiv:1602.02934), without their
bounds.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from shoal.shard.kernel import faiss
from shoal.shard.segment import Vectors

# Points for each centroid, and rounds with so many; None: with all of them. Half of the time that
# ten rounds with 64 for each take. Recall at 10 was the same within 0.001 with 2,048 lists of
# 500,000 made vectors, whichever number of them was searched; of 40,000 Debian descriptions in 512
# lists, 4 lists held 0.8145 of the neighbours in place of 0.8053, and 64 held 0.9685 for 0.9702.
_SCHEDULE: Final[tuple[tuple[int | None, int], ...]] = ((16, 5), (32, 2), (None, 3))


def place_centroids(lists: Any, sample: Vectors, seed: int) -> None:
    """Give empty FAISS lists their centroids: float32 [n, dimension], in random order.

    FAISS leaves a quantizer as it is that has as many vectors as there are lists (IndexIVF.cpp,
    train_q1), and then trains the code alone.
    """
    centroids: NDArray[np.float32] | None = None
    for points, rounds in _SCHEDULE:
        clustering = faiss.Clustering(lists.d, lists.nlist)
        clustering.niter, clustering.seed = rounds, 1 + seed
        clustering.spherical = lists.cp.spherical
        clustering.min_points_per_centroid = 1
        part = sample if points is None else sample[: points * lists.nlist]
        clustering.max_points_per_centroid = len(part)
        if centroids is not None:
            faiss.copy_array_to_vector(centroids, clustering.centroids)
        lists.quantizer.reset()
        clustering.train(part, lists.quantizer)
        centroids = faiss.vector_to_array(clustering.centroids)
