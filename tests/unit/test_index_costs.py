"""Does the plan of an index say what was measured, and how far it is off?"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.cli.main import app
from shoal.cluster import index_costs
from shoal.cluster.index_costs import (
    PLANNED_KINDS,
    Calibration,
    Demand,
    Law,
    Point,
    calibration,
    costs_of,
    error_of,
    lists_of,
    planned,
)
from shoal.shard.codebook import SAMPLE_BYTES
from shoal.shard.codes import list_count_for
from shoal.shard.footprint import exact, footprint
from typer.testing import CliRunner

GOLDEN = Path(__file__).parents[1] / "golden"


def point(kind: str, vectors: int, dimension: int, factor: float = 1.0) -> Point:
    """One of a graph's law that is known: 1 s + 1e-9 n d log n, 50 us + d cbrt(n) / 100."""
    law_s = 1 + 1e-9 * vectors * dimension * math.log2(vectors)
    law_us = 50 + dimension * vectors ** (1 / 3) / 100
    return Point(
        kind=kind,  # type: ignore[arg-type]
        vectors=vectors,
        dimension=dimension,
        train_s=0.75 * law_s,
        encode_s=0.25 * law_s,
        lone_us=law_us * factor,
        batch_us=law_us / 2,
        bytes=1.0,
        recall=0.96,
        parameters={},
    )


@pytest.fixture
def known() -> Calibration:
    points = tuple(
        point(kind, vectors, dimension)
        for kind in PLANNED_KINDS
        for vectors in (20_000, 60_000, 150_000)
        for dimension in (96, 384)
    )
    return Calibration(machine={"processor": "a known one", "cores": 2}, points=points)


@given(vectors=st.integers(1_000, 10**9), dimension=st.integers(8, 4096))
def test_a_law_is_found_again(vectors: int, dimension: int) -> None:
    points = [point("hnsw", n, d) for n in (20_000, 60_000, 150_000) for d in (96, 384)]
    expected = point("hnsw", vectors, dimension)
    assert Law.fit(points, "lone").at(vectors, dimension) == pytest.approx(expected.lone_us)
    built = Law.fit(points, "build").at(vectors, dimension)
    assert built == pytest.approx(expected.train_s + expected.encode_s)
    assert error_of(points, "lone") == pytest.approx(0.0, abs=1e-6)


def test_a_point_that_obeys_no_law_shows_in_the_error() -> None:
    points = [point("hnsw", n, d) for n in (20_000, 60_000, 150_000) for d in (96, 384)]
    points[2] = point("hnsw", 60_000, 96, factor=1.5)
    assert error_of(points, "lone") >= 0.3
    assert error_of(points, "batch") == pytest.approx(0.0, abs=1e-6)


def test_what_noise_makes_negative_still_grows() -> None:
    points = [point("hnsw", n, d) for n in (20_000, 60_000, 150_000) for d in (96, 384)]
    falling = [each.model_copy(update={"lone_us": 1e9 / each.vectors}) for each in points]
    law = Law.fit(falling, "lone")
    assert 0 < law.at(10**4, 384) < law.at(10**9, 384)


def test_machines_are_as_many_as_the_memory_takes(known: Calibration) -> None:
    demand = Demand(10**9, 384, memory_bytes=64 * 2**30, replicas=2)
    for costs in planned(demand, known):
        foot = exact(384) if costs.kind == "exact" else footprint(costs.kind, 384)
        each = math.ceil(foot.total * 1e9 / 2**36)
        assert costs.machines == 2 * each
        assert costs.memory_bytes == pytest.approx(2e9 * foot.total)
        assert costs.disk_bytes > costs.memory_bytes
        assert costs.extrapolated
    inside = costs_of("ivf-pq", Demand(100_000, 128, memory_bytes=2**36), known)
    assert (inside.machines, inside.extrapolated) == (1, False)
    assert costs_of("ivf-pq", Demand(100_000, 128, 2**36, recall=0.99), known).extrapolated


def test_what_ships_was_measured_and_can_be_relied_on_as_far_as_it_says() -> None:
    shipped = calibration()
    assert shipped.machine["processor"]
    for kind in PLANNED_KINDS:
        points = shipped.of(kind)
        assert len({each.vectors for each in points}) >= 3
        assert len({each.dimension for each in points}) >= 2
        for each in points:
            # Arithmetic and measurement agree: the codes, ids and links of every build.
            foot = exact(each.dimension) if kind == "exact" else footprint(kind, each.dimension)
            wide_bytes = 2 if each.parameters.get("wide") == "fp16" else 1
            bytes_each = foot.scanned + foot.refined * wide_bytes + foot.links
            assert each.bytes == pytest.approx(bytes_each, rel=0.02)
            assert each.recall >= 0.94
        for measure in ("build", "lone", "batch")[kind == "exact" :]:
            assert error_of(points, measure) <= 2  # type: ignore[arg-type]


@pytest.mark.parametrize("dimension", [16, 384, 1536])
def test_lists_are_reckoned_as_a_build_makes_them(dimension: int) -> None:
    for vectors in (100, 5_000, 20_000, 60_000, 150_000, 10**6, 10**7, 10**9):
        sample = min(vectors, SAMPLE_BYTES // (4 * dimension))
        assert lists_of(vectors, dimension) == list_count_for(vectors, sample)


def test_the_plan_as_it_is_printed(known: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_costs, "calibration", lambda: known)
    arguments = ["index", "plan", "--vectors", "1e9", "--dim", "384", "--memory", "64GiB"]
    done = CliRunner().invoke(app, arguments, terminal_width=200)
    assert done.exit_code == 0, done.output
    path = GOLDEN / "cli_index_plan.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(done.output)
    assert done.output == path.read_text()
    bounded = CliRunner().invoke(app, [*arguments, "--machines", "7", "--json"])
    printed = json.loads(bounded.stdout)
    assert [each["kind"] for each in printed["kinds"]] == list(PLANNED_KINDS)
    assert printed["choice"]["kind"] == "ivf-pq"
    assert "mapped files" in printed["choice"]["reason"]
    assert printed["calibrated_on"]["processor"] == "a known one"


@pytest.mark.parametrize(
    ("option", "value"),
    [("--vectors", "many"), ("--vectors", "0"), ("--memory", "64 elephants"), ("--dim", "0")],
)
def test_what_makes_no_sense_is_refused(option: str, value: str) -> None:
    arguments = {"--vectors": "1e6", "--memory": "1GiB", "--dim": "384"} | {option: value}
    flat = [each for pair in arguments.items() for each in pair]
    done = CliRunner().invoke(app, ["index", "plan", *flat])
    assert done.exit_code == 2
    assert option in done.stderr
