"""Is a codebook what was measured, and is a damaged one refused?"""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.rpc.errors import ServiceError
from shoal.shard.centroids import place_centroids
from shoal.shard.codebook import TooFewPassagesError, _read_sample, train_codebook
from shoal.shard.codes import (
    CodebookDamagedError,
    OperatingPoint,
    list_count_for,
    load_codebook,
    should_train,
)
from shoal.shard.kernel import faiss
from shoal.shard.kinds import named
from shoal.shard.operating_points import Measured, Tried, Truth, _pick, ranked_recalls
from shoal.shard.wide_code import Bounds, WideCode
from shoal.v1.errors_pb2 import Reason

from tests.harness.shard_corpus import Corpus, unit


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codebook")
    corpus = Corpus(folder, dimension=24)
    corpus.fill(700)
    reports = []
    manifest = train_codebook(
        corpus.uri,
        folder / "versions" / "1",
        threads=1,
        progress=lambda stage, done: reports.append((stage, done)),
    )
    return corpus, folder / "versions" / "1", manifest, reports


def test_training_says_what_it_measured(trained):
    corpus, folder, manifest, reports = trained
    assert manifest.dimension == 24
    assert manifest.passage_count == corpus.passage_count
    assert manifest.query_count >= 300
    assert [point.top_k for point in manifest.operating_points] == [10, 32, 100]
    assert manifest.recall_at_10 >= 0.975
    assert [done for _, done in reports] == sorted(done for _, done in reports)
    assert json.loads((folder / "manifest.json").read_text())["sha256"] == manifest.sha256
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


def test_recall_is_measured_on_questions_where_there_are_some(trained, tmp_path):
    corpus, _, on_passages, _ = trained
    queries = corpus.vectors(300)
    manifest = train_codebook(corpus.uri, tmp_path / "asked", queries=queries, threads=1)
    assert manifest.query_count == 300
    assert manifest.sample_count == corpus.passage_count > on_passages.sample_count
    assert manifest.recall_at_10 >= 0.95

    def candidates(manifest):
        point = manifest.operating_points[0]
        return point.nprobe * point.refine_factor

    assert candidates(manifest) <= candidates(on_passages)


def test_training_again_changes_nothing(trained):
    corpus, folder, manifest, _ = trained
    assert train_codebook(corpus.uri, folder, seed=99) == manifest


def test_a_codebook_of_another_dimension_is_refused(trained):
    with pytest.raises(CodebookDamagedError, match="24 numbers"):
        load_codebook(trained[1], 25)


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest", "future"])
def test_a_damaged_codebook_is_refused(trained, tmp_path, damage):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in trained[1].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = bytearray((folder / "codebook.npz").read_bytes())
    match damage:
        case "flip":
            content[len(content) // 2] ^= 1
            (folder / "codebook.npz").write_bytes(content)
        case "cut":
            (folder / "codebook.npz").write_bytes(content[:100])
        case "missing":
            (folder / "codebook.npz").unlink()
        case "manifest":
            (folder / "manifest.json").write_text("{")
        case _:
            manifest = json.loads((folder / "manifest.json").read_text())
            (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(ServiceError) as raised:
        load_codebook(folder, 24)
    assert raised.value.reason == Reason.REASON_CHECKSUM_MISMATCH
    assert str(folder) in str(raised.value)


def test_a_damaged_codebook_is_replaced_by_training(trained, tmp_path):
    corpus, *_ = trained
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "manifest.json").write_text("{")
    train_codebook(corpus.uri, tmp_path / "1", threads=1)
    assert load_codebook(tmp_path / "1", 24).manifest.dimension == 24


def test_a_table_that_is_too_small_is_refused(tmp_path):
    corpus = Corpus(tmp_path)
    corpus.fill(10)
    with pytest.raises(TooFewPassagesError, match=f"{corpus.passage_count} passages"):
        train_codebook(corpus.uri, tmp_path / "1", threads=1)
    assert not (tmp_path / "1").exists()


def test_parameters_grow_with_the_number_of_results(trained):
    manifest = trained[2]
    last = manifest.operating_points[-1]
    assert manifest.point_for(1) == manifest.point_for(10) == manifest.operating_points[0]
    assert manifest.point_for(11).top_k == 32
    assert manifest.point_for(1000).nprobe == min(manifest.list_count, 10 * last.nprobe)


@given(rows=st.integers(1, 100_000_000), sample=st.integers(0, 1_000_000))
def test_lists_are_a_bounded_power_of_two(rows, sample):
    count = list_count_for(rows, sample)
    assert count & (count - 1) == 0
    assert count == 16 or count * 39 <= sample


@given(dimension=st.integers(8, 4096))
def test_every_dimension_has_codes(dimension):
    index = faiss.index_factory(dimension, named("ivf-pq").factory(dimension, 16), 0)
    assert index.pq.M * index.pq.dsub == dimension


def test_small_indexes_are_not_trained():
    assert should_train(20_000, 384)
    assert not should_train(19_999, 384)
    assert not should_train(1_000_000, 4)
    assert should_train(1_000, 384, threshold_passages=1_000)


def bounds_of(vectors):
    return Bounds.none(vectors.shape[1]).with_vectors(vectors)


@pytest.mark.parametrize(("kind", "tolerance"), [("sq8", 0.01), ("fp16", 0.001)])
def test_wide_codes_keep_inner_products(kind, tolerance):
    random = np.random.default_rng(0)
    vectors = unit(random.standard_normal((300, 48)))
    queries = unit(random.standard_normal((5, 48)))
    wide = WideCode.train(kind, bounds_of(vectors))
    codes = wide.encode(vectors)
    scores = wide.scores(queries, np.broadcast_to(codes, (5, *codes.shape)))
    np.testing.assert_allclose(scores, queries @ vectors.T, atol=tolerance)
    np.testing.assert_allclose(wide.decode(codes), vectors, atol=tolerance)


def test_a_number_that_never_varies_is_kept():
    vectors = np.tile(np.array([[0.5, -0.5]], dtype=np.float32), (4, 1))
    wide = WideCode.train("sq8", bounds_of(vectors))
    np.testing.assert_allclose(wide.decode(wide.encode(vectors)), vectors)


def test_vectors_that_come_later_are_in_the_range_too():
    random = np.random.default_rng(0)
    centres = random.standard_normal((40, 16))

    def drawn(count):
        noise = 0.5 * random.standard_normal((count, 16))
        return unit(centres[random.integers(40, size=count)] + noise)

    seen, further = drawn(700), drawn(20_000)
    # What the range of those that were seen would make of the others.
    clipped = np.clip(further, seen.min(axis=0), seen.max(axis=0))
    assert np.abs(((clipped - further) * further).sum(axis=1)).max() > 0.05
    wide = WideCode.train("sq8", bounds_of(seen))
    decoded = wide.decode(wide.encode(further))
    assert np.abs(((decoded - further) * further).sum(axis=1)).max() < 0.02


def test_bounds_are_of_all_that_was_seen_in_pieces():
    vectors = unit(np.random.default_rng(0).standard_normal((90, 8)))
    bounds = bounds_of(vectors[:40]).with_vectors(vectors[40:40]).with_vectors(vectors[40:])
    np.testing.assert_array_equal(bounds.lowest, vectors.min(axis=0))
    np.testing.assert_array_equal(bounds.highest, vectors.max(axis=0))
    assert bounds.vector_count == 90
    with_room = bounds.with_room()
    assert (with_room.lowest <= bounds.lowest).all()
    assert (with_room.lowest >= -1).all()
    assert (with_room.highest >= bounds.highest).all()
    assert (with_room.highest <= 1).all()


def test_bounds_are_of_all_vectors_of_the_table_sampled_or_not(tmp_path, monkeypatch):
    corpus = Corpus(tmp_path, dimension=32)
    corpus.fill(400)
    vectors = np.concatenate([each.vectors for each in corpus.present.values()])
    corpus.write({"doc-0": corpus.document("again")}, ("doc-1",))
    corpus.table.refresh()
    monkeypatch.setattr("shoal.shard.codebook.SAMPLE_BYTES", 4 * 32 * 50)
    count, sample, row_ids, seen = _read_sample(corpus.table, 0)
    assert len(sample) == len(row_ids) == 50
    assert count == corpus.passage_count
    # Superseded passages are among them.
    assert seen.vector_count == len(vectors) + 1
    assert (seen.lowest <= vectors.min(axis=0)).all()
    assert (seen.highest >= vectors.max(axis=0)).all()
    assert (seen.highest > sample.max(axis=0)).any()


def _clustered(count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = unit(random.standard_normal((40, 16)))
    rows = centres[random.integers(0, 40, count)] + 0.2 * random.standard_normal((count, 16))
    return unit(rows).astype(np.float32)


def _with_centroids(sample: np.ndarray, seed: int) -> np.ndarray:
    lists = faiss.index_factory(16, "IVF64,SQ8", faiss.METRIC_INNER_PRODUCT)
    place_centroids(lists, sample, seed)
    assert lists.quantizer.ntotal == 64
    return lists.quantizer.reconstruct_n(0, 64)


def test_centroids_of_few_points_lie_as_well_as_those_of_all():
    sample, others = _clustered(4096, 1), _clustered(2000, 1)
    centroids = _with_centroids(sample, 7)
    plain = faiss.Clustering(16, 64)
    plain.niter, plain.spherical, plain.seed = 10, True, 8
    plain.train(sample, faiss.IndexFlatIP(16))
    usual = faiss.vector_to_array(plain.centroids).reshape(64, 16)

    def nearness(places):
        return (others @ places.T).max(axis=1).mean()

    assert nearness(centroids) > nearness(usual) - 0.01
    # Far from where they began: at points of the sample.
    assert nearness(centroids) > nearness(sample[:64]) + 0.02
    assert np.allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)


def test_centroids_are_repeatable_and_training_keeps_them():
    sample = _clustered(2000, 2)
    assert np.array_equal(_with_centroids(sample, 3), _with_centroids(sample, 3))
    assert not np.array_equal(_with_centroids(sample, 3), _with_centroids(sample, 4))
    seen = Bounds.none(16).with_vectors(sample)
    template = named("ivf-pq").train(sample, 64, WideCode.train("sq8", seen), 3)
    assert np.array_equal(template.quantizer.reconstruct_n(0, 64), _with_centroids(sample, 3))


def test_the_cheapest_parameters_that_reach_the_target_are_chosen():
    def tried(cost, floor):
        return Tried(cost, floor, OperatingPoint(top_k=10, recall=floor))

    reaching = [tried(5, 0.96), tried(3, 0.951), tried(1, 0.949)]
    assert _pick(reaching, 0.95).cost_ns == 3
    # Out of reach: what costs a hundred times as much is not worth a gain of a thousandth.
    short = [tried(500, 0.931), tried(5, 0.930), tried(1, 0.92)]
    assert _pick(short, 0.95).cost_ns == 5


def test_a_target_that_is_reached_without_a_margin_is_not_given_up():
    def tried(cost, recall):
        return Tried(cost, 1 - 2 * (1 - recall), OperatingPoint(top_k=10, recall=recall))

    assert _pick([tried(5, 0.951), tried(1, 0.949)], 0.95).cost_ns == 5


def test_a_wide_code_is_judged_by_what_it_tells_apart():
    """Neighbours that a code equates are in no order, although they are given in the true one."""
    random = np.random.default_rng(5)
    base = unit(random.standard_normal((1, 8)) + 1e-6 * random.standard_normal((300, 8)))
    base, held_out = base.astype(np.float32), unit(random.standard_normal((20, 8)))
    held_out = held_out.astype(np.float32)
    exact = (held_out.astype(np.float64) @ base.T.astype(np.float64)).astype(np.float64)
    order = np.argsort(-exact, axis=1)[:, :128]
    # Scores that are told apart, in the same order.
    scores = np.tile(np.linspace(1, 0, 128, dtype=np.float32), (20, 1))
    measured = Measured(named("ivf-pq"), held_out, Truth(scores, order))
    coarse = WideCode("sq8", np.full(8, -1, np.float32), np.full(8, 2 / 255, np.float32))
    assert ranked_recalls(measured, base[order], coarse).mean() < 0.3
    told_apart = unit(random.standard_normal((300, 8))).astype(np.float32)
    true = np.argsort(-(held_out @ told_apart.T), axis=1)[:, :128]
    exact_scores = np.take_along_axis(held_out @ told_apart.T, true, axis=1)
    measured = Measured(named("ivf-pq"), held_out, Truth(exact_scores, true))
    assert ranked_recalls(measured, told_apart[true], coarse).mean() > 0.9
