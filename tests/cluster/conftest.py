"""A real cluster on a real Ray: the laptop's shape, a home of its own, XQuAD in an index."""

from __future__ import annotations

import gzip
import json
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from shoal.client import Client
from shoal.cluster.lifecycle import ClusterInfo, down, up

ROOT = Path(__file__).resolve().parents[2]
XQUAD = ROOT / "deploy" / "corpora" / "xquad-en"

TOPOLOGY = """
cluster: test
broker_port: {port}
scale: {{shards: 2, replicas: 1, encoders: 1, rerankers: 1, brokers: 1}}
redis: {{mode: embedded}}
train_at_passages: 1000
"""


@dataclass
class RunningCluster:
    """A cluster under test."""

    info: ClusterInfo
    home: Path
    topology: Path
    reports: list[str] = field(default_factory=list)

    def client(self) -> Client:
        return Client(self.info.endpoint)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read_jsonl(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return [json.loads(line) for line in lines]


def xquad_file(name: str) -> Path:
    (found,) = [path for path in XQUAD.iterdir() if path.name.startswith(name)]
    return found


@pytest.fixture(scope="session")
def questions() -> list[str]:
    return [each["text"] for each in read_jsonl(xquad_file("queries"))]


@pytest.fixture(scope="session")
def cluster() -> Iterator[RunningCluster]:
    # Not tmp_path: Ray keeps sockets in its home, whose paths may be 107 bytes long.
    home = Path(tempfile.mkdtemp(prefix="shoal-"))
    topology = home / "topology.yaml"
    topology.write_text(TOPOLOGY.format(port=free_port()))
    reports: list[str] = []
    try:
        info = up(topology, home, report=reports.append)
        running = RunningCluster(info, home, topology, reports)
        with running.client() as client:
            client.create_index("xquad")
            summary = client.upsert(
                "xquad",
                (
                    {"id": each["_id"], "title": each["title"], "text": each["text"]}
                    for each in read_jsonl(xquad_file("corpus"))
                ),
            )
            assert summary.acknowledged == 240
            client.search("xquad", "warm up", min_table_version=summary.table_version)
        yield running
    finally:
        down(home)
        shutil.rmtree(home, ignore_errors=True)


_statements: list[str] = []


@pytest.fixture
def state() -> object:
    """Adds a sentence to what the run says at its end."""
    return _statements.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _statements:
        terminalreporter.section("what was measured while processes died")
        for statement in _statements:
            terminalreporter.write_line(statement)
