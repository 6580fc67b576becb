"""Is a version that was built what it says, and is one that is not refused?"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shoal.shard import build
from shoal.shard.build import EncodedShard, VerificationError, encode, explain, train, verify
from shoal.shard.build_job import BuildJob, StepProgress
from shoal.shard.codes import Codebook, OperatingPoint, load_codebook
from shoal.shard.held import HeldLayout, LayoutId
from shoal.shard.held_out import HeldOut, Neighbours
from shoal.shard.operating_points import RecallUnreachableError
from shoal.shard.published import Published
from shoal.table.errors import TableNotFoundError
from shoal.table.manifest import (
    HELD_OUT,
    ManifestState,
    check_files,
    codebook_folder,
    read_manifest,
    segment_folder,
)
from shoal.table.reading import ATTEMPTS, read_whole
from shoal.table.table import PassageTable

from tests.harness.shard_corpus import UID, Corpus, unit

SHARDS = 2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    corpus = Corpus(tmp_path_factory.mktemp("corpus"))
    corpus.fill(700)
    # Superseded and deleted passages must not be in any segment.
    again = {f"doc-{at}": corpus.document(f"doc-{at}", 2) for at in range(40)}
    corpus.write(again, deletes=("doc-50", "doc-51"))
    return corpus


def job_of(corpus: Corpus, folder: Path, **changes: object) -> BuildJob:
    job = BuildJob(
        table_uri=corpus.uri,
        folder=str(folder),
        index_uid=UID,
        index_version=3,
        shard_count=SHARDS,
        dimension=corpus.dimension,
        encoder_model="m@1",
        recall_target=0.9,
        threads=1,
    )
    return replace(job, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def built(
    corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> tuple[BuildJob, list[EncodedShard]]:
    job = job_of(corpus, tmp_path_factory.mktemp("built") / "3")
    train(job)
    for shard in range(SHARDS):
        encode(job, shard)
    encoded = [EncodedShard.load(Path(job.folder), shard) for shard in range(SHARDS)]
    # It is removed as the version is published, and needed to verify it again.
    shutil.copy(codebook_folder(Path(job.folder)) / HELD_OUT, Path(job.folder).parent)
    verify(job)
    return job, encoded


@pytest.fixture
def copied(
    built: tuple[BuildJob, list[EncodedShard]], tmp_path: Path
) -> tuple[BuildJob, list[EncodedShard]]:
    """The version again, to be damaged."""
    job, encoded = built
    shutil.copytree(job.folder, tmp_path / "3")
    shutil.copy(Path(job.folder).parent / HELD_OUT, codebook_folder(tmp_path / "3"))
    for each in encoded:
        each.save(tmp_path / "3")
    return replace(job, folder=str(tmp_path / "3")), encoded


def layout_of(job: BuildJob, shard_count: int = SHARDS) -> HeldLayout:
    key = LayoutId(UID, job.index_version, shard_count)
    uri = str(codebook_folder(Path(job.folder)))
    layout = HeldLayout(key, uri, job.dimension)
    layout.codebook = load_codebook(Path(uri))
    return layout


def test_the_manifest_says_what_was_built(
    corpus: Corpus, built: tuple[BuildJob, list[EncodedShard]]
) -> None:
    job, _ = built
    folder = Path(job.folder)
    manifest = read_manifest(folder)
    assert manifest.state is ManifestState.READY
    assert manifest.passage_count == corpus.passage_count
    assert manifest.document_count == len(corpus.present)
    assert manifest.table_version == corpus.table.version
    assert manifest.recall >= manifest.recall_target == 0.9
    assert [each.shard for each in manifest.segments] == list(range(SHARDS))
    assert manifest.codebook_sha256 == load_codebook(codebook_folder(folder)).manifest.sha256
    files = [*manifest.codebook, *(file for each in manifest.segments for file in each.files)]
    check_files(folder, tuple(files), 1 << 40)
    listed = {folder / file.name for file in files} | {folder / "manifest.json"}
    assert {path for path in folder.rglob("*") if path.is_file()} == listed
    assert manifest.size_bytes == sum(path.stat().st_size for path in listed) - (
        (folder / "manifest.json").stat().st_size
    )


def test_vectors_that_a_version_was_measured_with_go_as_it_is_published(
    built: tuple[BuildJob, list[EncodedShard]],
) -> None:
    """They are passages', which may be purged while the version is built."""
    folder = Path(built[0].folder)
    assert (folder.parent / HELD_OUT).exists()
    assert list(folder.rglob(HELD_OUT)) == []
    assert HELD_OUT not in {Path(each.name).name for each in read_manifest(folder).codebook}


@pytest.mark.parametrize("reader", ["train", "build_shards", "_count_present"])
def test_a_build_survives_purges_under_any_of_its_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    """Each purge takes the version away that the step reads, and changes how many there are."""
    corpus = Corpus(tmp_path)
    corpus.fill(700)
    writer = PassageTable.open(corpus.uri)
    purges = 0

    def purge(*_: object) -> None:
        nonlocal purges
        if purges < 3:
            writer.refresh()
            writer.remove(np.array([next(iter(writer.scan(["sequence"])))["sequence"][0].as_py()]))
            writer.rewrite(0.0)
            writer.drop_history()
            purges += 1

    scan = PassageTable.scan

    def scanned(table: PassageTable, *arguments: object, **options: object) -> object:
        if table is not writer:
            purge()
        return scan(table, *arguments, **options)  # type: ignore[arg-type]

    job = job_of(corpus, tmp_path / "3")
    if reader == "train":
        monkeypatch.setattr(PassageTable, "scan", scanned)
        train(job)
    else:
        train(job)
        original = getattr(build, reader)

        def purged(*arguments: object, **options: object) -> object:
            purge()
            return original(*arguments, **options)

        monkeypatch.setattr(build, reader, purged)
    for shard in range(SHARDS):
        encode(job, shard)
    monkeypatch.undo()
    assert purges == 3
    writer.refresh()
    assert verify(job).passage_count >= corpus.passage_count - 9


def test_a_reading_that_loses_its_version_again_and_again_gives_up(corpus: Corpus) -> None:
    tries = []

    def lost() -> None:
        tries.append(1)
        raise TableNotFoundError(corpus.uri)

    with pytest.raises(TableNotFoundError):
        read_whole(PassageTable.open(corpus.uri), lost)
    assert len(tries) == ATTEMPTS


def test_a_replica_loads_what_was_published(
    corpus: Corpus, built: tuple[BuildJob, list[EncodedShard]]
) -> None:
    job, encoded = built
    published = Published.of(layout_of(job))
    assert published is not None
    for shard in range(SHARDS):
        main = published.load(shard, pytest.fail)
        assert main is not None
        assert main.segment.count == encoded[shard].entry.passage_count
        assert main.cursor.version == corpus.table.version


def test_another_number_of_shards_is_told_and_another_version_is_not_loaded(
    built: tuple[BuildJob, list[EncodedShard]],
) -> None:
    job, _ = built
    four = Published.of(layout_of(job, shard_count=4))
    assert four is not None
    assert four.shard_count == SHARDS
    assert Published.of(layout_of(replace(job, index_version=4))) is None
    assert Published.of(HeldLayout(LayoutId(UID, 0, SHARDS), "", job.dimension)) is None


def test_a_damaged_segment_is_refused_by_name(
    copied: tuple[BuildJob, list[EncodedShard]], caplog: pytest.LogCaptureFixture
) -> None:
    job, _ = copied
    published, refusals = Published.of(layout_of(job)), list[str]()
    assert published is not None
    at = segment_folder(Path(job.folder), 1)
    largest = max((path for path in at.rglob("*") if path.is_file()), key=_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert published.load(1, refusals.append) is None
    assert largest.name in caplog.text
    assert largest.name in refusals[0]
    assert published.load(0, refusals.append) is not None


def test_a_segment_that_was_cut_short_or_is_gone_is_refused(
    copied: tuple[BuildJob, list[EncodedShard]], caplog: pytest.LogCaptureFixture
) -> None:
    job, _ = copied
    published, refusals = Published.of(layout_of(job)), list[str]()
    assert published is not None
    for shard, spoil in enumerate((lambda path: path.write_bytes(b""), Path.unlink)):
        at = segment_folder(Path(job.folder), shard)
        victim = max((path for path in at.rglob("*") if path.is_file()), key=_size)
        spoil(victim)
        assert published.load(shard, refusals.append) is None
        assert victim.name in caplog.text
        assert victim.name in refusals[shard]


def test_verification_refuses_what_the_table_does_not_hold(
    copied: tuple[BuildJob, list[EncodedShard]],
) -> None:
    job, (_, second) = copied
    short = replace(second, expected_count=second.expected_count + 1)
    short.save(Path(job.folder))
    with pytest.raises(VerificationError, match=r"shard 1 holds .* passages, and the table"):
        verify(job)


def test_verification_refuses_a_recall_below_the_target(
    copied: tuple[BuildJob, list[EncodedShard]],
) -> None:
    job, (first, _) = copied
    # As if the neighbours of the first shard were all better ones, which nothing finds.
    better = replace(
        first,
        neighbour_scores=np.full_like(first.neighbour_scores, 2.0),
        neighbour_rows=np.full_like(first.neighbour_rows, 10**12),
    )
    better.save(Path(job.folder))
    with pytest.raises(RecallUnreachableError, match=r"recall@10 0\.\d+ at best on .* below the"):
        verify(job)
    assert read_manifest(Path(job.folder)).state is ManifestState.READY  # As it was copied.


def test_verification_refuses_parameters_that_do_not_hold_in_a_search(
    copied: tuple[BuildJob, list[EncodedShard]], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = copied
    codebook = load_codebook(codebook_folder(Path(job.folder)))
    least = OperatingPoint(top_k=10, nprobe=1, refine_factor=2, recall=1.0)
    manifest = codebook.manifest.model_copy(update={"operating_points": (least,)})
    hopeful = Codebook(manifest, codebook.template, codebook.wide)
    monkeypatch.setattr(build, "tuned", lambda *_: hopeful)
    with pytest.raises(VerificationError, match=r"recall@10 is 0\.\d+ on .* below the target"):
        verify(job)


def test_search_parameters_are_measured_on_the_segments(
    corpus: Corpus, built: tuple[BuildJob, list[EncodedShard]]
) -> None:
    folder = Path(built[0].folder)
    codebook, published = load_codebook(codebook_folder(folder)).manifest, read_manifest(folder)
    assert codebook.query_count >= 300
    assert codebook.sample_count == corpus.passage_count - codebook.query_count
    assert [each.top_k for each in codebook.operating_points] == [10, 32, 100]
    assert [each.top_k for each in published.search_parameters] == [10, 32, 100]
    # With a margin, as passages are easier than questions; and what a search really reaches.
    assert codebook.recall_at_10 >= 0.95
    assert published.recall == pytest.approx(codebook.recall_at_10, abs=0.01)


def test_a_codebook_has_no_parameters_before_there_are_segments(
    corpus: Corpus, tmp_path: Path
) -> None:
    train(job_of(corpus, tmp_path / "3"))
    assert load_codebook(codebook_folder(tmp_path / "3")).manifest.operating_points == ()


def test_verification_refuses_a_segment_that_cannot_be_read_back(
    copied: tuple[BuildJob, list[EncodedShard]],
) -> None:
    job, _ = copied
    at = segment_folder(Path(job.folder), 0)
    largest = max((path for path in at.rglob("*") if path.is_file()), key=_size)
    content = bytearray(largest.read_bytes())
    content[-100] ^= 255
    largest.write_bytes(content)
    with pytest.raises(VerificationError, match="shard 0 cannot be read back"):
        verify(job)


def test_a_step_may_be_repeated(copied: tuple[BuildJob, list[EncodedShard]]) -> None:
    job, (first, _) = copied
    train(job)
    encode(job, 0)
    again = EncodedShard.load(Path(job.folder), 0)
    assert again.entry.passage_count == first.entry.passage_count
    assert verify(job).passage_count == read_manifest(Path(job.folder)).passage_count


@contextmanager
def files_up_to(limit_bytes: int) -> Iterator[None]:
    """Files cannot grow beyond it: what a full disk does, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_fails_the_step(copied: tuple[BuildJob, list[EncodedShard]]) -> None:
    job, _ = copied
    with files_up_to(4096), pytest.raises(OSError, match="too large") as raised:
        encode(job, 0)
    assert "Make room" in explain(raised.value)


def test_progress_is_what_was_reported_last(tmp_path: Path) -> None:
    progress = StepProgress(tmp_path, "encode-0001")
    assert progress.read() == ("", 0.0)
    progress.report("encoding", 0.25)
    progress.report("encoding", 0.5)
    assert StepProgress(tmp_path, "encode-0001").read() == ("encoding", 0.5)


def test_neighbours_that_come_in_pieces_are_those_of_all() -> None:
    random = np.random.default_rng(2)
    vectors = unit(random.standard_normal((500, 8)))
    row_ids = np.arange(1000, 1500, dtype=np.uint64)
    held_out = HeldOut(vectors[:20], row_ids[:20])
    neighbours = Neighbours(held_out)
    for first in range(0, 500, 90):
        neighbours.add(row_ids[first : first + 90], vectors[first : first + 90])
    neighbours.flush()
    scores = vectors[:20] @ vectors[20:].T
    best = row_ids[20:][np.argsort(-scores, axis=1)[:, :10]]
    assert neighbours.recall(best) == 1.0
    best[:, 0] = 7  # One in ten is wrong.
    assert neighbours.recall(best) == pytest.approx(0.9)


def _size(path: Path) -> int:
    return path.stat().st_size
