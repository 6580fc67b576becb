"""Is a topology file that is wrong refused, with the place, the reason and what would do?"""

from __future__ import annotations

from pathlib import Path

import pytest
from shoal.cluster.config import ClusterConfig, ConfigError, read_config


def _read(tmp_path: Path, text: str) -> ClusterConfig:
    path = tmp_path / "topology.yaml"
    path.write_text(text)
    return read_config(path)


def test_nothing_declares_a_laptop() -> None:
    assert read_config(None) == ClusterConfig()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("shards: 2", "shards: unknown key; known are"),
        ("scale: {shard: 2}", "scale.shard: unknown key; known are brokers"),
        ("scale: {shards: 0}", "scale.shards: Input should be greater than or equal to 1"),
        ("redis: {mode: external}", "url goes with mode: external"),
        ("encoder: {thread: 2}", "encoder.thread: unknown key; known are"),
        ("encoder: {threads: many}", "encoder.threads: Input should be a valid integer"),
        ("broker_port: 80", "broker_port"),
        ("cluster: My Cluster", "cluster: String should match pattern"),
        ("- a\n- b", "must hold a mapping"),
        ("a: [", "is no YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path, text)
    assert says in str(caught.value)
    assert "topology.yaml" in str(caught.value)


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path, "x: 1\ny: 2")
    assert len(str(caught.value).splitlines()) == 2


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        read_config(tmp_path / "nowhere.yaml")


def test_redis_can_be_off(tmp_path: Path) -> None:
    # YAML 1.1 reads a bare `off` as false.
    assert _read(tmp_path, "redis: {mode: off}").redis.mode == "off"
