"""What will an index cost of which kind: memory, disk, time to build, time to answer?

Bytes are arithmetic (`shoal.shard.footprint`). Times are a law for each kind, a fixed part and one
that grows with the work that the kind's algorithm does at a size and dimension, fitted to builds
that were measured (index_costs.json, by loadtest/calibrate.py). How far such a law is off is
measured too: each point is predicted from a fit to all others. Beyond the measured range a law is a
guess, and is marked as one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from shoal.shard.footprint import Footprint, exact, footprint
from shoal.shard.kind_names import KIND_NAMES, KindName

PlannedKind = Literal["exact"] | KindName
PLANNED_KINDS: Final[tuple[PlannedKind, ...]] = ("exact", *KIND_NAMES)
Measure = Literal["build", "lone", "batch"]

_FILE: Final = "index_costs.json"
# Of a row in the table beside its vector: text and title, ids, spans, hashes, compressed.
_TEXT_BYTES: Final = 800
_FLOAT_BYTES: Final = 4
# Of a build: see `shoal.shard.codes` and `shoal.shard.codebook`.
_MIN_LISTS: Final = 16
_MAX_LISTS: Final = 65_536
_POINTS_PER_LIST: Final = 39
_SAMPLE_BYTES: Final = 1 << 30
# Lists that a search looks into, about.
_PROBES: Final = 8
# Recall target that the measured builds chose their search parameters for.
MEASURED_RECALL: Final = 0.95


class Point(BaseModel):
    """A build that was measured, with one thread."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: PlannedKind
    vectors: int = Field(ge=1)
    dimension: int = Field(ge=1)
    train_s: float
    """Training, and choosing search parameters."""
    encode_s: float
    lone_us: float
    """Median processor time of a query that comes alone."""
    batch_us: float
    """Processor time of a query of many that come together."""
    bytes: float
    """Of codes, ids and links, for each vector."""
    recall: float
    """At 10, of queries that nothing was chosen by."""
    parameters: dict[str, Any]
    """What the build chose."""


class Calibration(BaseModel):
    """What was measured, and where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: dict[str, Any]
    points: tuple[Point, ...]

    def of(self, kind: PlannedKind) -> list[Point]:
        """The points of a kind."""
        return [point for point in self.points if point.kind == kind]

    def covers(self, vectors: float, dimension: int) -> bool:
        """True if that size and dimension lie within what was measured."""
        sizes = [point.vectors for point in self.points]
        dimensions = [point.dimension for point in self.points]
        return min(sizes) <= vectors <= max(sizes) and min(dimensions) <= dimension <= max(
            dimensions
        )


@cache
def calibration() -> Calibration:
    """What this release was measured with."""
    text = resources.files("shoal.cluster").joinpath(_FILE).read_text(encoding="utf-8")
    return Calibration.model_validate(json.loads(text))


_MEASURES: Final[dict[Measure, Callable[[Point], float]]] = {
    "build": lambda point: point.train_s + point.encode_s,
    "lone": lambda point: point.lone_us,
    "batch": lambda point: point.batch_us,
}


@dataclass(frozen=True)
class Law:
    """Predicts one measure of one kind: a part that is fixed, and one that is work."""

    kind: PlannedKind
    measure: Measure
    fixed: float
    work: float

    @classmethod
    def fit(cls, points: Sequence[Point], measure: Measure) -> Law:
        """Fit it to points of a kind, by least squares of relative errors; no part is negative."""
        kind = points[0].kind
        values = np.array([max(1e-6, _MEASURES[measure](point)) for point in points])
        units = [_work(kind, measure, point.vectors, point.dimension) for point in points]
        rows = np.column_stack([np.ones(len(points)), units]) / values[:, None]
        both = np.linalg.lstsq(rows, np.ones(len(points)), rcond=None)[0]
        if both.min() < 0:  # Noise: the other part alone explains more.
            alone = rows.sum(axis=0) / (rows**2).sum(axis=0)
            left = ((rows * alone - 1) ** 2).sum(axis=0)
            # Time that does not grow with the index would be a bold claim beyond what was measured.
            both = np.array([0.0, alone[1]]) if both[0] < 0 or left[1] < 1 else alone * [0.5, 0.5]
        return cls(kind, measure, float(both[0]), float(both[1]))

    def at(self, vectors: float, dimension: int) -> float:
        """What it predicts."""
        return self.fixed + self.work * _work(self.kind, self.measure, vectors, dimension)


def _work(kind: PlannedKind, measure: Measure, vectors: float, dimension: int) -> float:
    """Numbers that are multiplied, as far as they grow with the index."""
    if kind == "exact":
        return vectors * dimension
    if kind == "hnsw":
        if measure == "build":
            return vectors * math.log2(max(2.0, vectors)) * dimension
        # A walk must be broader in a larger graph (16 to 96 in what was measured), so that it grows
        # faster than the logarithm of its depth, by which errors are up to twice as large. A square
        # root errs less yet, and would say five times as much of a thousand million.
        return float(np.cbrt(vectors)) * dimension
    lists = lists_of(vectors, dimension)
    if measure == "build":
        # Each passage is compared with each list once, and each sample of a list ten times.
        return (vectors + 10 * 64 * lists) * lists * dimension
    return (lists + _PROBES * vectors / lists) * dimension


def lists_of(vectors: float, dimension: int) -> int:
    """Lists that a build makes, as `shoal.shard.codes.list_count_for` says without FAISS."""
    lists: int = 2 ** round(math.log2(max(1.0, 4 * math.sqrt(vectors))))
    sample = min(vectors, _SAMPLE_BYTES // (_FLOAT_BYTES * dimension))
    while lists > _MIN_LISTS and lists * _POINTS_PER_LIST > sample:
        lists //= 2
    return max(_MIN_LISTS, min(lists, _MAX_LISTS))


def error_of(points: Sequence[Point], measure: Measure) -> float:
    """Largest relative error of predicting each point from the others, 0.2 for 20%.

    Up or down: the larger of both divided by the smaller one, less 1.
    """
    worst = 0.0
    for left_out in points:
        others = [point for point in points if point is not left_out]
        predicted = Law.fit(others, measure).at(left_out.vectors, left_out.dimension)
        ratio = predicted / max(1e-6, _MEASURES[measure](left_out))
        worst = max(worst, ratio, 1 / ratio)
    return worst - 1 if worst else 0.0


@dataclass(frozen=True)
class Costs:
    """What an index of one kind is expected to cost."""

    kind: PlannedKind
    machines: int
    """Of the memory given, for all replicas."""
    memory_bytes: float
    """All replicas together."""
    hot_bytes: float
    """The part of it that every search touches."""
    disk_bytes: float
    """The table, the published version, and what each replica stores."""
    build_core_s: float
    lone_us: float
    """Search alone, without the hops around it."""
    queries_per_core_s: float
    recall: float
    """What the parameters are chosen to reach; 1 for exact search."""
    build_error: float
    lone_error: float
    batch_error: float
    extrapolated: bool
    """True if what a machine holds, the build, or the recall is beyond what was measured."""


@dataclass(frozen=True)
class Demand:
    """What is planned for."""

    vectors: int
    dimension: int
    # Of each machine, for the index.
    memory_bytes: int
    recall: float = 0.95
    replicas: int = 1
    # Fewest machines of one replica.
    shards: int = 1


def costs_of(kind: PlannedKind, demand: Demand, measured: Calibration) -> Costs:
    """Predict what a kind costs."""
    points = measured.of(kind)
    foot = exact(demand.dimension) if kind == "exact" else footprint(kind, demand.dimension)
    copy_bytes = foot.total * demand.vectors
    machines = max(1, math.ceil(copy_bytes / demand.memory_bytes))
    # A machine searches its part, while the others search theirs.
    part = demand.vectors / machines
    build_s = 0.0
    if kind != "exact":
        build_s = Law.fit(points, "build").at(demand.vectors, demand.dimension)
    batch_us = Law.fit(points, "batch").at(part, demand.dimension)
    inside = measured.covers(demand.vectors, demand.dimension)
    return Costs(
        kind=kind,
        machines=machines * demand.replicas,
        memory_bytes=copy_bytes * demand.replicas,
        hot_bytes=foot.hot * demand.vectors * demand.replicas,
        disk_bytes=_disk_bytes(foot, demand, published=kind != "exact"),
        build_core_s=build_s,
        lone_us=Law.fit(points, "lone").at(part, demand.dimension),
        # Every query is searched on every machine of a replica.
        queries_per_core_s=1e6 / (batch_us * machines),
        recall=1.0 if kind == "exact" else demand.recall,
        build_error=0.0 if kind == "exact" else error_of(points, "build"),
        lone_error=error_of(points, "lone"),
        batch_error=error_of(points, "batch"),
        extrapolated=not (inside and measured.covers(part, demand.dimension))
        or (kind != "exact" and demand.recall > MEASURED_RECALL),
    )


def _disk_bytes(foot: Footprint, demand: Demand, *, published: bool) -> float:
    table = _FLOAT_BYTES * demand.dimension + _TEXT_BYTES
    segments = foot.total * (demand.replicas + (1 if published else 0))
    return demand.vectors * (table + segments)


def planned(demand: Demand, measured: Calibration | None = None) -> list[Costs]:
    """Predict what each kind costs, exact search first."""
    known = measured or calibration()
    return [costs_of(kind, demand, known) for kind in PLANNED_KINDS]


assert set(get_args(KindName)) < set(PLANNED_KINDS)
