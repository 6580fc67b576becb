"""What can be set of a writer?"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class WriterSettings(BaseModel):
    """Settings of a writer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="after")
    def _bound_overlap(self) -> Self:
        if 2 * self.passage_overlap_tokens >= self.passage_tokens:
            raise ValueError(
                f"passage_overlap_tokens is {self.passage_overlap_tokens}: it must be less than "
                f"half of passage_tokens, {self.passage_tokens}"
            )
        return self

    data: Path
    """Data root: the folder of the catalogue and of all indexes. One writer at a time holds it."""

    @field_validator("data", mode="before")
    @classmethod
    def _refuse_object_stores(cls, value: object) -> object:
        """A path would take `s3://bucket` for a folder of that name."""
        if isinstance(value, str) and "://" in value:
            raise ValueError(
                "must be a folder: the catalogue needs atomic renames and a lock, which object "
                "stores do not have. Several machines need a folder that all of them reach"
            )
        return value

    tokenizer: Path | None = None
    """Folder of the encoder's bundle, whose tokenizer measures passages. Without it they are
    measured by a rule of thumb."""

    passage_tokens: int = Field(default=220, ge=16, le=4096)
    """Most tokens of text in a passage, as far as the encoder reads so many with the title.
    Measured with all-MiniLM-L6-v2, which reads 256, on XQuAD English: nDCG@10 is 0.9465 with 220
    (84% of the paragraphs stay whole), 0.9456 with 250 (91%), 0.9413 without splitting. 220 leave
    room for the question in a reranker that reads 256 tokens."""
    passage_overlap_tokens: int = Field(default=0, ge=0, le=1024)
    """Most tokens at the end of a passage that the next one of its document begins with, in whole
    sentences or words; less than half of `passage_tokens`. Worth its storage where a sentence is
    often answered by the one after; with `RetrieveContext`, which brings neighbours along, it
    seldom is."""
    title_tokens: int = Field(default=48, ge=0, le=1024)
    """Most tokens of a title that are encoded in front of a passage. A longer one would leave no
    room for the text, and all passages of a document would get one vector."""
    passage_chars: int = Field(default=2048, ge=64, le=1 << 20)
    """Most code points in a passage. A tokenizer takes a word that it does not know, such as a line
    of a script without spaces, for one token, however long it is."""

    encode_batch: int = Field(default=32, ge=1, le=1024)
    """Most texts in a call to an encoder. Enough to fill its batches, few enough that several
    encoders share the work of one stream."""
    encode_calls: int = Field(default=2, ge=1, le=64)
    """Calls in flight to each encoder: one that is computed, and one that waits its turn."""
    encode_call_s: float = Field(default=30.0, gt=0)
    """Seconds after which a call to an encoder is given up and made to another one."""
    encoder_patience_s: float = Field(default=15.0, ge=0)
    """Seconds without an answer of any encoder after which writes fail. A killed one is back within
    a few seconds."""

    chunk_documents: int = Field(default=512, ge=1, le=65_536)
    """Most documents of a stream that go through the writer together."""
    chunk_bytes: int = Field(default=2 << 20, ge=1 << 16)
    """Bytes at which such a chunk is full."""
    chunk_text_bytes: int = Field(default=32 << 10, ge=1)
    """Bytes of text to encode at which such a chunk is full: about 40 passages, which take a core
    one to two seconds. A chunk is acknowledged as a whole, so this decides how far the news lag
    behind."""
    stream_chunks: int = Field(default=16, ge=1, le=256)
    """Chunks of a stream on their way at once; a stream that is further ahead waits. Enough to keep
    eight encoders busy with one stream."""
    max_streams: int = Field(default=32, ge=1, le=4096)
    """Streams at once; more are refused. With the bounds above, what they hold in memory is bounded
    too: about `max_streams * (stream_chunks + 1) * chunk_bytes`, 1.1 GiB."""
    commit_rows: int = Field(default=16_384, ge=1)
    """Rows at which a commit is full. 16,384 x 384 float32 are 24 MiB."""
    prepare_threads: int = Field(default=2, ge=1, le=64)
    """Threads that validate and split documents."""

    clean_interval_s: float = Field(default=60.0, gt=0)
    """Seconds between two removals of old versions of a table."""
    keep_versions_s: float = Field(default=600.0, ge=0)
    """Seconds for which an old version of a table can still be read, and rows that were replaced
    are kept for answers that are on their way. Longer than any follower takes for one step, the
    first load included."""
    trim_interval_s: float = Field(default=900.0, gt=0)
    """Seconds between two removals of rows that are not needed any more. Each reads the ids and
    times of all rows, about 100 bytes a row: 5 s for ten million rows, at most every 15 minutes."""
    trim_rows: int = Field(default=1_000_000, ge=1)
    """Rows that a removal looks at together: about 200 MB of memory. A larger table takes several
    turns, each of a part of the slots."""
    keep_tombstones_s: float = Field(default=7 * 86_400.0, ge=0)
    """Seconds for which a deletion is remembered. A stored segment that is older is not caught up
    from, but made anew from the table. A week: longer than a machine is usually away for repair,
    and a tombstone is 100 bytes."""
    feedback_keep_days: float = Field(default=90.0, gt=0)
    """Days for which feedback is kept. A season of use: older clicks are on answers of models and
    documents that are long gone."""
    feedback_salt_days: float = Field(default=7.0, gt=0)
    """Days after which the salt of principals' hashes is thrown away for a new one. Until then one
    principal's feedback can be told from another's, which a week's training pairs need."""
    feedback_answer_s: float = Field(default=86_400.0, gt=0)
    """Seconds after an answer for which feedback on it is taken; tokens' keys are rotated as
    often."""
    feedback_waiting: int = Field(default=4096, ge=1)
    """Pieces of feedback that wait for the disk at once; more are refused with OVERLOADED. A commit
    takes all that wait, so that this is what comes in during one slow commit."""
    feedback_waiting_bytes: int = Field(default=64 << 20, ge=1)
    """Bytes of such pieces; more are refused with OVERLOADED. A token may have 128 KiB, so that the
    pieces alone would bound half a GiB; one of ten hits has about a KiB."""
    drift_window_s: float = Field(default=86_400.0, gt=0)
    """Seconds of questions that are compared with the reference: a day, so that day and night are
    in each."""
    drift_sample: int = Field(default=1024, ge=200, le=16_384)
    """Questions, and passages, in a sample: 0.8 MB each of 384 dimensions in memory and on disk."""
    drift_interval_s: float = Field(default=3600.0, gt=0)
    """Seconds between two measurements of the drift of every index, of about a second each."""
    keep_index_versions: int = Field(default=2, ge=0)
    """Newest READY versions of an index that are kept beside the one that serves and the one that a
    rollback leads to. Older ones are dropped with their files: another build makes another one. Of
    vector spaces only those are kept that they are searched by."""
