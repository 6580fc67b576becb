"""What do all shards of an index version share, so that their scores compare?

One coarse quantizer, one narrow code and one wide code, trained once, and the search parameters
that were measured to reach the recall target. Shards of any number are filled from it. How it is
trained is in `shoal.shard.codebook`; what each kind makes of it, in `shoal.shard.kinds`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from shoal.rpc.errors import ServiceError
from shoal.shard.kernel import faiss
from shoal.shard.kind_names import DEFAULT_KIND, KindName
from shoal.shard.wide_code import WideCode, WideKind
from shoal.v1.errors_pb2 import Reason

# Below it, exact search takes less than a millisecond and loses nothing.
TRAIN_AT_PASSAGES: Final = 20_000
# FAISS's own least number of sample points for each list of a coarse quantizer.
POINTS_PER_LIST: Final = 39
MIN_LIST_COUNT: Final = 16
MAX_LIST_COUNT: Final = 65_536
FORMAT: Final = 1

# An index that has grown beyond this should be trained again: its lists have become too long.
_MAX_GROWTH: Final = 16.0
MAX_CANDIDATES: Final = 8_000

_CODEBOOK_FILE: Final = "codebook.npz"
_MANIFEST_FILE: Final = "manifest.json"


class CodebookDamagedError(ServiceError):
    """A codebook that is missing, or not what was written."""

    def __init__(self, folder: Path, detail: str) -> None:
        """Detail: what is wrong with it."""
        super().__init__(
            Reason.REASON_CHECKSUM_MISMATCH,
            f"the codebook in {folder} {detail}. Restore the folder from a copy, or train the "
            "index again; the version that serves now is not touched",
        )


def should_train(
    row_count: int, dimension: int, threshold_passages: int = TRAIN_AT_PASSAGES
) -> bool:
    """Say whether an index is large enough to be searched by codes."""
    # Fast-scan codes take four numbers to half a byte; narrower vectors have nothing to compress.
    return row_count >= threshold_passages and dimension >= 8


def list_count_for(row_count: int, sample_count: int) -> int:
    """Choose how many lists: about four times the root of the rows, a power of two.

    With half as many, comparing queries with centroids costs half, but clustered data needs six
    times the probes and twice the candidates for the same recall (measured at 500,000 rows).
    """
    wanted: int = 2 ** round(math.log2(max(1.0, 4 * math.sqrt(row_count))))
    while wanted > MIN_LIST_COUNT and wanted * POINTS_PER_LIST > sample_count:
        wanted //= 2
    return max(MIN_LIST_COUNT, min(wanted, MAX_LIST_COUNT))


class OperatingPoint(BaseModel):
    """Search parameters that were measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_k: int = Field(ge=1)
    """They hold for searches of up to so many."""
    nprobe: int = Field(default=1, ge=1)
    """Lists that are searched. 1 in a kind without lists."""
    refine_factor: int = Field(default=1, ge=1)
    """Candidates that are scored again, for each one wanted. 1: the first scores are final."""
    ef_search: int = Field(default=0, ge=0)
    """Passages that a walk through a graph keeps in view. 0 in a kind without a graph."""
    recall: float
    """Recall at `top_k` that they reached on held-out vectors, 0 to 1."""

    def harder(self, effort: float, list_count: int) -> OperatingPoint:
        """Give parameters that cost so many times as much, as far as there are lists.

        effort: at least 1. `candidate_count` bounds what comes of the refine factor.
        """
        if effort == 1.0:
            return self
        scaled = {
            "nprobe": max(1, min(list_count, math.ceil(self.nprobe * effort))),
            # 1: the first scores are final.
            "refine_factor": self.refine_factor
            if self.refine_factor == 1
            else math.ceil(self.refine_factor * effort),
            "ef_search": math.ceil(self.ef_search * effort),
        }
        return self.model_copy(update=scaled)

    def candidate_count(self, growth: float = 1.0) -> int:
        """How many candidates are scored again.

        growth: passages now, to those among which recall was measured. As neighbours lie closer
        together, a code tells fewer of them apart.
        """
        if self.refine_factor == 1:
            return self.top_k
        grown = math.ceil(self.top_k * self.refine_factor * min(max(growth, 1.0), _MAX_GROWTH))
        return max(self.top_k, min(grown, MAX_CANDIDATES))


class Manifest(BaseModel):
    """What a codebook is, and how it was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    dimension: int
    """Numbers in a vector."""
    kind: KindName = DEFAULT_KIND
    """How its segments are searched."""
    list_count: int
    """Lists of the coarse quantizer. 0 in a kind without lists."""
    factory: str
    """The lists or the graph, in FAISS's words."""
    wide: WideKind
    """The code that candidates are scored again with."""
    operating_points: tuple[OperatingPoint, ...] = ()
    """Ascending by `top_k`. None in a version whose segments are still being made."""
    recall_target: float
    """What was asked for; the points were chosen with a margin."""
    passage_count: int
    """Passages that the index had."""
    sample_count: int
    """Passages that recall was measured among."""
    query_count: int
    """Held-out vectors that recall was measured with."""
    seed: int
    sha256: str
    """Of the codebook's file."""

    @property
    def recall_at_10(self) -> float:
        """Recall at 10 that was measured."""
        return self.operating_points[0].recall

    def harder(self, effort: float) -> Manifest:
        """Give the same with search parameters that cost so many times as much. effort: from 1."""
        if effort == 1.0:
            return self
        points = tuple(each.harder(effort, self.list_count) for each in self.operating_points)
        return self.model_copy(update={"operating_points": points})

    def point_for(self, top_k: int) -> OperatingPoint:
        """Choose the search parameters for so many results."""
        for point in self.operating_points:
            if top_k <= point.top_k:
                return point
        # Further results lie in further lists: in the same proportion, for want of a measurement.
        last = self.operating_points[-1]
        times = -(-top_k // last.top_k)
        nprobe = max(1, min(self.list_count, last.nprobe * times))
        ef_search = last.ef_search * times
        return last.model_copy(update={"nprobe": nprobe, "ef_search": ef_search, "top_k": top_k})


@dataclass(frozen=True)
class CoarseAssignment:
    """The lists to look for each query in: the same in every shard."""

    # int64 [n, nprobe]
    lists: NDArray[np.int64]
    # float32 [n, nprobe]
    scores: NDArray[np.float32]


class Codebook:
    """A trained codebook, which every shard of an index version uses."""

    def __init__(self, manifest: Manifest, template: Any, wide: WideCode) -> None:
        """template: a trained FAISS index without vectors."""
        self.manifest = manifest
        self.wide = wide
        self.template = template
        # None in a kind without lists.
        self.quantizer = faiss.downcast_index(template.quantizer) if manifest.list_count else None

    def assign(self, queries: NDArray[np.float32], nprobe: int) -> CoarseAssignment:
        """Choose the lists of each query, once for all shards: half of a search's work."""
        assert self.quantizer is not None
        scores, lists = self.quantizer.search(queries, nprobe)
        return CoarseAssignment(lists, scores)

    def centroids(self) -> NDArray[np.float32]:
        """The coarse quantizer's vectors: float32 [list_count, dimension]."""
        assert self.quantizer is not None
        centroids: NDArray[np.float32] = self.quantizer.reconstruct_n(0, self.quantizer.ntotal)
        return centroids


def save_codebook(folder: Path, manifest: Manifest, template: Any, wide: WideCode) -> Manifest:
    """Write a codebook; it is there as a whole or not at all. Returns its manifest, with checksum.

    A folder that is there already is replaced.
    """
    buffer = io.BytesIO()
    np.savez(buffer, lists=faiss.serialize_index(template), lowest=wide.lowest, step=wide.step)
    content = buffer.getvalue()
    manifest = manifest.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    beside.mkdir()
    try:
        write_synced(beside / _CODEBOOK_FILE, content)
        write_synced(beside / _MANIFEST_FILE, manifest.model_dump_json(indent=2).encode())
        sync_folder(beside)
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return manifest


def load_codebook(folder: Path, dimension: int | None = None) -> Codebook:
    """Read a codebook and check it. Raises CodebookDamagedError.

    dimension: of the index that it is for.
    """
    manifest = load_manifest(folder)
    if dimension is not None and manifest.dimension != dimension:
        raise CodebookDamagedError(
            folder, f"is for {manifest.dimension} numbers a vector, but the index has {dimension}"
        )
    try:
        content = (folder / _CODEBOOK_FILE).read_bytes()
    except OSError as error:
        raise CodebookDamagedError(folder, f"cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != manifest.sha256:
        raise CodebookDamagedError(folder, "does not have the checksum that it was written with")
    with np.load(io.BytesIO(content)) as stored:
        template = faiss.deserialize_index(stored["lists"])
        wide = WideCode(manifest.wide, stored["lowest"], stored["step"])
    return Codebook(manifest, template, wide)


def load_manifest(folder: Path) -> Manifest:
    """Read what a codebook is. Raises CodebookDamagedError."""
    try:
        manifest = Manifest.model_validate(json.loads((folder / _MANIFEST_FILE).read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise CodebookDamagedError(folder, f"has no manifest that can be read: {error}") from error
    if manifest.format > FORMAT:
        raise CodebookDamagedError(
            folder, f"has format {manifest.format}, and this release reads {FORMAT}"
        )
    return manifest


def replace_manifest(folder: Path, manifest: Manifest) -> None:
    """Write what is known better now of a codebook that is there. Raises OSError."""
    beside = folder / f".{_MANIFEST_FILE}-{uuid.uuid4().hex}"
    try:
        write_synced(beside, manifest.model_dump_json(indent=2).encode())
        beside.replace(folder / _MANIFEST_FILE)
        sync_folder(folder)
    finally:
        beside.unlink(missing_ok=True)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
