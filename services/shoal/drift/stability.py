"""How far have the shares of some bins moved, and is that more than chance?

The population stability index of a reference with shares r and a sample with shares s is
sum((s - r) * ln(s / r)): Jeffreys' divergence. Credit scoring has read it for decades as 0.1 to
0.25 a moderate and above that a major shift; but two samples of one distribution have an index
above 0 as well, the more so the smaller they are: times n*m / (n + m) it is distributed as
chi-squared, with one degree of freedom less than there are bins (Yurdakul, Naranjo: Statistical
properties of the population stability index, 2020). So a shift is said only where the index is
both large and beyond chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

# The old rule of thumb.
MAJOR_INDEX: Final = 0.25
# An index that one distribution alone makes so seldom.
CHANCE: Final = 1e-3
BINS: Final = 10
# In place of a count of nothing, whose logarithm would be without bound.
_HALF: Final = 0.5

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shift:
    """How far something has moved."""

    index: float
    """Population stability index."""
    by_chance: float
    """An index that is exceeded once in `1 / CHANCE` times where nothing has moved."""

    @property
    def alarming(self) -> bool:
        """True if it is major and beyond chance."""
        return self.index >= max(MAJOR_INDEX, self.by_chance)


def edges_of(reference: _Floats, bins: int = BINS) -> _Floats:
    """Inner edges of bins that share a reference evenly: float64 [bins - 1], fewer where it ties.

    reference: float [n], at least one.
    """
    quantiles = np.quantile(reference, np.arange(1, bins) / bins)
    edges: _Floats = np.unique(quantiles)
    return edges


def counts_of(values: _Floats, edges: _Floats) -> _Floats:
    """How many values lie in each bin: float64 [edges + 1]."""
    places = np.searchsorted(edges, values, side="right")
    return np.bincount(places, minlength=len(edges) + 1).astype(np.float64)


def shift(reference: _Floats, sample: _Floats, tests: int = 1) -> Shift:
    """Compare counts in the same bins: float64 [bins], each with at least one counted.

    tests: how many such comparisons are made together: the more, the rarer each must be.
    """
    used = (reference + sample) > 0
    first, second = reference[used], sample[used]
    freedom = max(1, len(first) - 1)
    first_total, second_total = float(first.sum()), float(second.sum())
    shares = np.maximum(first, _HALF) / first_total
    others = np.maximum(second, _HALF) / second_total
    index = float(((others - shares) * np.log(others / shares)).sum())
    scale = 1 / first_total + 1 / second_total
    return Shift(index, chi_squared_quantile(1 - CHANCE / tests, freedom) * scale)


def shift_of_values(reference: _Floats, sample: _Floats, tests: int = 1) -> Shift:
    """Compare numbers, in bins that share the reference evenly: float [n] and [m]."""
    edges = edges_of(reference)
    return shift(counts_of(reference, edges), counts_of(sample, edges), tests)


def shift_of_rates(before: tuple[int, int], after: tuple[int, int]) -> Shift:
    """Compare how often something happens: (times, of how many) each, of at least one."""

    def counts(rate: tuple[int, int]) -> _Floats:
        return np.array([rate[0], rate[1] - rate[0]], np.float64)

    return shift(counts(before), counts(after))


def chi_squared_quantile(probability: float, freedom: int) -> float:
    """Give a quantile of chi-squared, within about 1%; with 1 degree of freedom exactly.

    By Wilson, Hilferty: PNAS 17, 1931.
    """
    if freedom == 1:
        return NormalDist().inv_cdf((1 + probability) / 2) ** 2
    z = NormalDist().inv_cdf(probability)
    part = 2 / (9 * freedom)
    return freedom * max(0.0, 1 - part + z * math.sqrt(part)) ** 3


@dataclass(frozen=True)
class Components:
    """The directions in which a reference varies most."""

    mean: _Floats
    """float64 [dimension]."""
    axes: _Floats
    """Unit length, the strongest first: float64 [components, dimension]."""

    @classmethod
    def of(cls, vectors: NDArray[np.floating], count: int = 8) -> Components:
        """Find them: `vectors` is float [n, dimension], n at least 2. O(n * dimension^2)."""
        rows = np.asarray(vectors, np.float64)
        mean = rows.mean(axis=0)
        _, _, axes = np.linalg.svd(rows - mean, full_matrices=False)
        return cls(mean, axes[:count])

    def project(self, vectors: NDArray[np.floating]) -> _Floats:
        """Coordinates of vectors: float64 [n, components]."""
        projected: _Floats = (np.asarray(vectors, np.float64) - self.mean) @ self.axes.T
        return projected


def shifts_of_vectors(
    reference: NDArray[np.floating], sample: NDArray[np.floating], components: int = 8
) -> list[Shift]:
    """Compare vectors along each principal component of the reference, the strongest first."""
    found = Components.of(reference, components)
    before, after = found.project(reference), found.project(sample)
    count = before.shape[1]
    return [shift_of_values(before[:, at], after[:, at], count) for at in range(count)]
