"""What can be set of an encoder?"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class EncoderSettings(BaseModel):
    """Settings of an encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path
    """Folder of the model's bundle."""
    threads: int = Field(default=1, ge=1, le=256)
    """Threads that one run of the model uses. One: cores are shared with shards and rerankers, and
    a second encoder gains more than a second thread does."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model runs. `cuda` needs the `gpu` extra, and fails at the start without it."""

    query_batch_tokens: int = Field(default=256, ge=1)
    """Most tokens of queries, padding included, in one run of the model. On one core, int8 MiniLM
    works off 8,200 tokens/s of one query alone, 10,500 in runs of 96 tokens, 11,200 of 192, 11,500
    of 384: longer runs only have the first of their queries wait for the last. With more threads,
    1,024 is better; on a GPU, 16,384."""
    passage_batch_tokens: int = Field(default=256, ge=1)
    """Most tokens of passages, padding included, in one run. A query that arrives waits for the run
    under way: 17 ms for 160 tokens, 50 ms for 480, 140 ms for 1,280, and at the same throughput or
    less. A passage longer than this runs alone. With more threads or on a GPU as above."""
    batch_texts: int = Field(default=64, ge=1)
    """Most texts in one run of the model."""
    run_tokens: int = Field(default=6, ge=0)
    """What starting a run costs, in tokens: a text joins a run only if it adds no more padding than
    that. Measured as above, a run costs 0.4 ms, which is 4 tokens, and a little for the way there
    and back; anything from 3 to 60 does. On a GPU 4,096 is a good value."""

    query_queue_tokens: int = Field(default=8_192, ge=1)
    """Tokens of queries that may wait; more are refused with OVERLOADED. About a second's work."""
    passage_queue_tokens: int = Field(default=65_536, ge=1)
    """Tokens of passages that may wait; more are refused with OVERLOADED. About ten seconds' work:
    bulk callers wait longer, and keep a few calls in flight each."""
