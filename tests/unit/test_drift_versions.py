"""Does drift follow the model of the version in force, whatever its dimension?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shoal.drift.comparison import MIN_SAMPLE
from shoal.internal.v1.drift_pb2 import StoreQuerySampleRequest
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.table import DocumentRows, PassageSpan, PassageTable, build_batch
from shoal.table.catalogue import IndexEntry
from shoal.table.feedback import FeedbackTable
from shoal.table.schema import ModelVectors
from shoal.table.versions import InForce, VersionRecord, in_force_of
from shoal.writer.config import WriterSettings
from shoal.writer.drift import DriftThread, DriftWatch

OLD, NEW = "old@abc", "new@def"
DIMENSION, NEW_DIMENSION = 4, 6
ENTRY = IndexEntry(
    "docs",
    "uid",
    "docs",
    OLD,
    DIMENSION,
    create_time_ns=1,
    versions=(
        VersionRecord(1, "ready", 1, encoder_model=OLD),
        VersionRecord(
            2, "ready", 2, encoder_model=NEW, encoder_bundle="/new", dimension=NEW_DIMENSION
        ),
    ),
    last_version=2,
)


def of_version(number: int) -> InForce:
    return in_force_of(replace(ENTRY, index_version=number))


def sample_of(in_force: InForce, seed: int = 0) -> StoreQuerySampleRequest:
    vectors = np.random.default_rng(seed).normal(size=(MIN_SAMPLE, in_force.dimension))
    return StoreQuerySampleRequest(
        index_uid="uid",
        index_version=in_force.index_version,
        encoder_model=in_force.model,
        asked_count=MIN_SAMPLE,
        vectors=vectors.astype("<f4").tobytes(),
        texts=["whale"] * MIN_SAMPLE,
        best_scores=[0.5] * MIN_SAMPLE,
    )


def filled(folder: Path) -> PassageTable:
    """A table whose passages are all ones to one model, and all twos to the other."""
    table = PassageTable.create(str(folder / "table.lance"), DIMENSION)
    table.add_model(ModelVectors(NEW, NEW_DIMENSION))
    documents = [
        DocumentRows(
            f"d{at}",
            "",
            "",
            bytes(32),
            0,
            [PassageSpan(0, 4, "text")],
            np.ones((1, DIMENSION), np.float32),
            further={NEW: np.full((1, NEW_DIMENSION), 2, np.float32)},
        )
        for at in range(MIN_SAMPLE)
    ]
    table.append(
        build_batch(
            documents,
            first_sequence=0,
            updated_at_us=1,
            dimension=DIMENSION,
            models=table.models,
        )
    )
    return table


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[DriftWatch]:
    thread = DriftThread()
    yield DriftWatch(
        tmp_path,
        filled(tmp_path),
        FeedbackTable(tmp_path),
        WriterSettings(data=tmp_path),
        thread,
    )
    thread.close()


def test_the_vectors_in_force_are_those_of_the_versions_model() -> None:
    assert of_version(0) == InForce(0, OLD, DIMENSION, "")
    assert of_version(1) == InForce(1, OLD, DIMENSION, "")
    assert of_version(2) == InForce(2, NEW, NEW_DIMENSION, NEW)


def test_after_a_rollout_questions_and_passages_are_of_the_new_model(watch: DriftWatch) -> None:
    before, after = of_version(1), of_version(2)
    watch.add(sample_of(before), before)
    old = watch.take_reference(before)
    assert np.array_equal(old.passages.vectors, np.ones((MIN_SAMPLE, DIMENSION)))
    watch.add(sample_of(before, 1), before)
    assert watch.measure(before).measures

    # The other one is in force: nothing of before compares with it.
    found = watch.measure(after)
    assert (found.reference, found.window) == (None, None)
    assert "no reference yet" in found.status
    with pytest.raises(ServiceError, match="0 questions were sampled"):
        watch.take_reference(after)
    # A broker that is behind is no reason to begin anew.
    watch.add(sample_of(before, 2), after)
    assert watch.measure(before).measures

    watch.add(sample_of(after), after)
    new = watch.take_reference(after)
    assert (new.model, new.index_version) == (NEW, 2)
    assert new.queries.vectors.shape == (MIN_SAMPLE, NEW_DIMENSION)
    assert np.array_equal(new.passages.vectors, np.full((MIN_SAMPLE, NEW_DIMENSION), 2))
    watch.add(sample_of(after, 1), after)
    report = watch.measure(after)
    assert {each.subject for each in report.measures} == {"query", "passage"}
    assert report.alert == watch.check(after) == ""
    # Of the first model there is none any more.
    assert watch.measure(before).reference is None


def test_a_sample_of_another_shape_is_refused(watch: DriftWatch) -> None:
    in_force = of_version(2)
    wrong = sample_of(in_force)
    wrong.vectors = wrong.vectors[:-4]
    with pytest.raises(InvalidFieldError, match=f"rows of {NEW_DIMENSION} numbers"):
        watch.add(wrong, in_force)
