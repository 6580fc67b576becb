"""What do the controller and the steps of a build tell one another?

The steps may run on different machines, and leave what they make for one another in the version's
folder. Imports nothing heavy, as the controller does not otherwise touch tables and vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from shoal.shard.kind_names import KindName

PROGRESS: Final = "progress"


@dataclass(frozen=True)
class BuildJob:
    """A version to build."""

    table_uri: str
    # The version's folder, which every machine reaches.
    folder: str
    index_uid: str
    index_version: int
    shard_count: int
    dimension: int
    encoder_model: str
    # Recall at 10 below which the build fails, 0 to 1.
    recall_target: float
    # Processor threads of each step.
    threads: int
    # None: chosen from passages, dimension and memory.
    kind: KindName | None = None
    # That one copy of the index may take over all shard servers; None: no bound.
    memory_bytes: int | None = None
    # Where the bundle of `encoder_model` is; empty if the table was made with that model.
    encoder_bundle: str = ""
    # Passages below which it is searched exactly, and gets no codebook. 0: never.
    exact_below: int = 0

    @property
    def vectors_of(self) -> str:
        """Whose vectors of the table it is made of; empty: those that the table was made with."""
        return self.encoder_model if self.encoder_bundle else ""


@dataclass(frozen=True)
class Verified:
    """A version that may be promoted."""

    codebook_uri: str
    table_version: int
    document_count: int
    passage_count: int
    size_bytes: int
    recall: float
    kind: KindName | Literal["exact"]


class StepProgress:
    """How far a step is, in a small file: steps run where nobody can be asked."""

    def __init__(self, folder: Path, step: str) -> None:
        """folder: of the version."""
        self._path = folder / PROGRESS / step

    def report(self, stage: str, done: float) -> None:
        """Say how far it is, 0 to 1. A disk that does not take it stops nobody."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(f"{done:.4f} {stage}", encoding="utf-8")
        except OSError:
            return

    def read(self) -> tuple[str, float]:
        """What was reported last."""
        try:
            done, _, stage = self._path.read_text(encoding="utf-8").partition(" ")
            return stage, min(1.0, max(0.0, float(done)))
        except (OSError, ValueError):
            return "", 0.0
