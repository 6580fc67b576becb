"""Do two samples of vectors come from one distribution?

The maximum mean discrepancy with a Gaussian kernel: how far apart the samples' means are in the
space of the kernel, where no two distributions share a mean. Its bandwidth is the median distance
of the pooled samples. How often chance alone makes it as large is told by permutation: pooled,
shuffled and divided again, so that nothing is assumed of the vectors but that they are exchangeable
(Gretton, Borgwardt, Rasch, Schölkopf, Smola: A kernel two-sample test. JMLR 13, 2012). Written
here, in matrix products: libraries that have it bring a framework for deep learning along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS: Final = 2000
# Vectors of each sample that are compared at most: the kernel's matrix is of twice as many squared,
# 2 MiB, and a shift that 256 do not show is none that anybody has to act on.
MAX_COMPARED: Final = 256
# Permutations at a time: bounds memory to 1 MiB.
_BLOCK: Final = 250

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Discrepancy:
    """How far two samples are apart."""

    squared: float
    """Unbiased estimate of the squared discrepancy: about 0, also below, if they are one."""
    p_value: float
    """How often chance alone makes it as large, at least 1 / (permutations + 1)."""
    share: float
    """Of `squared` in the kernel's mean over all pairs: how far, whatever the vectors' spread."""


def discrepancy(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> Discrepancy:
    """Compare two samples: float [n, dimension] and [m, dimension], at least two of each.

    Of more than `MAX_COMPARED` so many are drawn. seed: of the draw and the permutations. 60 ms.
    """
    random = np.random.default_rng(seed)
    one, other = _drawn(first, random), _drawn(second, random)
    kernel = _kernel(np.concatenate([one, other]))
    labels = np.zeros(len(kernel))
    labels[: len(one)] = 1.0
    observed = float(_squared(kernel, labels[None])[0])
    larger = 0
    for start in range(0, permutations, _BLOCK):
        count = min(_BLOCK, permutations - start)
        shuffled = random.permuted(np.tile(labels, (count, 1)), axis=1)
        larger += int((_squared(kernel, shuffled) >= observed).sum())
    mean = float(kernel.sum()) / (len(kernel) * (len(kernel) - 1))
    return Discrepancy(observed, (larger + 1) / (permutations + 1), observed / mean)


def _drawn(vectors: NDArray[np.floating], random: np.random.Generator) -> _Floats:
    rows = np.asarray(vectors, np.float64)
    if len(rows) <= MAX_COMPARED:
        return rows
    return rows[random.choice(len(rows), MAX_COMPARED, replace=False)]


def _kernel(rows: _Floats) -> _Floats:
    """Gaussian kernel of all pairs, with zeros on the diagonal: no row is compared with itself."""
    squares = (rows**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares[None] - 2 * rows @ rows.T, 0.0)
    median = float(np.median(distances[np.triu_indices(len(rows), 1)]))
    kernel: _Floats = np.exp(-distances / max(median, 1e-12))
    np.fill_diagonal(kernel, 0.0)
    return kernel


def _squared(kernel: _Floats, labels: _Floats) -> _Floats:
    """The squared discrepancy of each division of the rows: labels, 0 or 1, [divisions, rows]."""
    others = 1.0 - labels
    n, m = labels.sum(axis=1), others.sum(axis=1)
    towards = labels @ kernel
    within = (towards * labels).sum(axis=1)
    across = (towards * others).sum(axis=1)
    beyond = kernel.sum() - within - 2 * across
    squared: _Floats = within / (n * (n - 1)) + beyond / (m * (m - 1)) - 2 * across / (n * m)
    return squared
