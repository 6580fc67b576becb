"""Does the controller remember what it must, and notice what was changed or damaged?"""

from __future__ import annotations

from pathlib import Path

import pytest
from shoal.cluster.config import IndexScale, Scale
from shoal.cluster.controller import Memory
from shoal.cluster.state_file import StateFile
from shoal.internal.v1.topology_pb2 import Topology


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "controller.json")
    assert file.load(Scale()) is None
    topology = Topology(epoch=7)
    topology.indexes.add(name="docs").serving.shard_count = 3
    file.save(Memory(Scale(shards=5), topology), Scale())
    loaded = file.load(Scale())
    assert loaded is not None
    assert (loaded.scale, loaded.topology) == (Scale(shards=5), topology)


def test_the_numbers_of_an_index_are_kept(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "controller.json")
    scales = {"uid": IndexScale(shards=4), "other": IndexScale(replicas=2)}
    file.save(Memory(Scale(), index_scales=scales), Scale())
    loaded = file.load(Scale(shards=3))
    assert loaded is not None
    assert loaded.index_scales == scales
    assert loaded.scale_of("uid") == Scale(shards=4)
    assert loaded.scale_of("none") == Scale(shards=3)


def test_a_changed_declaration_goes_before_what_was_scaled(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "controller.json")
    file.save(Memory(Scale(shards=5)), Scale(shards=2))
    loaded = file.load(Scale(shards=3))
    assert loaded is not None
    assert loaded.scale == Scale(shards=3)


def test_a_damaged_file_is_kept_for_a_look(tmp_path: Path) -> None:
    path = tmp_path / "controller.json"
    path.write_text("{")
    assert StateFile(path).load(Scale()) is None
    assert path.with_suffix(".damaged").read_text() == "{"


def test_a_file_that_cannot_be_read_is_no_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "controller.json"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        StateFile(path).load(Scale())
