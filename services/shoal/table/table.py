"""How are passages written, followed and read?

One Lance table per index, written by one process and read by any number. All methods block and may
be called from any thread; a table object stands at one version, and moves on in `refresh` and
`append` only. Errors are those of `shoal.table.errors`.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lance.fragment import write_fragments
from numpy.typing import NDArray
from shoal.filters.fields import Field
from shoal.table import durability, maintenance, removal, schema
from shoal.table.cursor import EMPTY_CURSOR, Cursor
from shoal.table.errors import TableDamagedError, storage_errors
from shoal.table.model_columns import ModelColumns
from shoal.table.scanning import (
    SWIFT,
    Reading,
    completed,
    fragment_ids,
    highest_sequence,
    named,
    read_rows,
    slot_conditions,
    stored_columns,
    vector_column,
    vectors_of,
)
from shoal.table.trimming import Trimmed

__all__ = ["EMPTY_CURSOR", "Cursor", "PassageTable", "vectors_of"]

# Rows of a sample that are read at a time.
SAMPLE_ROWS: Final = 16_384
# What a table keeps in memory of its own files: manifests, pages' positions, row id maps.
METADATA_CACHE_BYTES: Final = 128 << 20
INDEX_CACHE_BYTES: Final = 16 << 20

# Longer than a commit takes.
COMMIT_S: Final = 60.0
# Of the tags that keep versions from being cleaned.
_PIN: Final = "shoal-pin-"

# Lance is untyped.
_Dataset = Any


class PassageTable(ModelColumns):
    """The log of passages of one index, at one version."""

    def __init__(self, uri: str, dataset: _Dataset, model: str = "") -> None:
        """Use `create` or `open`."""
        self.uri = uri
        # Which vectors it has, for whoever reads it: those of the column with this name.
        self._vectors = vector_column(uri, dataset, model)
        self.dimension: int = dataset.schema.field(self._vectors).type.list_size
        # That searches can filter by.
        self.fields: tuple[Field, ...] = schema.fields_of(dataset.schema)
        named = (dataset.schema.metadata or {}).get(schema.ANALYZER_KEY, b"")
        # What made the column of terms; empty if the table has none.
        self.analyzer: str = named.decode()
        self._dataset = dataset
        # Held while `_dataset` is replaced; readers take the object once and go on with that.
        self._swap = threading.Lock()
        # One append at a time: the order of commits is the order of sequences.
        self._appending = threading.Lock()

    @classmethod
    def create(cls, uri: str, dimension: int, fields: Sequence[Field] = ()) -> PassageTable:
        """Make an empty table; durable when it returns. fields: that searches can filter by."""
        layout = schema.table_schema(dimension, fields)
        with storage_errors(uri):
            dataset = lance.write_dataset(
                layout.empty_table(),
                uri,
                schema=layout,
                mode="create",
                enable_stable_row_ids=True,
                data_storage_version="stable",
            )
            if (root := durability.local_path(uri)) is not None:
                durability.sync_new_table(root, dataset.version)
        return cls.open(uri)

    @classmethod
    def open(cls, uri: str, *, repair: bool = False, model: str = "") -> PassageTable:
        """Open a table at its latest version.

        model: whose vectors are to be the table's, `name@fingerprint`, of those that were added;
        empty: those of the model that it was made with. Everything else is the same.

        repair: first remove what a power cut left of an unfinished commit, and give a table of an
        older release the columns that it lacks; for the writer alone.
        Raises TableNotFoundError, or TableDamagedError if it is not a table of this release's.
        """
        with storage_errors(uri):
            root = durability.local_path(uri)
            if repair and root is not None:
                durability.remove_torn_manifests(root)
            session = lance.Session(
                metadata_cache_size_bytes=METADATA_CACHE_BYTES,
                index_cache_size_bytes=INDEX_CACHE_BYTES,
            )
            dataset = lance.dataset(uri, session=session)
            _check_format(uri, dataset)
            if repair:
                dataset = _upgraded(root, dataset)
        return cls(uri, dataset, model)

    @property
    def version(self) -> int:
        """Version that this object stands at."""
        return cast(int, self._dataset.version)

    def _settle(self, private: _Dataset) -> None:
        """Go on with a version that was just committed."""
        root = durability.local_path(self.uri)
        if root is not None:
            durability.sync_manifest(root, private.version)
        self._move_to(private)

    @property
    def row_count(self) -> int:
        """Rows at this version, superseded ones and tombstones included. Cheap."""
        return cast(int, self._dataset.count_rows())

    @property
    def fragment_count(self) -> int:
        """Files that hold the rows of this version."""
        return len(fragment_ids(self._dataset))

    def refresh(self) -> int:
        """Move on to the latest version, and return it. 0.1 ms if there is no newer one."""
        with storage_errors(self.uri):
            latest = self._dataset.latest_version
            if latest > self.version:
                self._move_to(self._dataset.checkout_version(latest))
        return self.version

    @property
    def trimmed(self) -> Trimmed:
        """How far deletions are forgotten at this version. See `shoal.table.trimming`."""
        return removal.trimmed_of(self._dataset)

    def last_sequence(self) -> int:
        """Highest sequence that the table ever had; -1 in an empty one. Reads that column."""
        dataset = self._dataset
        highest = highest_sequence(self.uri, dataset, fragment_ids(dataset))
        return max(highest, removal.trimmed_of(dataset).highest)

    def append(self, rows: pa.Table | pa.RecordBatch) -> int:
        """Append rows, and return the version that holds them. Durable when it returns.

        rows: of `table_schema(dimension, fields, models)`, of the models that the table has or of
        fewer; sequences above all that the table has.
        Raises StorageFullError, and then the rows may or may not be in the table later: appending
        them again, with new sequences, is harmless.
        """
        models = schema.models_of(rows.schema)
        expected = schema.table_schema(self.dimension, self.fields, models)
        assert rows.schema.equals(expected), rows.schema
        if isinstance(rows, pa.RecordBatch):
            rows = pa.Table.from_batches([rows])
        if not self.analyzer:
            rows = rows.drop_columns([schema.TERMS])
        root = durability.local_path(self.uri)
        with self._appending, storage_errors(self.uri):
            # A model may have left since they were made.
            rows = rows.drop_columns([each.column for each in models if each not in self.models])
            transaction = write_fragments(
                rows, self._dataset, mode="append", return_transaction=True
            )
            if root is not None:
                fragments = transaction.operation.fragments
                names = [file.path for fragment in fragments for file in fragment.files]
                durability.sync_data(root, names)
            dataset = lance.LanceDataset.commit(self._dataset, transaction)
            if root is not None:
                durability.sync_manifest(root, dataset.version)
            self._move_to(dataset)
            return cast(int, dataset.version)

    def scan(
        self,
        columns: Sequence[str] = schema.DIRECTORY_COLUMNS,
        *,
        slots: tuple[int, int] | None = None,
        with_vectors: bool = False,
        reading: Reading = SWIFT,
    ) -> Iterator[pa.RecordBatch]:
        """Read all rows, in bounded batches, with their row ids (uint64, column `_rowid`).

        slots: only these, from the first to one before the last. Order: not defined.
        """
        dataset = self._dataset
        return read_rows(
            self.uri,
            dataset,
            fragment_ids(dataset),
            columns=[*columns, schema.VECTOR] if with_vectors else columns,
            conditions=slot_conditions(slots),
            reading=reading,
            vectors=self._vectors,
        )

    def changes(
        self,
        since: Cursor,
        columns: Sequence[str] = (*schema.DIRECTORY_COLUMNS, schema.VECTOR),
        *,
        slots: tuple[int, int] | None = None,
        reading: Reading = SWIFT,
    ) -> tuple[Iterator[pa.RecordBatch], Cursor]:
        """Read the rows that came after `since`, and say where that leads.

        From EMPTY_CURSOR it is a load of the whole table. The batches carry `_rowid`, hold no
        order, and are read as they are iterated over; the new cursor holds once all were. Iterate
        within the time for which `clean` keeps old versions. Deletions that `trimmed` has passed
        are not among them: ask that first.
        """
        dataset = self._dataset
        fragments = fragment_ids(dataset)
        fresh = [each for each in fragments if each not in since.fragments]
        highest = highest_sequence(self.uri, dataset, fresh)
        # What is trimmed is seen too, by its absence.
        sequence = max(since.sequence, highest, removal.trimmed_of(dataset).highest)
        cursor = Cursor(dataset.version, sequence, frozenset(fragments))
        if sequence == since.sequence:
            return iter(()), cursor
        conditions = slot_conditions(slots)
        if since.sequence >= 0:
            conditions.append(f"{schema.SEQUENCE} > {since.sequence}")
        batches = read_rows(
            self.uri,
            dataset,
            fresh,
            columns=columns,
            conditions=conditions,
            reading=reading,
            vectors=self._vectors,
        )
        return batches, cursor

    def take(
        self, row_ids: Sequence[int] | NDArray[np.integer[Any]], columns: Sequence[str]
    ) -> pa.Table:
        """Read rows by id, in the order of the ids, with the column `_rowid` as the last one.

        An id that the table does not have is left out: compare `_rowid` with what was asked for.
        """
        wanted = [int(each) for each in row_ids]
        dataset = self._dataset
        stored = stored_columns(self.uri, dataset, columns, self._vectors)
        with storage_errors(self.uri):
            # `take` goes by position; this one goes by id.
            rows = dataset._take_rows(wanted, columns=[*stored, schema.ROW_ID])  # noqa: SLF001
            return completed(named(rows, self._vectors), columns)

    def sample_vectors(self, count: int, seed: int) -> NDArray[np.float32]:
        """Read up to `count` vectors of rows chosen at random: float32 [n, dimension].

        Fewer only if the table has fewer rows with a vector. Superseded rows are among them.
        """
        dataset = self._dataset
        positions = np.random.default_rng(seed).permutation(dataset.count_rows())
        samples: list[NDArray[np.float32]] = []
        first, missing = 0, count
        # Rows without a vector are made up for by more rows.
        while missing > 0 and first < len(positions):
            chunk = np.sort(positions[first : first + min(SAMPLE_ROWS, missing)])
            first += len(chunk)
            with storage_errors(self.uri):
                column = dataset.take(chunk.tolist(), columns=[self._vectors])[self._vectors]
            samples.append(vectors_of(column.drop_null(), self.dimension))
            missing -= len(samples[-1])
        return np.concatenate(samples) if samples else np.empty((0, self.dimension), np.float32)

    def compact(self) -> bool:
        """Merge small fragments if there are many. True if it did; the rows keep their ids.

        Appends may go on meanwhile. See `shoal.table.maintenance` for what is merged when. Raises
        CommitConflictError if another writer has changed the same files, and changes nothing then.
        """
        self.refresh()
        with storage_errors(self.uri):
            dataset = maintenance.compact(self.uri, self._dataset)
            if dataset is None:
                return False
        self.refresh()
        return True

    def clean(self, older_than_s: float) -> int:
        """Remove versions older than this, and the files that only they need. Returns bytes.

        A follower that reads at an older version than this fails, and must refresh.
        """
        # A commit under way rests on the version before it: that must not go from under it.
        waiting = self._appending if older_than_s < COMMIT_S else contextlib.nullcontext()
        with waiting, storage_errors(self.uri):
            return maintenance.clean(self._dataset, older_than_s)

    def operations_on(
        self, document_ids: Sequence[str]
    ) -> dict[str, Counter[removal.StoredOperation]]:
        """Find the operations on documents, by id, and count the rows of each operation.

        One that the table has nothing of is left out. Reads all ids.
        """
        columns = (schema.DOCUMENT_ID, schema.SEQUENCE, schema.SLOT, schema.TOMBSTONE)
        return removal.operations_in(self.scan(columns), document_ids)

    def forget(self, trimmed: Trimmed) -> None:
        """Record that deletions are forgotten, so that they may be removed; durable on return."""

        def record() -> None:
            with self._appending:
                root = durability.local_path(self.uri)
                self._move_to(removal.record(root, self._dataset, trimmed))

        self._repeat(record)

    def remove(self, sequences: NDArray[np.int64]) -> int:
        """Take the rows of some operations out of the table; returns how many they were.

        Appends may go on meanwhile, compactions not. Tombstones: `forget` them first. Their bytes
        stay in files until `rewrite`, and those files until `clean`.
        """
        removed = 0

        def remove() -> None:
            nonlocal removed
            root = durability.local_path(self.uri)
            # What an attempt before has removed is not found again.
            for count in removal.remove(root, self._dataset, np.sort(sequences), self._commit):
                removed += count

        if len(sequences):
            self._repeat(remove)
        return removed

    def rewrite(self, part: float = removal.REWRITE_PART) -> int:
        """Write the files again of which at least this part is removed; returns how many.

        Appends may go on meanwhile, compactions not.
        """
        rewritten = 0

        def rewrite() -> None:
            nonlocal rewritten
            root = durability.local_path(self.uri)
            for fragments in removal.due_fragments(self._dataset, part):
                self._move_to(removal.rewrite(root, self._dataset, fragments))
                self.refresh()
                rewritten += len(fragments)

        self._repeat(rewrite)
        return rewritten

    def drop_history(self) -> int:
        """Remove all versions but the latest, and what failed commits have left; returns bytes.

        Appends wait. Who reads at an older version fails, and must refresh.
        """
        with self._appending, storage_errors(self.uri):
            return removal.drop_history(self._dataset)

    def _commit(self, operation: Any) -> None:
        with self._appending:
            base = self._dataset
            dataset = lance.LanceDataset.commit(base, operation, read_version=base.version)
            root = durability.local_path(self.uri)
            if root is not None:
                durability.sync_manifest(root, dataset.version)
            self._move_to(dataset)

    def pin(self, name: str) -> PassageTable:
        """Keep the latest version, with all its files, until `unpin`; return the table at it.

        name: not pinned already. Not while `clean` runs, which may not have seen the pin.
        """
        with storage_errors(self.uri):
            self.refresh()
            dataset = self._private()
            dataset.tags.create(f"{_PIN}{name}", dataset.version)
        return PassageTable(self.uri, dataset)

    def unpin(self, name: str) -> None:
        """Let `clean` have a version that was pinned."""
        with storage_errors(self.uri):
            self._private().tags.delete(f"{_PIN}{name}")

    def pins(self) -> list[str]:
        """Names under which versions are pinned."""
        with storage_errors(self.uri):
            tags = self._private().tags.list()
        return sorted(tag.removeprefix(_PIN) for tag in tags if tag.startswith(_PIN))

    def files(self) -> list[str]:
        """All files that this version consists of: paths below the table's folder, with slashes.

        They never change. To copy them, pin the version first.
        """
        with storage_errors(self.uri):
            rows = self._dataset.tracked_files(min_version=self.version).read_all()
        rows = rows.filter(pc.equal(rows["version"], self.version))
        roots = pc.unique(rows["base_uri"]).to_pylist()
        if len(roots) > 1:
            raise TableDamagedError(self.uri, f"its files are in several places: {roots}")
        return sorted(set(rows["path"].to_pylist()))

    def _private(self) -> _Dataset:
        """Another object at this version: whoever reads from one fails while it changes tags."""
        dataset = self._dataset
        return dataset.checkout_version(dataset.version)

    def _move_to(self, dataset: _Dataset) -> None:
        with self._swap:
            if dataset.version > self.version:
                self._dataset = dataset


def _check_format(uri: str, dataset: _Dataset) -> None:
    stored = (dataset.schema.metadata or {}).get(schema.SCHEMA_VERSION_KEY)
    if stored is None:
        raise TableDamagedError(uri, "it is not a table of passages")
    if int(stored) > schema.SCHEMA_VERSION:
        raise TableDamagedError(
            uri, f"its format is {int(stored)}, and this release reads {schema.SCHEMA_VERSION}"
        )


def _upgraded(root: Path | None, dataset: _Dataset) -> _Dataset:
    """Give a table of an older release the columns that came since, all null."""
    layout = schema.table_schema(dataset.schema.field(schema.VECTOR).type.list_size)
    missing = [field for field in layout if field.name not in dataset.schema.names]
    if missing:
        dataset.add_columns(missing)
    stored = dataset.schema.metadata[schema.SCHEMA_VERSION_KEY]
    current = str(schema.SCHEMA_VERSION)
    if stored.decode() != current:
        # Last: until then the table is one that the older release can write too.
        dataset.update_schema_metadata({schema.SCHEMA_VERSION_KEY.decode(): current})
        if root is not None:
            durability.sync_manifest(root, dataset.version)
    return dataset
