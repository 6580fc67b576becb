"""Are the topology files ones that `shoal up` takes, and does an operator understand them?"""

import re
from pathlib import Path

import pytest
import yaml
from shoal.cluster.config import ClusterConfig, read_config

TOPOLOGIES = sorted((Path(__file__).parents[2] / "deploy" / "topologies").glob("*.yaml"))
NAMES = [path.stem for path in TOPOLOGIES]


def test_there_is_one_for_each_kind_of_place():
    assert {"laptop", "gpu", "three-nodes", "container"} <= set(NAMES)


@pytest.mark.parametrize("path", TOPOLOGIES, ids=NAMES)
def test_shoal_up_accepts_it(path):
    config = read_config(path)
    assert config.cluster
    assert config.model_dump(include={"scale", "redis"}, exclude_unset=True)


@pytest.mark.parametrize("path", TOPOLOGIES, ids=NAMES)
def test_every_line_that_declares_something_says_why(path):
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        # A key that only opens a section of commented keys, or names a role, needs no comment.
        opens_role = re.fullmatch(r"\s*(encoder|reranker|shard|broker|writer):", line)
        if line.strip() and not line.lstrip().startswith("#") and not opens_role:
            assert " # " in line, f"{path.name}:{number} has no comment: {line}"


def test_laptop_declares_the_defaults():
    laptop = read_config(next(path for path in TOPOLOGIES if path.stem == "laptop"))
    default = ClusterConfig()
    assert laptop.scale == default.scale
    assert laptop.redis == default.redis
    assert laptop.listen_host == default.listen_host == "127.0.0.1"
    assert laptop.train_at_passages == default.train_at_passages


@pytest.mark.parametrize("path", TOPOLOGIES, ids=NAMES)
def test_files_for_one_machine_bind_no_interface_that_others_reach(path):
    declared = yaml.safe_load(path.read_text())
    if path.stem in ("laptop", "gpu"):
        assert declared["listen_host"] == "127.0.0.1"
    assert declared["listen_host"] != "0.0.0.0"
