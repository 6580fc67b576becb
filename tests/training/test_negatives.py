"""Do training and held-out packages stay apart, and is no right passage taken for a wrong one?"""

from __future__ import annotations

from pathlib import Path

import pytest
from shoal.bundle import EncoderModel, load_bundle
from shoal.training.debian import Package
from shoal.training.negatives import (
    CANDIDATES,
    DEV_PART,
    TWIN_COSINE,
    TrainingSet,
    build_training_set,
)

BUNDLE = Path(__file__).resolve().parents[2] / "deploy" / "bundles" / "all-minilm-l6-v2-int8"
COUNT = 60
_THINGS = ("mail", "music", "maps", "images", "fonts", "games", "proofs", "genomes", "stars", "tea")
_ACTS = ("sorts", "plays", "draws", "prints", "signs", "packs", "sends", "reads", "checks", "tags")


def _package(number: int) -> Package:
    act, thing = _ACTS[number // 10 % 10], _THINGS[number % 10]
    return Package(
        name=f"{act}-{thing}-{number}",
        source=f"source-{number}",
        summary=f"program that {act} {thing}",
        description=(
            f"Program {number} {act} {thing} of every kind that anybody keeps at home. "
            f"Its window shows {thing} number {number} beside all that was found before. "
            f"Whoever {act} {thing} by hand today will be glad of all the time that it saves. "
            f"It was written for a school and is still kept there."
        ),
        section="misc",
        homepage="",
    )


@pytest.fixture(scope="module")
def encoder() -> EncoderModel:
    return EncoderModel(load_bundle(BUNDLE), threads=1)


@pytest.fixture(scope="module")
def packages() -> list[Package]:
    # The second of a source is left out, and so is what says too little to ask about.
    twin = [_package(5)]
    short = [Package("s", "s", "short", "Too short to ask about.", "misc", "")]
    return [*map(_package, range(COUNT)), *twin, *short]


@pytest.fixture(scope="module")
def data(packages: list[Package], encoder: EncoderModel) -> TrainingSet:
    return build_training_set(packages, encoder, passage_count=COUNT, seed=3)


def test_a_source_gives_one_passage(data: TrainingSet) -> None:
    assert len(data.passages) == len(set(data.passages)) == COUNT
    assert not any("Too short" in passage for passage in data.passages)


def test_no_passage_has_questions_on_both_sides(data: TrainingSet) -> None:
    trained = {question.passage for question in data.train}
    held_out = {question.passage for question in data.dev}
    assert trained
    assert held_out
    assert not trained & held_out
    assert len(held_out) < 5 * COUNT / DEV_PART


def test_a_held_out_question_can_be_answered(data: TrainingSet) -> None:
    assert all(question.passage in question.top for question in data.dev)
    assert all(len(question.top) == CANDIDATES for question in data.dev)


def test_negatives_are_wrong_and_unlike_the_right_passage(
    data: TrainingSet, encoder: EncoderModel
) -> None:
    vectors = encoder.encode(data.passages, "passage")
    for question in data.train[:20]:
        assert question.passage not in question.negatives
        assert list(question.negatives_dense) == sorted(question.negatives_dense, reverse=True)
        nearest = max(
            float(vectors[each] @ vectors[question.passage]) for each in question.negatives
        )
        # Encoded in another batch, an int8 vector moves a little.
        assert nearest < TWIN_COSINE + 0.05


def test_the_same_seed_gives_the_same_set(
    packages: list[Package], encoder: EncoderModel, data: TrainingSet
) -> None:
    assert build_training_set(packages, encoder, passage_count=COUNT, seed=3) == data
    other = build_training_set(packages, encoder, passage_count=COUNT, seed=4)
    assert [each.text for each in other.train] != [each.text for each in data.train]
