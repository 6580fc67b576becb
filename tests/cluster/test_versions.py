"""Are versions built by Ray's tasks, promoted and rolled back while queries run?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from shoal.client import Client
from shoal.v1.cluster_pb2 import Role
from shoal.v1.indexes_pb2 import IndexVersion, IndexVersionState

from tests.cluster.conftest import RunningCluster

pytestmark = pytest.mark.cluster

SHOAL = str(Path(sys.executable).with_name("shoal"))
READY = IndexVersionState.INDEX_VERSION_STATE_READY
FAILED = IndexVersionState.INDEX_VERSION_STATE_FAILED
ROWS = np.random.default_rng(11).normal(size=(950, 32)).astype(np.float32)
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def client(cluster: RunningCluster) -> Iterator[Client]:
    """A client of a cluster with an index that is too small to be built by itself."""
    with cluster.client() as client:
        client.create_index("versioned", dimension=32)
        summary = client.upsert(
            "versioned",
            ({"id": f"d{n}", "text": f"d{n}", "vector": row} for n, row in enumerate(ROWS)),
        )
        assert summary.acknowledged == len(ROWS)
        yield client
        client.drop_index("versioned")


def _shoal(cluster: RunningCluster, *arguments: str) -> str:
    command = [SHOAL, "index", *arguments, "--endpoint", cluster.info.endpoint]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert run.returncode == 0, run.stderr
    return run.stdout


def _ended(client: Client, number: int) -> IndexVersion:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        for version in client.index_versions("versioned", timeout_s=30.0).versions:
            if version.number == number and version.state in (READY, FAILED):
                return version
        time.sleep(0.2)
    raise AssertionError(f"version {number} is still being built")


def _finds(client: Client, number: int) -> None:
    answer = client.search("versioned", ROWS[number], top_k=1, bypass_cache=True)
    assert answer.coverage.complete
    assert answer.hits[0].document_id == f"d{number}"


def test_a_version_is_built_and_promoted_from_the_command_line(
    cluster: RunningCluster, client: Client, state: Callable[[str], None]
) -> None:
    built = _shoal(cluster, "build", "versioned", "--wait")
    assert "Version 1 of versioned is ready: ivf-pq, 950 passages, recall@10" in built
    assert "Version 1 of versioned serves." in _shoal(cluster, "promote", "versioned", "1")
    _finds(client, 3)
    started_s = time.monotonic()
    back = client.rollback_index("versioned")
    state(f"rollback in {time.monotonic() - started_s:.2f} s")
    assert (back.promoted_version, back.serving_version) == (0, 0)
    _finds(client, 4)
    assert client.rollback_index("versioned").serving_version == 1
    listed = json.loads(_shoal(cluster, "versions", "versioned", "--json"))
    assert (listed["serving_version"], listed["previous_version"]) == (1, 0)
    assert "serves" in _shoal(cluster, "versions", "versioned")


def test_a_controller_killed_in_mid_build_fails_it_and_builds_again(
    cluster: RunningCluster, client: Client
) -> None:
    number = client.build_index_version("versioned", promote=True).number
    (controller,) = [
        each for each in client.cluster_status().instances if each.role == Role.ROLE_CONTROLLER
    ]
    os.kill(controller.pid, signal.SIGKILL)
    version = _ended(client, number)
    if version.state == FAILED:  # Unless the build was quicker than the kill.
        assert "the controller was restarted" in version.message
        _finds(client, 5)
        number = client.build_index_version("versioned", timeout_s=60.0).number
        assert _ended(client, number).state == READY
        client.drop_index_version("versioned", number - 1)
    _finds(client, 6)
