"""Is the table of ingredients made of what was run, and is a run done once?"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the training extra")
pytest.importorskip("sentence_transformers", reason="needs the training extra")

from shoal.training.ablation import (
    CONFIGURATIONS,
    UNTRAINED,
    Run,
    Scale,
    draw,
    run,
    table_of,
)

pytestmark = pytest.mark.training


def _run(name: str, seed: int, recall: float) -> Run:
    return Run(name, seed, recall, loss=0.1, temperature=0.05, scale={})


RUNS = [
    _run(UNTRAINED, 1, 0.5),
    _run("InfoNCE", 1, 0.60),
    _run("InfoNCE", 2, 0.70),
    _run("+ hard negatives", 1, 0.62),
    _run("+ hard negatives", 2, 0.74),
    _run("+ augmentation", 1, 0.61),
]


def test_gains_are_of_the_same_seed() -> None:
    lines = table_of(RUNS).splitlines()
    assert lines[2:] == [
        "| before training | 0.5000 |  | 1 |",
        "| InfoNCE | 0.6500 ± 0.0707 |  | 2 |",
        "| + hard negatives | 0.6800 ± 0.0849 | +0.0300 ± 0.0141 | 2 |",
        "| + augmentation | 0.6100 | +0.0100 | 1 |",
    ]


def test_every_configuration_is_a_setting() -> None:
    base = Scale().settings({}, seed=1)
    found = [Scale().settings(changes, seed=1) for changes in CONFIGURATIONS.values()]
    assert found[0] == base
    assert len({each.model_dump_json() for each in found}) == len(CONFIGURATIONS)


def test_a_run_that_is_there_is_not_run_again(tmp_path: Path) -> None:
    (tmp_path / "InfoNCE-1.json").write_text(
        '{"configuration": "InfoNCE", "seed": 1, "recall": 0.6, "loss": 0.1, "temperature": 0.05, '
        '"scale": {}}'
    )
    assert run(tmp_path, "InfoNCE", 1, ([], []), Scale()) == RUNS[1]


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw(RUNS, tmp_path / "ablation.png")
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")
