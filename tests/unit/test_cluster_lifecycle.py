"""Does `up` refuse what cannot come up before it has started anything?"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from shoal.cluster import local
from shoal.cluster.config import ConfigError
from shoal.cluster.lifecycle import ClusterError, down, read_info, up

BUNDLE = Path(__file__).resolve().parents[2] / "deploy" / "bundles" / "all-minilm-l6-v2-int8"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "home"
    yield home
    assert not local.is_running(home), "nothing was started"
    assert read_info(home) is None


def _topology(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "topology.yaml"
    path.write_text(text)
    return path


def test_a_port_in_use_is_named(tmp_path: Path, home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        topology = _topology(tmp_path, f"broker_port: {port}")
        with pytest.raises(ClusterError, match=f"127.0.0.1:{port}.*in use.*broker_port"):
            up(topology, home)


def test_a_missing_bundle_is_named(tmp_path: Path, home: Path) -> None:
    topology = _topology(tmp_path, f"encoder: {{bundle: {tmp_path}/nothing}}")
    with pytest.raises(ConfigError, match=r"encoder\.bundle: .*nothing is missing"):
        up(topology, home)


def test_a_damaged_bundle_is_named(tmp_path: Path, home: Path) -> None:
    copy = Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))
    with (copy / "model.onnx").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"damage")
    topology = _topology(tmp_path, f"encoder: {{bundle: {copy}}}")
    with pytest.raises(ConfigError, match=r"model\.onnx is damaged"):
        up(topology, home)


def test_an_unknown_key_is_named(tmp_path: Path, home: Path) -> None:
    with pytest.raises(ConfigError, match=r"shardz: unknown key"):
        up(_topology(tmp_path, "shardz: 4"), home)


def test_down_without_a_cluster_finds_none(home: Path) -> None:
    assert down(home) is False
