"""How do rows leave the files of a table?

    record what is trimmed ─> mark rows as deleted ─> write their files again ─> drop old versions

Each step is a commit of its own and may be the last one before a kill: what is marked stays marked,
and a record without a removal only makes a follower start anew in vain. Appends go on meanwhile,
but for the commits themselves, of a few milliseconds each. The files of a commit are synced before
the commit, as a later append that is acknowledged rests on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, cast

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance.optimize import Compaction
from numpy.typing import NDArray
from shoal.table import durability, schema
from shoal.table.maintenance import COMPACT_BATCH_ROWS
from shoal.table.trimming import Trimmed

# Rows at which a commit is full. One fragment is never parted: it may have a million.
MAX_REMOVED: Final = 16_384
# Deleted rows from which a file is written again, as a part of its rows: what is written again is
# at most nine times what it frees.
REWRITE_PART: Final = 0.1
# Rows of files that are written again by one commit. One file is never parted.
MAX_REWRITTEN: Final = 65_536

_DELETIONS: Final = "_deletions"
# Lance's own: the fragment in the upper half, the place in it in the lower.
_ROW_ADDRESS: Final = "_rowaddr"
_Dataset = Any
_Sequences = NDArray[np.int64]


def trimmed_of(dataset: _Dataset) -> Trimmed:
    """What is forgotten at a version."""
    return Trimmed.from_json(dataset.config().get(schema.TRIMMED_KEY))


def record(root: Path | None, dataset: _Dataset, trimmed: Trimmed) -> _Dataset:
    """Record what will be forgotten; durable on return."""
    private = dataset.checkout_version(dataset.version)
    private.update_config({schema.TRIMMED_KEY: trimmed.to_json()})
    if root is not None:
        durability.sync_manifest(root, private.version)
    return private


def remove(
    root: Path | None, dataset: _Dataset, sequences: _Sequences, commit: Callable[[Any], None]
) -> Iterator[int]:
    """Mark the rows of some operations as deleted, in bounded commits; gives the rows of each.

    sequences: sorted. commit: commits an operation of Lance's on top of what has been appended.
    """
    for fragments in _chunks(dataset, sequences):
        before = _files(root)
        updated, emptied, removed = [], [], 0
        for fragment, offsets in fragments:
            marked = fragment.delete_rows(offsets)
            if marked is None:
                emptied.append(fragment.fragment_id)
            else:
                updated.append(marked)
            removed += len(offsets)
        if root is not None and updated:
            _sync_deletions(root, before)
        commit(lance.LanceOperation.Delete(updated, emptied, "trimmed"))
        yield removed


def _chunks(
    dataset: _Dataset, sequences: _Sequences
) -> Iterator[list[tuple[Any, NDArray[np.int64]]]]:
    """Fragments, and the places of the rows that go from each: about MAX_REMOVED rows together."""
    pending: list[tuple[Any, NDArray[np.int64]]] = []
    count = 0
    for fragment in dataset.get_fragments():
        offsets = _offsets(fragment, sequences)
        if len(offsets) == 0:
            continue
        pending.append((fragment, offsets))
        count += len(offsets)
        if count >= MAX_REMOVED:
            yield pending
            pending, count = [], 0
    if pending:
        yield pending


def _offsets(fragment: Any, sequences: _Sequences) -> NDArray[np.int64]:
    """Places of the rows of some operations in a fragment."""
    found = [np.empty(0, np.int64)]
    scanner = fragment.scanner(columns=[schema.SEQUENCE], with_row_address=True)
    for batch in scanner.to_batches():
        chosen = np.isin(batch.column(schema.SEQUENCE).to_numpy(), sequences)
        addresses = batch.column(_ROW_ADDRESS).to_numpy()[chosen]
        found.append((addresses & np.uint64(0xFFFF_FFFF)).astype(np.int64))
    return np.concatenate(found)


def due_fragments(dataset: _Dataset, part: float) -> list[list[int]]:
    """Fragments of which at least this part is deleted, in groups that one commit may take.

    After thousands of small writes they are many, and a commit each would take longest of all.
    """
    groups: list[list[int]] = []
    room = 0
    for each in dataset.get_fragments():
        if each.num_deletions > 0 and each.num_deletions >= part * each.physical_rows:
            if each.physical_rows > room:
                groups.append([])
                room = MAX_REWRITTEN
            groups[-1].append(each.fragment_id)
            room -= each.physical_rows
    return groups


def rewrite(root: Path | None, dataset: _Dataset, fragments: Sequence[int]) -> _Dataset:
    """Write fragments again without their deleted rows; the others keep their ids.

    Neighbours among them become one, if it has no more rows than the largest of them had.
    """
    known = {each.fragment_id: each.physical_rows for each in dataset.get_fragments()}
    plan = Compaction.plan(
        dataset,
        {
            # Also the most rows of a new file: with fewer, one fragment would become many.
            "target_rows_per_fragment": max(1, *(known[each] for each in fragments)),
            "materialize_deletions_threshold": 0.0,
            "excluded_fragment_ids": [each for each in known if each not in fragments],
            "num_threads": 1,
            "batch_size": COMPACT_BATCH_ROWS,
        },
    )
    results = [task.execute(dataset) for task in plan.tasks]
    if root is not None:
        durability.sync_data(
            root,
            {
                file.path
                for result in results
                for each in result.new_fragments
                for file in each.files
            },
        )
    private = dataset.checkout_version(dataset.version)
    if results:
        Compaction.commit(private, results)
        if root is not None:
            durability.sync_manifest(root, private.version)
    return private


def drop_history(dataset: _Dataset) -> int:
    """Remove every version but the latest, and every file that it does not need; returns bytes.

    Also what commits that failed have left. Nothing may be written meanwhile.
    """
    stats = dataset.cleanup_old_versions(
        older_than=timedelta(0), delete_unverified=True, error_if_tagged_old_versions=False
    )
    return cast(int, stats.bytes_removed)


def _files(root: Path | None) -> frozenset[str]:
    folder = None if root is None else root / _DELETIONS
    if folder is None or not folder.is_dir():
        return frozenset()
    return frozenset(path.name for path in folder.iterdir())


def _sync_deletions(root: Path, before: frozenset[str]) -> None:
    folder = root / _DELETIONS
    for name in _files(root) - before:
        durability.sync_path(folder / name)
    durability.sync_path(folder)
    durability.sync_path(root)


@dataclass(frozen=True)
class StoredOperation:
    """An operation on a document that the table has rows of."""

    sequence: int
    slot: int
    tombstone: bool


def operations_in(
    batches: Iterable[Any], document_ids: Sequence[str]
) -> dict[str, Counter[StoredOperation]]:
    """Find the operations on some documents, by id, and count the rows of each.

    batches: with the columns document_id, sequence, slot and tombstone.
    """
    wanted = pa.array(document_ids, pa.string())
    found: dict[str, Counter[StoredOperation]] = {}
    for batch in batches:
        rows = batch.filter(pc.is_in(batch.column(schema.DOCUMENT_ID), value_set=wanted))
        for row in rows.to_pylist():
            operation = StoredOperation(
                row[schema.SEQUENCE], row[schema.SLOT], row[schema.TOMBSTONE]
            )
            found.setdefault(row[schema.DOCUMENT_ID], Counter())[operation] += 1
    return found
