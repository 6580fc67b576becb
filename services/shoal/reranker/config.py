"""What can be set of a reranker?"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class RerankerSettings(BaseModel):
    """Settings of a reranker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path
    """Folder of the model's bundle."""
    threads: int = Field(default=1, ge=1, le=256)
    """Threads that one run of the model uses. One: cores are shared with shards and encoders, and a
    second reranker gains more than a second thread does."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model runs. `cuda` needs the `gpu` extra, and fails at the start without it."""

    batch_tokens: int = Field(default=512, ge=1)
    """Most tokens of pairs, padding included, in one run of the model. On one core longer runs gain
    nothing, and the memory of the longest is kept. With more threads, 1,024 is better; on a GPU,
    32,768."""
    batch_pairs: int = Field(default=64, ge=1)
    """Most pairs in one run of the model."""
    run_tokens: int = Field(default=16, ge=0)
    """What starting a run costs, in tokens: a pair joins a run only if it adds no more padding than
    that. On a GPU 4,096 is a good value."""
    queue_tokens: int = Field(default=65_536, ge=1)
    """Tokens of pairs that may wait; more are refused with OVERLOADED. A few seconds' work: a
    caller whose deadline is nearer is refused before that."""
