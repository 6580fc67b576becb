"""Does every kind of segment live as the others do: built, searched, folded, stored, moved?"""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shoal.internal.v1.shard_pb2 import ShardState
from shoal.shard import lists
from shoal.shard.build import EncodedShard, encode, train, verify
from shoal.shard.build_job import BuildJob
from shoal.shard.codebook import train_codebook
from shoal.shard.codes import CoarseAssignment, Codebook, load_codebook
from shoal.shard.filling import SegmentBuilder
from shoal.shard.footprint import footprint
from shoal.shard.held import HeldLayout, HeldShard, LayoutId
from shoal.shard.kind_hnsw import GraphSegment, Walk
from shoal.shard.kind_lists import CodesInLists, ListSegment
from shoal.shard.kind_names import KIND_NAMES, KindName, name_of, number_of
from shoal.shard.kinds import kind_of
from shoal.shard.load import build_shards
from shoal.shard.move import Source, assembled, cover
from shoal.shard.operating_points import RecallUnreachableError
from shoal.shard.search import Target, search
from shoal.shard.segment import CodedSegment, Found, Vectors
from shoal.shard.shard import Shard
from shoal.shard.snapshot import SnapshotFolder
from shoal.shard.tombstones import Live
from shoal.table.manifest import ManifestState, codebook_folder, read_manifest
from shoal.table.slots import slot_range
from shoal.v1.search_pb2 import SearchKind

from tests.harness.shard_corpus import UID, Corpus, unit

DIMENSION = 32
SHARDS = 2
# glibc's malloc.h.
_M_PERTURB = -6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    corpus = Corpus(tmp_path_factory.mktemp("corpus"), dimension=DIMENSION, seed=3)
    corpus.fill(700)
    return corpus


@pytest.fixture(scope="module", params=KIND_NAMES)
def codebook(
    request: pytest.FixtureRequest, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> Codebook:
    folder = tmp_path_factory.mktemp(request.param) / "codebook"
    train_codebook(corpus.uri, folder, kind=request.param, threads=1)
    return load_codebook(folder, DIMENSION)


def shards_of(corpus: Corpus, codebook: Codebook | None, count: int = SHARDS) -> list[Shard]:
    mains = build_shards(corpus.table, codebook, range(count), count)
    return [Shard(main, DIMENSION, 100) for main in mains.values()]


def found(shards: list[Shard], codebook: Codebook | None, queries: np.ndarray, top_k: int = 10):  # type: ignore[no-untyped-def]
    targets = [Target(at, shard.view) for at, shard in enumerate(shards)]
    ranking, failures = search(targets, codebook, queries, top_k, shard_count=len(shards))
    assert not failures
    return ranking


def recall(rows: np.ndarray, truth: np.ndarray) -> float:
    same = (rows[:, :, None] == truth[:, None, :]).any(axis=2)
    return float(same.mean())


def test_the_names_are_those_of_the_protos() -> None:
    assert {number_of(name) for name in KIND_NAMES} == set(SearchKind.values()) - {
        SearchKind.SEARCH_KIND_UNSPECIFIED,
        SearchKind.SEARCH_KIND_EXACT,
    }
    assert [name_of(number_of(name)) for name in KIND_NAMES] == list(KIND_NAMES)
    assert name_of(SearchKind.SEARCH_KIND_EXACT) is None


def test_it_finds_what_exact_search_finds(corpus: Corpus, codebook: Codebook) -> None:
    queries = corpus.vectors(60)
    # The target holds for 10. Of one alone, what a byte a number cannot tell apart is a whole miss.
    for top_k, least in ((1, 0.9), (10, 0.95), (100, 0.95)):
        ours = found(shards_of(corpus, codebook), codebook, queries, top_k)
        exact = found(shards_of(corpus, None), None, queries, top_k)
        assert recall(ours.row_ids, exact.row_ids) >= least
        # Scores of codes compare with exact ones, as those of a live tail are.
        same = ours.row_ids[:, 0] == exact.row_ids[:, 0]
        # Numbers beyond the range that was trained are clipped, so a few are further off.
        errors = np.abs(ours.scores[same, 0] - exact.scores[same, 0])
        assert np.median(errors) <= 0.005
        assert errors.max() <= 0.1


def test_effort_changes_what_a_graph_returns(tmp_path: Path) -> None:
    # Neighbours that lie in every direction, so that the cheapest walk does not find them all.
    hard = Corpus(tmp_path, dimension=DIMENSION, seed=4)
    hard.fill(3_000)
    for stored in hard.present.values():
        stored.vectors = unit(hard.random.standard_normal(stored.vectors.shape))
    hard.write(dict(hard.present))
    train_codebook(hard.uri, tmp_path / "codebook", kind="hnsw", recall_target=0.8, threads=1)
    codebook = load_codebook(tmp_path / "codebook", DIMENSION)
    (shard,) = shards_of(hard, codebook, 1)
    queries = unit(hard.random.standard_normal((200, DIMENSION)))
    for point in codebook.manifest.operating_points:
        assert point.ef_search >= point.top_k

        def rows(effort: float, top_k: int = point.top_k) -> np.ndarray:
            target = Target(0, shard.view)
            ranking, _ = search([target], codebook, queries, top_k, shard_count=1, effort=effort)
            return ranking.row_ids

        exact = found(shards_of(hard, None, 1), None, queries, point.top_k).row_ids
        assert recall(rows(2.0), exact) > recall(rows(1.0), exact)


def test_the_dead_are_never_found(corpus: Corpus, codebook: Codebook) -> None:
    shards = shards_of(corpus, codebook)
    dead = []
    for shard in shards:
        count = shard.view.main.segment.count
        killed = np.arange(0, count, 2)
        live = shard.view.main_live.changed(count, killed)
        shard.view = replace(shard.view, main_live=live)
        dead.append(shard.view.main.directory.records["row_id"][killed])
    ranking = found(shards, codebook, corpus.vectors(60))
    assert (ranking.positions >= 0).all()
    assert not np.isin(ranking.row_ids, np.concatenate(dead)).any()


def test_nothing_is_found_where_all_are_dead(corpus: Corpus, codebook: Codebook) -> None:
    (shard,) = shards_of(corpus, codebook, 1)
    count = shard.view.main.segment.count
    shard.view = replace(shard.view, main_live=Live(count).changed(count, np.arange(count)))
    assert (found([shard], codebook, corpus.vectors(3)).scores == -np.inf).all()


def test_positions_are_scored_by_their_wide_codes(corpus: Corpus, codebook: Codebook) -> None:
    vectors = corpus.vectors(300)
    builder = SegmentBuilder(codebook, DIMENSION, 300)
    builder.add(vectors[:120])
    builder.add(vectors[120:])
    segment = builder.finish()
    assert isinstance(segment, CodedSegment)
    positions = np.array([[5, 299, 0], [17, 17, 200]])
    queries = corpus.vectors(2)
    scores = codebook.wide.scores(queries, segment.wide[positions])
    expected = np.einsum("nkd,nd->nk", vectors[positions], queries)
    np.testing.assert_allclose(scores, expected, atol=0.1)
    np.testing.assert_array_equal(
        segment.wide.take(positions.reshape(-1), axis=0, mode="clip"),
        segment.wide[positions].reshape(-1, DIMENSION),
    )
    if not kind_of(codebook).refines:
        # The code in FAISS is the wide code.
        ours = segment.wide[np.arange(300)].astype(int)
        steps = np.abs(ours - codebook.wide.encode(vectors))
        # Where a number lies in the middle of two codes, either may be taken.
        assert steps.max() <= 1
        assert (steps == 1).mean() <= 0.001


def test_a_walk_is_made_broader_until_enough_of_what_it_saw_matches(codebook: Codebook) -> None:
    if kind_of(codebook).has_lists:
        return
    random = np.random.default_rng(5)
    near, far = unit(random.standard_normal((2, DIMENSION)))
    noise = 0.05 * random.standard_normal((2_000, DIMENSION))
    vectors = unit(np.concatenate([near + noise[:1_400], far + noise[1_400:]]))
    builder = SegmentBuilder(codebook, DIMENSION, 2_000)
    builder.add(vectors)
    segment, queries = builder.finish(), vectors[:5]
    assert isinstance(segment, GraphSegment)
    live = Live(2_000).changed(2_000, np.arange(1_400))
    _, positions = segment.candidates(queries, Walk(64, known=20), 10, live)
    wide = segment.wide[np.arange(1_400, 2_000)]
    scores = codebook.wide.scores(queries, np.broadcast_to(wide, (5, *wide.shape)))
    truth = 1_400 + np.argsort(-scores, axis=1)[:, :10]
    assert recall(positions, truth) >= 0.95


class ScarceGpu:
    """A GPU that looks into so many lists at most, as FAISS's do: it fails beyond."""

    def __init__(self, max_nprobe: int) -> None:
        self.max_nprobe = max_nprobe
        self.asked: list[int] = []

    def candidates(
        self, queries: Vectors, assignment: CoarseAssignment, count: int, live: Live
    ) -> Found:
        assert assignment.lists.shape[1] <= self.max_nprobe
        self.asked.append(assignment.lists.shape[1])
        shape = (len(queries), count)
        return np.zeros(shape, np.float32), np.zeros(shape, np.int64)


def test_the_processor_answers_what_looks_into_more_lists_than_a_gpu_can(
    codebook: Codebook,
) -> None:
    if not codebook.manifest.list_count:
        return
    builder = SegmentBuilder(codebook, DIMENSION, 300)
    vectors = unit(np.random.default_rng(1).standard_normal((300, DIMENSION)))
    builder.add(vectors)
    segment, queries = builder.finish(), vectors[:3]
    assert isinstance(segment, ListSegment)
    gpu = ScarceGpu(max_nprobe=4)
    placed = replace(segment, gpu=gpu)
    for nprobe in (4, 5):
        probe = codebook.assign(queries, nprobe)
        scores, positions = placed.candidates(queries, probe, 10, Live(300))
        ours = segment.candidates(queries, probe, 10, Live(300))
    np.testing.assert_array_equal(scores, ours[0])
    np.testing.assert_array_equal(positions, ours[1])
    assert gpu.asked == [4]


def test_wide_codes_are_gathered_without_a_look_into_the_lists(codebook: Codebook) -> None:
    """List by list, what a filter leaves in each of thousands of lists would cost microseconds."""
    builder = SegmentBuilder(codebook, DIMENSION, 300)
    vectors = unit(np.random.default_rng(1).standard_normal((300, DIMENSION)))
    builder.add(vectors)
    segment = builder.finish()
    assert isinstance(segment, CodedSegment)
    wide = segment.wide
    assert wide[np.empty(0, np.int64)].shape == (0, DIMENSION)
    assert wide.take(np.empty((2, 0), np.int64), axis=0).shape == (2, 0, DIMENSION)
    everything = wide[np.arange(300)].copy()
    if isinstance(wide, CodesInLists):
        wide._lists = None
    order = np.random.default_rng(2).permutation(300)
    np.testing.assert_array_equal(wide[order], everything[order])
    np.testing.assert_array_equal(wide[5:9], everything[5:9])
    np.testing.assert_array_equal(wide[np.arange(300) % 7 == 0], everything[::7])


@pytest.mark.parametrize("dead_every", [0, 3])
def test_a_fold_is_as_good_as_a_segment_made_anew(
    corpus: Corpus, codebook: Codebook, dead_every: int
) -> None:
    vectors = corpus.vectors(1500)
    builder = SegmentBuilder(codebook, DIMENSION, 1000)
    builder.add(vectors[:1000])
    dead = np.arange(0, 1000, dead_every) if dead_every else np.empty(0, np.int64)
    before = builder.finish()
    folded = before.folded(Live(1000).changed(1000, dead), vectors[1000:])
    kept = np.delete(vectors, dead, axis=0)
    assert (before.count, folded.count) == (1000, len(kept))
    point = codebook.manifest.point_for(10)
    queries = corpus.vectors(40)
    kind = kind_of(codebook)
    count = point.candidate_count(1.0)
    probe = kind.probe(codebook, queries, point, 1.0)
    _, positions = folded.candidates(queries, probe, count, Live(len(kept)))
    truth = np.argsort(-(queries @ kept.T), axis=1)[:, :10]
    assert recall(truth, positions) >= 0.93


@pytest.mark.parametrize("mapped", [True, False])
def test_stored_files_hold_the_same(
    corpus: Corpus, codebook: Codebook, tmp_path: Path, mapped: bool
) -> None:
    shards = shards_of(corpus, codebook)
    folder = SnapshotFolder(tmp_path, UID, 1, SHARDS)
    loaded = []
    for at, shard in enumerate(shards):
        folder.save(at, shard.view.main)
        main = folder.load(at, codebook, DIMENSION, mapped=mapped)
        assert main is not None
        loaded.append(Shard(main, DIMENSION, 100))
    queries = corpus.vectors(40)
    ours, theirs = found(loaded, codebook, queries), found(shards, codebook, queries)
    np.testing.assert_array_equal(ours.row_ids, theirs.row_ids)
    np.testing.assert_array_equal(ours.scores, theirs.scores)
    # What is mapped can be folded, and outlives its files.
    folder.drop()
    segment = loaded[0].view.main.segment
    live = Live(segment.count).changed(segment.count, np.array([3]))
    assert segment.folded(live, corpus.vectors(7)).count == segment.count + 6
    np.testing.assert_array_equal(found(loaded, codebook, queries).scores, ours.scores)


def test_an_empty_segment_is_searched_and_stored(codebook: Codebook, tmp_path: Path) -> None:
    empty = Corpus(tmp_path, dimension=DIMENSION)
    (shard,) = shards_of(empty, codebook, 1)
    folder = SnapshotFolder(tmp_path / "stored", UID, 1, 1)
    folder.save(0, shard.view.main)
    main = folder.load(0, codebook, DIMENSION)
    assert main is not None
    assert main.segment.count == 0
    grown = main.segment.folded(Live(0), empty.vectors(5))
    assert grown.count == 5
    assert (found([shard], codebook, empty.vectors(2)).positions < 0).all()


def test_a_damaged_file_is_refused_by_name(
    corpus: Corpus, codebook: Codebook, tmp_path: Path
) -> None:
    (shard,) = shards_of(corpus, codebook, 1)
    folder = SnapshotFolder(tmp_path, UID, 1, 1)
    folder.save(0, shard.view.main)
    (place,) = folder.folder.iterdir()
    for path in place.iterdir():
        whole = path.read_bytes()
        for at in {0, 8, len(whole) // 2, len(whole) - 1}:
            damaged = bytearray(whole)
            damaged[at] ^= 0x10
            path.write_bytes(damaged)
            refusals: list[str] = []
            assert folder.load(0, codebook, DIMENSION, on_refusal=refusals.append) is None
            assert str(path) in refusals[0], (path.name, at)
        path.write_bytes(whole)
    assert folder.load(0, codebook, DIMENSION) is not None


def test_another_number_of_shards_finds_the_same(corpus: Corpus, codebook: Codebook) -> None:
    shards = shards_of(corpus, codebook)
    sources = [
        Source(slot_range(at, SHARDS), shard.view.main, shard.view)
        for at, shard in enumerate(shards)
    ]
    moved = []
    for at in range(3):
        pieces, missing = cover(slot_range(at, 3), sources)
        assert not missing
        moved.append(assembled(pieces, DIMENSION, 100))
    assert sum(each.view.passage_count for each in moved) == corpus.passage_count
    queries = corpus.vectors(60)
    ours, before = found(moved, codebook, queries), found(shards, codebook, queries)
    exact = found(shards_of(corpus, None), None, queries)
    # A graph made again is another graph: what it misses differs; codes in lists are the same.
    assert recall(ours.row_ids, before.row_ids) >= 0.98
    assert recall(ours.row_ids, exact.row_ids) >= 0.95
    same = ours.row_ids[:, 0] == before.row_ids[:, 0]
    np.testing.assert_allclose(ours.scores[same, 0], before.scores[same, 0], atol=1e-5)


def test_lists_are_copied_in_pieces(
    corpus: Corpus, codebook: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kind_of(codebook).has_lists:
        return
    pauses: list[None] = []
    monkeypatch.setattr(lists, "_PIECE_WORK", 300)
    monkeypatch.setattr(lists, "pause", lambda: pauses.append(None))
    builder = SegmentBuilder(codebook, DIMENSION, 1000)
    builder.add(corpus.vectors(1000))
    segment = builder.finish()
    assert isinstance(segment, ListSegment)
    segment.folded(Live(1000).changed(1000, np.arange(0, 1000, 2)), corpus.vectors(1))
    assert len(pauses) >= 3


@pytest.fixture
def soiled_memory() -> Iterator[None]:
    """Memory that is got is full of ones, as after long use; with glibc."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: None)
    set_option(_M_PERTURB, 0x5A)
    yield
    set_option(_M_PERTURB, 0)


@pytest.mark.usefixtures("soiled_memory")
@pytest.mark.parametrize("dead_every", [0, 3, 1])
def test_what_was_moved_can_be_added_to(
    corpus: Corpus, codebook: Codebook, dead_every: int
) -> None:
    kind, vectors = kind_of(codebook), corpus.vectors(1400)

    def segment_of(rows: Vectors) -> CodedSegment:
        builder = SegmentBuilder(codebook, DIMENSION, len(rows))
        builder.add(rows)
        segment = builder.finish()
        assert isinstance(segment, CodedSegment)
        return segment

    kept = np.ones(500, dtype=np.bool_)
    if dead_every:
        kept[::dead_every] = False
    parts = [(segment_of(vectors[:500]), kept), (segment_of(vectors[500:1000]), kept)]
    moved = kind.gathered(parts)
    folded = moved.folded(Live(moved.count), vectors[1000:])
    rows = np.concatenate([vectors[:500][kept], vectors[500:1000][kept], vectors[1000:]])
    anew, everything = segment_of(rows), np.arange(len(rows))
    np.testing.assert_array_equal(folded.wide[everything], anew.wide[everything])
    if not kind.has_lists:
        return  # A graph made again is another graph.
    queries = corpus.vectors(20)
    probe = codebook.assign(queries, codebook.manifest.list_count)

    def scores_of(segment: CodedSegment) -> Vectors:
        found, positions = segment.candidates(queries, probe, len(rows), Live(len(rows)))
        assert (np.sort(positions, axis=1) == everything).all()
        return np.take_along_axis(found, np.argsort(positions, axis=1), axis=1)

    np.testing.assert_array_equal(scores_of(folded), scores_of(anew))


def test_memory_is_told_by_what_it_is_for(corpus: Corpus, codebook: Codebook) -> None:
    count = 2000
    builder = SegmentBuilder(codebook, DIMENSION, count)
    builder.add(corpus.vectors(count))
    segment = builder.finish()
    assert isinstance(segment, CodedSegment)
    foot = footprint(codebook.manifest.kind, DIMENSION)
    wide_bytes = codebook.wide.dtype.itemsize
    refined = foot.refined * wide_bytes
    assert segment.memory.codes == pytest.approx(count * (foot.scanned + refined), rel=0.01)
    links = segment.memory.ids + segment.memory.links
    assert links == pytest.approx(count * foot.links, rel=0.05)
    assert segment.memory_bytes == segment.memory.codes + links


def test_a_version_is_built_verified_and_published(
    corpus: Corpus, codebook: Codebook, tmp_path: Path
) -> None:
    kind: KindName = codebook.manifest.kind
    job = BuildJob(
        table_uri=corpus.uri,
        folder=str(tmp_path / "1"),
        index_uid=UID,
        index_version=1,
        shard_count=SHARDS,
        dimension=DIMENSION,
        encoder_model="m@1",
        recall_target=0.9,
        threads=1,
        kind=kind,
    )
    train(job)
    for shard in range(SHARDS):
        encode(job, shard)
    assert EncodedShard.load(Path(job.folder), 0).entry.passage_count
    verified = verify(job)
    assert verified.kind == kind
    assert verified.recall >= 0.9
    manifest = read_manifest(Path(job.folder))
    assert (manifest.state, manifest.kind) == (ManifestState.READY, kind)
    # A shard of it says what it is.
    layout = HeldLayout(LayoutId(UID, 1, SHARDS), verified.codebook_uri, DIMENSION)
    layout.codebook = load_codebook(codebook_folder(Path(job.folder)))
    (shard,) = build_shards(corpus.table, layout.codebook, [0], SHARDS).values()
    layout.shards = {0: HeldShard(0, shard=Shard(shard, DIMENSION, 100), ready=True)}
    state: ShardState = layout.state(0)
    assert state.kind == number_of(kind)
    shutil.rmtree(job.folder)


@pytest.mark.parametrize("with_points", [True, False])
def test_a_target_out_of_reach_fails_loudly(tmp_path: Path, *, with_points: bool) -> None:
    # One byte a number cannot tell neighbours apart that lie closer together than its steps.
    close = Corpus(tmp_path, dimension=8, seed=1)
    base = close.vectors(1)
    close.fill(400)
    for stored in close.present.values():
        noise = 1e-4 * close.random.standard_normal(stored.vectors.shape)
        stored.vectors = (base + noise).astype(np.float32)
        stored.vectors[0, 0] += 0.5 * (close.random.random() < 0.01)
    close.write(dict(close.present))
    with pytest.raises(RecallUnreachableError) as raised:
        train_codebook(
            close.uri,
            tmp_path / "1",
            kind="ivf-sq8",
            recall_target=0.999,
            with_points=with_points,
            threads=1,
        )
    message = str(raised.value)
    assert "ivf-sq8 reaches recall@10 0." in message
    assert "target 0.999" in message
    assert "shoal index update --recall" in message
    assert "--kind" in message
    assert not (tmp_path / "1").exists()
