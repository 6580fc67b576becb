"""How is a version of an index made, step by step?

    train ──> encode shard 0 ─┐
         ├──> encode shard 1 ─┼──> verify ──> manifest.json: READY
         └──> ...            ─┘

Each step is a function that can run in a process of its own, on any machine that reaches the
table and the version's folder, and may be repeated. What a step writes is read by no one before the
manifest says READY, which is written last. Sampling and training are one step, as the sample is as
large as the memory that it may take, and would only be copied.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.shard.build_job import PROGRESS, BuildJob, StepProgress, Verified
from shoal.shard.codebook import train_codebook
from shoal.shard.codes import Codebook, load_codebook, replace_manifest
from shoal.shard.held_out import FILE_NAME as HELD_OUT_FILE
from shoal.shard.held_out import HeldOut, Neighbours
from shoal.shard.kernel import faiss
from shoal.shard.load import build_shards
from shoal.shard.operating_points import TOP_KS
from shoal.shard.search import Target, search
from shoal.shard.segment_corpus import NEIGHBOURS, tuned, without
from shoal.shard.shard import Main
from shoal.shard.snapshot import SnapshotFolder
from shoal.table import schema
from shoal.table.errors import UNWRITABLE
from shoal.table.manifest import (
    ManifestDamagedError,
    ManifestState,
    SearchParameters,
    SegmentEntry,
    VersionManifest,
    check_files,
    codebook_folder,
    describe_files,
    segment_folder,
    write_manifest,
)
from shoal.table.present import present_rows
from shoal.table.reading import read_whole
from shoal.table.slots import shard_of, slot_range
from shoal.table.table import PassageTable

_log = logging.getLogger(__name__)

TOP_K: Final = TOP_KS[0]
# Smaller files are checked by their checksum here; larger ones are checked as they are loaded.
_HASHED_UP_TO_BYTES: Final = 1 << 20
# Queries that are searched at once: each may have thousands of candidates to score again.
_BLOCK_QUERIES: Final = 16


class VerificationError(Exception):
    """A version that is not what it should be; the message says in what."""


@dataclass(frozen=True)
class EncodedShard:
    """A segment that was written, and what is needed to verify it."""

    entry: SegmentEntry
    # Passages that the table has for the shard, counted apart from the encoding.
    expected_count: int
    # Exact neighbours of the held-out vectors among the shard's passages: float32 [n, k].
    neighbour_scores: NDArray[np.float32]
    # uint64 [n, k]
    neighbour_rows: NDArray[np.uint64]

    def save(self, folder: Path) -> None:
        """Leave it in the version's folder. Raises OSError."""
        at = _encoded_file(folder, self.entry.shard)
        at.parent.mkdir(exist_ok=True)
        with at.open("wb") as file:
            np.savez(
                file,
                entry=np.frombuffer(self.entry.model_dump_json().encode(), np.uint8),
                expected_count=self.expected_count,
                neighbour_scores=self.neighbour_scores,
                neighbour_rows=self.neighbour_rows,
            )

    @classmethod
    def load(cls, folder: Path, shard: int) -> EncodedShard:
        """Read what `encode` has left. Raises OSError, ValueError, KeyError."""
        with np.load(_encoded_file(folder, shard)) as stored:
            return cls(
                SegmentEntry.model_validate_json(stored["entry"].tobytes()),
                int(stored["expected_count"]),
                stored["neighbour_scores"],
                stored["neighbour_rows"],
            )


def _encoded_file(folder: Path, shard: int) -> Path:
    return folder / PROGRESS / f"encoded-{shard:04}.npz"


def train(job: BuildJob) -> None:
    """Sample the table, and train what all shards share."""
    folder = Path(job.folder)
    progress = StepProgress(folder, "train")
    write_manifest(folder, _begun(job))
    codebook = codebook_folder(folder)
    if not (codebook / HELD_OUT_FILE).exists():
        shutil.rmtree(codebook, ignore_errors=True)  # An attempt before this one was cut short.
    train_codebook(
        job.table_uri,
        codebook,
        kind=job.kind,
        model=job.vectors_of,
        memory_bytes=job.memory_bytes,
        recall_target=job.recall_target,
        with_points=False,
        threads=job.threads,
        progress=progress.report,
    )


def needs_codebook(job: BuildJob) -> bool:
    """False for a version that is to be searched exactly, as its index is small."""
    if not job.exact_below:
        return True
    table = PassageTable.open(job.table_uri, model=job.vectors_of)
    return _counts(table)[1] >= job.exact_below


def count(job: BuildJob) -> Verified:
    """Say what a version that is searched exactly holds: it has no files, and is made of the table.

    Raises VerificationError if a passage has no vector of its model.
    """
    table = PassageTable.open(job.table_uri, model=job.vectors_of)
    missing = len(table.missing(job.vectors_of)) if job.vectors_of else 0
    if missing:
        raise VerificationError(f"{missing} passages have no vector of {job.encoder_model}")
    documents, passages = _counts(table)
    return Verified("", table.version, documents, passages, 0, 1.0, "exact")


def _counts(table: PassageTable) -> tuple[int, int]:
    columns = (schema.DOCUMENT_ID, schema.SEQUENCE, schema.TOMBSTONE)
    present = present_rows(table.scan(columns))
    if present is None:
        return 0, 0
    return len(present.column(schema.DOCUMENT_ID).unique()), present.num_rows


def encode(job: BuildJob, shard: int) -> None:
    """Encode the passages of a shard into a segment, and write it."""
    folder = Path(job.folder)
    progress = StepProgress(folder, f"encode-{shard:04}")
    faiss.omp_set_num_threads(job.threads)
    codebook = load_codebook(codebook_folder(folder), job.dimension)
    held_out = HeldOut.load(codebook_folder(folder))
    table = PassageTable.open(job.table_uri, model=job.vectors_of)

    def read() -> tuple[Main, Neighbours, int]:
        # Both of one version: a purge between them would have them differ.
        main, neighbours = _encoded(job, table, codebook, held_out, shard, progress)
        return main, neighbours, _count_present(table, shard, job.shard_count)

    main, neighbours, expected_count = read_whole(table, read)
    at = segment_folder(folder, shard)
    shutil.rmtree(at, ignore_errors=True)  # What an attempt before this one left.
    _stored(job, shard).save(shard, main)
    entry = SegmentEntry(
        shard=shard,
        document_count=main.directory.document_count(),
        passage_count=main.segment.count,
        table_version=main.cursor.version,
        sequence=main.cursor.sequence,
        files=describe_files(at, folder),
    )
    EncodedShard(entry, expected_count, neighbours.scores, neighbours.row_ids).save(folder)
    progress.report("encoding", 1.0)


def verify(job: BuildJob) -> Verified:
    """Read all segments back, compare them with the table and with the truth, and publish them.

    Raises VerificationError, RecallUnreachableError.
    """
    folder = Path(job.folder)
    faiss.omp_set_num_threads(job.threads)
    codebook = load_codebook(codebook_folder(folder), job.dimension)
    held_out = HeldOut.load(codebook_folder(folder))
    shards = [EncodedShard.load(folder, shard) for shard in range(job.shard_count)]
    mains = [_read_back(job, codebook, each) for each in shards]
    truth = Neighbours(held_out, NEIGHBOURS)
    for each in shards:
        truth.take(each.neighbour_scores, each.neighbour_rows)
    targets = [
        without(each.entry.shard, main, held_out) for each, main in zip(shards, mains, strict=True)
    ]
    codebook = tuned(codebook, targets, held_out, truth, job.recall_target)
    replace_manifest(codebook_folder(folder), codebook.manifest)
    recall = _recall(job, codebook, truth, held_out, targets)
    if recall < job.recall_target:
        raise VerificationError(
            f"recall@{TOP_K} is {recall:.3f} on {len(held_out.vectors)} held-out vectors, below "
            f"the target {job.recall_target:.3f}: lower it (`shoal index update --recall`), or "
            "build another kind (`--kind`)"
        )
    manifest = _begun(job).model_copy(
        update={
            "state": ManifestState.READY,
            "table_version": min(each.entry.table_version for each in shards),
            "document_count": sum(each.entry.document_count for each in shards),
            "passage_count": sum(each.entry.passage_count for each in shards),
            "kind": codebook.manifest.kind,
            "codebook_sha256": codebook.manifest.sha256,
            "codebook": tuple(
                each
                for each in describe_files(codebook_folder(folder), folder)
                if Path(each.name).name != HELD_OUT_FILE
            ),
            "search_parameters": tuple(
                SearchParameters(
                    top_k=point.top_k,
                    nprobe=point.nprobe,
                    refine_factor=point.refine_factor,
                    ef_search=point.ef_search,
                )
                for point in codebook.manifest.operating_points
            ),
            "recall": recall,
            "segments": tuple(each.entry for each in shards),
        }
    )
    shutil.rmtree(folder / PROGRESS, ignore_errors=True)
    write_manifest(folder, manifest)
    # Nobody measures with them any more, and they are vectors of documents that may be purged.
    (codebook_folder(folder) / HELD_OUT_FILE).unlink(missing_ok=True)
    return Verified(
        codebook_uri=str(codebook_folder(folder)),
        table_version=manifest.table_version,
        document_count=manifest.document_count,
        passage_count=manifest.passage_count,
        size_bytes=manifest.size_bytes,
        recall=recall,
        kind=codebook.manifest.kind,
    )


def discard(job: BuildJob) -> None:
    """Remove a version whose index was dropped meanwhile, and the folders that only it is in."""
    folder = Path(job.folder)
    shutil.rmtree(folder, ignore_errors=True)
    for parent in (folder.parent, folder.parent.parent):
        with contextlib.suppress(OSError):
            parent.rmdir()


def explain(error: Exception) -> str:
    """Say to an operator why a step failed."""
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return (
            f"the version's files cannot be written: {error}. Make room, or mend the storage, and "
            "build again; what serves is not touched"
        )
    return str(error) or type(error).__name__


def _begun(job: BuildJob) -> VersionManifest:
    return VersionManifest(
        index_uid=job.index_uid,
        index_version=job.index_version,
        state=ManifestState.BUILDING,
        encoder_model=job.encoder_model,
        dimension=job.dimension,
        recall_target=job.recall_target,
        shard_count=job.shard_count,
    )


def _stored(job: BuildJob, shard: int) -> SnapshotFolder:
    root = segment_folder(Path(job.folder), shard)
    return SnapshotFolder(root, job.index_uid, job.index_version, job.shard_count)


def _encoded(
    job: BuildJob,
    table: PassageTable,
    codebook: Codebook,
    held_out: HeldOut,
    shard: int,
    progress: StepProgress,
) -> tuple[Main, Neighbours]:
    neighbours = Neighbours(held_out, NEIGHBOURS)
    observe = _observer(neighbours, progress, table.row_count // job.shard_count)
    built = build_shards(table, codebook, [shard], job.shard_count, observe=observe)
    neighbours.flush()
    return built[shard], neighbours


def _observer(
    neighbours: Neighbours, progress: StepProgress, expected_count: int
) -> Callable[[NDArray[np.uint64], NDArray[np.float32]], None]:
    """What looks at vectors on their way into the segment."""
    seen = 0

    def observe(row_ids: NDArray[np.uint64], vectors: NDArray[np.float32]) -> None:
        nonlocal seen
        neighbours.add(row_ids, vectors)
        seen += len(row_ids)
        progress.report("encoding", min(0.95, seen / max(1, expected_count)))

    return observe


def _count_present(table: PassageTable, shard: int, shard_count: int) -> int:
    """Count the passages of a shard by the columns that say so, and nothing else."""
    columns = (schema.DOCUMENT_ID, schema.SEQUENCE, schema.SLOT, schema.TOMBSTONE)
    present = present_rows(table.scan(columns, slots=slot_range(shard, shard_count)))
    if present is None:
        return 0
    slots = present.column(schema.SLOT).to_numpy()
    return int((shard_of(slots, shard_count) == shard).sum())


def _read_back(job: BuildJob, codebook: Codebook, encoded: EncodedShard) -> Main:
    entry = encoded.entry
    if entry.passage_count != encoded.expected_count:
        raise VerificationError(
            f"the segment of shard {entry.shard} holds {entry.passage_count} passages, and the "
            f"table {encoded.expected_count}"
        )
    unreadable = f"the segment of shard {entry.shard} cannot be read back"
    try:
        check_files(Path(job.folder), entry.files, _HASHED_UP_TO_BYTES)
    except ManifestDamagedError as error:
        raise VerificationError(f"{unreadable}: {error}") from error
    main = _stored(job, entry.shard).load(entry.shard, codebook, job.dimension)
    if main is None or main.segment.count != entry.passage_count:
        raise VerificationError(unreadable)
    return main


def _recall(
    job: BuildJob,
    codebook: Codebook,
    truth: Neighbours,
    held_out: HeldOut,
    targets: Sequence[Target],
) -> float:
    """Search all segments as a shard server would."""
    found = []
    for first in range(0, len(held_out.vectors), _BLOCK_QUERIES):
        queries = held_out.vectors[first : first + _BLOCK_QUERIES]
        ranking, failures = search(targets, codebook, queries, TOP_K, shard_count=job.shard_count)
        if failures:
            raise VerificationError(f"shards cannot be searched: {failures}")
        found.append(ranking.row_ids)
    return truth.recall(np.concatenate(found))
