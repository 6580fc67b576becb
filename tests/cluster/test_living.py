"""Does the load test of a living index run from end to end, and find nothing lost?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loadtest.living import Plan, living
from loadtest.phases import REST
from loadtest.vectors import VectorSet

pytestmark = pytest.mark.cluster


def test_nothing_is_lost_and_nothing_comes_back(
    tmp_path: Path, state: Callable[[str], None]
) -> None:
    plan = Plan(
        vectors=VectorSet(count=3_000, dimension=32, query_count=600, cluster_count=40),
        queries_per_s=20.0,
        upserts_per_s=50,
        deletes_per_s=10,
        rest_s=2.0,
        least_s=2.0,
        window_s=1.0,
        # The machine may be busy. Queries that name a version must see all of it nevertheless.
        slack_s=60.0,
        limit_s=400.0,
    )
    found = living(plan, tmp_path)
    phases, writes = found["phases"], found["writes"]
    changes = ["build", "promotion", "reshard", "rollback"]
    assert [each["phase"] for each in phases] == [REST, *changes, REST]
    assert all(each["queries"] > 0 for each in phases)
    for each in phases:
        assert (each["failed"], each["failure"], each["incomplete"]) == (0, "", 0)
        assert each["outdated"] == 0
    assert (writes["failed"], writes["lost"], writes["resurrected"]) == (0, 0, 0)
    assert writes["upserts"] > 0
    assert writes["deletes"] > 0
    assert writes["checked"] > 0
    recalls = ", ".join(f"{each['phase']} {each['recall']:.3f}" for each in phases)
    state(f"recall@10 of a living index of 3,000 vectors: {recalls}")
    assert not (tmp_path / plan.vectors.name / "living-data").exists()
