"""What is kept of the feedback on an index, and how does it leave again?

One Lance table beside that of the passages, written by the writer alone, one row a piece of
feedback. Of several pieces on one answer only the last is read and counted, and cleaning removes
the others. Beside it stands a file that says since when answers are out of date, because documents
were purged: it is written before their rows go. All methods block; one change at a time.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance.fragment import write_fragments
from numpy.typing import NDArray
from shoal.table import durability, maintenance, removal, schema
from shoal.table.errors import storage_errors

FOLDER: Final = "feedback"
TABLE: Final = "feedback.lance"
STATE: Final = "feedback.json"

SEQUENCE: Final = schema.SEQUENCE
ANSWER_ID: Final = "answer_id"
ANSWERED_AT: Final = "answered_at"
RECORDED_AT: Final = "recorded_at"
QUERY: Final = "query"
INDEX_VERSION: Final = "index_version"
TABLE_VERSION: Final = "table_version"
ENCODER_MODEL: Final = "encoder_model"
RERANKER_MODEL: Final = "reranker_model"
SHOWN_IDS: Final = "shown_ids"
SHOWN_PASSAGES: Final = "shown_passages"
SHOWN_SCORES: Final = "shown_scores"
# The beginnings of their documents' content hashes.
SHOWN_HASHES: Final = "shown_hashes"
# From 1.
CHOSEN_RANKS: Final = "chosen_ranks"
# Milliseconds; -1 where it is not known.
CHOSEN_DWELLS: Final = "chosen_dwell_ms"
# Null where nobody was named.
PRINCIPAL_HASH: Final = "principal_hash"

LAYOUT: Final = pa.schema(
    [
        pa.field(SEQUENCE, pa.int64(), nullable=False),
        pa.field(ANSWER_ID, pa.binary(16), nullable=False),
        pa.field(ANSWERED_AT, schema.TIMESTAMP, nullable=False),
        pa.field(RECORDED_AT, schema.TIMESTAMP, nullable=False),
        pa.field(QUERY, pa.large_string(), nullable=False),
        pa.field(INDEX_VERSION, pa.int64(), nullable=False),
        pa.field(TABLE_VERSION, pa.int64(), nullable=False),
        pa.field(ENCODER_MODEL, pa.string(), nullable=False),
        pa.field(RERANKER_MODEL, pa.string(), nullable=False),
        pa.field(SHOWN_IDS, pa.list_(pa.string()), nullable=False),
        pa.field(SHOWN_PASSAGES, pa.list_(pa.int32()), nullable=False),
        pa.field(SHOWN_SCORES, pa.list_(pa.float32()), nullable=False),
        pa.field(SHOWN_HASHES, pa.list_(pa.binary()), nullable=False),
        pa.field(CHOSEN_RANKS, pa.list_(pa.int32()), nullable=False),
        pa.field(CHOSEN_DWELLS, pa.list_(pa.int64()), nullable=False),
        pa.field(PRINCIPAL_HASH, pa.binary(16)),
    ],
    metadata={b"shoal.feedback_version": b"1"},
)

# Rows that are read at a time: each has up to a hundred hits.
BATCH_ROWS: Final = 256
# Rows whose ids are looked at at a time: 4,096 answers of ten hits are about 1 MiB.
SCAN_ROWS: Final = 4096


class FeedbackTable:
    """The feedback on one index. Made on disk by the first append."""

    def __init__(self, index_folder: Path) -> None:
        """Open what there is. index_folder: of the index's storage. Raises TableDamagedError."""
        self._folder = index_folder / FOLDER
        self._root = self._folder / TABLE
        self._changing = threading.Lock()
        self._dataset: Any = None
        self.purged_before_us = _read_state(self._folder / STATE)
        """Answers that were made before may speak of purged documents. Microseconds since 1970."""
        self._next_sequence = 0
        if self._root.is_dir():
            self._open()

    @property
    def uri(self) -> str:
        """Where it is."""
        return str(self._root)

    @property
    def row_count(self) -> int:
        """Pieces of feedback that are kept."""
        dataset = self._dataset
        return 0 if dataset is None else int(dataset.count_rows())

    def append(self, rows: pa.Table) -> int:
        """Append rows of `LAYOUT`, their sequences to be filled in; durable on return.

        Those whose answers are out of date are left out; returns how many were not. Raises
        StorageFullError.
        """
        with self._changing, storage_errors(self.uri):
            floor = pa.scalar(self.purged_before_us, schema.TIMESTAMP)
            rows = rows.filter(pc.greater_equal(rows[ANSWERED_AT], floor))
            if not rows.num_rows:
                return 0
            if self._dataset is None:
                self._create()
            first = self._next_sequence
            self._next_sequence += rows.num_rows
            numbers = pa.array(np.arange(first, self._next_sequence, dtype=np.int64))
            rows = rows.set_column(0, LAYOUT.field(SEQUENCE), numbers).cast(LAYOUT)
            transaction = write_fragments(
                rows, self._dataset, mode="append", return_transaction=True
            )
            fragments = transaction.operation.fragments
            durability.sync_data(
                self._root, [file.path for each in fragments for file in each.files]
            )
            self._commit_append(transaction)
            return int(rows.num_rows)

    def read(self, since_us: int) -> Iterator[pa.RecordBatch]:
        """Read the last feedback on each answer, of what was recorded at a time or later.

        In the order of the answers' times, then of recording. since_us: microseconds since 1970. In
        memory are 50 bytes for each piece, and one batch.
        """
        dataset = self._dataset
        if dataset is None:
            return
        since = pa.scalar(since_us, schema.TIMESTAMP)
        with storage_errors(self.uri):
            latest = _latest(
                dataset.to_table(
                    columns=[SEQUENCE, ANSWER_ID, ANSWERED_AT],
                    filter=pc.field(RECORDED_AT) >= since,
                    with_row_id=True,
                )
            )
            order = [(ANSWERED_AT, "ascending"), (SEQUENCE, "ascending")]
            row_ids = latest.sort_by(order)[schema.ROW_ID].to_pylist()
            for start in range(0, len(row_ids), BATCH_ROWS):
                wanted = row_ids[start : start + BATCH_ROWS]
                # `take` goes by position; this one goes by id.
                rows = dataset._take_rows(wanted, columns=LAYOUT.names)  # noqa: SLF001
                yield from rows.combine_chunks().to_batches()

    def answers(self, since_us: int) -> tuple[int, int]:
        """How many answers something was chosen in, and how many feedback came on, since a time.

        since_us: microseconds since 1970. Of several pieces on one answer the last counts.
        """
        dataset = self._dataset
        if dataset is None:
            return 0, 0
        since = pa.scalar(since_us, schema.TIMESTAMP)
        with storage_errors(self.uri):
            rows = _latest(
                dataset.to_table(
                    columns=[SEQUENCE, ANSWER_ID, CHOSEN_RANKS],
                    filter=pc.field(RECORDED_AT) >= since,
                )
            )
        chosen = pc.greater(pc.list_value_length(rows[CHOSEN_RANKS]), 0)
        return int(pc.sum(chosen).as_py() or 0), int(rows.num_rows)

    def remove_older(self, than_us: int) -> int:
        """Remove what was recorded before a time, and what later feedback on its answer replaces.

        Their bytes too; returns how much it was.
        """
        with self._changing, storage_errors(self.uri):
            if self._dataset is None:
                return 0
            rows = self._dataset.to_table(columns=[SEQUENCE, ANSWER_ID, RECORDED_AT])
            kept = _latest(rows)
            kept = kept.filter(pc.field(RECORDED_AT) >= pa.scalar(than_us, schema.TIMESTAMP))
            gone = np.setdiff1d(rows[SEQUENCE].to_numpy(), kept[SEQUENCE].to_numpy())
            return self._remove(gone)

    def purge(self, document_ids: Collection[str], before_us: int) -> int:
        """Remove all feedback on answers with some documents; returns how much it was.

        before_us: answers that were made before are out of date from now on.
        """
        with self._changing, storage_errors(self.uri):
            if before_us > self.purged_before_us:
                self._folder.mkdir(exist_ok=True)
                state = json.dumps({"purged_before_us": before_us}).encode()
                durability.write_atomically(self._folder / STATE, state)
                self.purged_before_us = before_us
            if self._dataset is None:
                return 0
            wanted = pa.array(list(document_ids), pa.string())
            scanner = self._dataset.scanner(
                columns=[SEQUENCE, SHOWN_IDS], batch_size=SCAN_ROWS, batch_readahead=1
            )
            found = [np.empty(0, np.int64)]
            for batch in scanner.to_batches():
                shown = batch.column(SHOWN_IDS)
                hit = pc.is_in(pc.list_flatten(shown), value_set=wanted)
                rows = pc.unique(pc.list_parent_indices(shown).filter(hit))
                found.append(batch.column(SEQUENCE).take(rows).to_numpy())
            return self._remove(np.concatenate(found))

    def clear(self) -> int:
        """Remove all of it; returns how much it was."""
        with self._changing, storage_errors(self.uri):
            count = self.row_count
            self._dataset, self._next_sequence = None, 0
            shutil.rmtree(self._root, ignore_errors=True)
            return count

    def compact(self) -> bool:
        """Merge small files if there are many; true if it did."""
        with self._changing, storage_errors(self.uri):
            if self._dataset is None:
                return False
            merged = maintenance.compact(self.uri, self._dataset)
            if merged is None:
                return False
            self._dataset = merged
            removal.drop_history(merged)
            return True

    def _remove(self, sequences: NDArray[np.int64]) -> int:
        if len(sequences) == 0:
            return 0
        removed = sum(removal.remove(self._root, self._dataset, np.sort(sequences), self._commit))
        for fragment in removal.due_fragments(self._dataset, 0.0):
            self._dataset = removal.rewrite(self._root, self._dataset, fragment)
        removal.drop_history(self._dataset)
        return removed

    def _open(self) -> None:
        durability.remove_torn_manifests(self._root)
        if not any((self._root / "_versions").glob("*.manifest")):
            # Its making was cut short: nothing in it was acknowledged.
            shutil.rmtree(self._root)
            return
        with storage_errors(self.uri):
            self._dataset = lance.dataset(self.uri)
            numbers = self._dataset.to_table(columns=[SEQUENCE])[SEQUENCE]
            self._next_sequence = (pc.max(numbers).as_py() if len(numbers) else -1) + 1

    def _create(self) -> None:
        self._folder.mkdir(exist_ok=True)
        durability.sync_path(self._folder.parent)
        self._dataset = lance.write_dataset(
            LAYOUT.empty_table(),
            self.uri,
            schema=LAYOUT,
            mode="create",
            data_storage_version="stable",
        )
        durability.sync_new_table(self._root, self._dataset.version)

    def _commit(self, operation: Any) -> None:
        base = self._dataset
        dataset = lance.LanceDataset.commit(base, operation, read_version=base.version)
        durability.sync_manifest(self._root, dataset.version)
        self._dataset = dataset

    def _commit_append(self, transaction: Any) -> None:
        dataset = lance.LanceDataset.commit(self._dataset, transaction)
        durability.sync_manifest(self._root, dataset.version)
        self._dataset = dataset


def _latest(rows: pa.Table) -> pa.Table:
    """Of the rows of each answer the one that was recorded last, in no certain order."""
    last = rows.group_by(ANSWER_ID).aggregate([(SEQUENCE, "max")])
    return rows.filter(pc.is_in(rows[SEQUENCE], value_set=last[f"{SEQUENCE}_max"].combine_chunks()))


def _read_state(path: Path) -> int:
    try:
        return int(json.loads(path.read_bytes())["purged_before_us"])
    except FileNotFoundError:
        return 0
