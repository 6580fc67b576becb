"""Which indexes does this writer hold open?"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from shoal.drift.texts import Pieces
from shoal.filters.fields import Field, field_messages
from shoal.internal.v1.writer_pb2 import CatalogEntry
from shoal.rpc.errors import ServiceError
from shoal.table import Catalogue, IndexEntry, IndexNotFoundError, PassageTable, versions
from shoal.table.feedback import FeedbackTable
from shoal.table.restoring import Place
from shoal.table.schema import ModelVectors
from shoal.table.spaces import drop_space
from shoal.table.versions import VersionRecord
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import SearchKind
from shoal.writer.commit import Committer
from shoal.writer.config import WriterSettings
from shoal.writer.drift import DriftThread, DriftWatch
from shoal.writer.feedback import FeedbackLog
from shoal.writer.versions import rollout_message, version_message

_P = ParamSpec("_P")
_R = TypeVar("_R")

# Indexes that are committed to at a time.
STORAGE_THREADS: Final = 8
# Compactions at a time: they rewrite much, and none is urgent.
MAINTENANCE_THREADS: Final = 1


@dataclass
class OpenIndex:
    """An index whose table is open."""

    entry: IndexEntry
    table: PassageTable
    committer: Committer
    feedback: FeedbackLog
    drift: DriftWatch

    async def close(self) -> None:
        """Finish what was handed in; on return no thread works on its storage."""
        await self.committer.close()
        await self.feedback.close()
        await self.drift.close()

    @property
    def in_force(self) -> versions.InForce:
        """The vectors of the version in force."""
        return versions.in_force_of(self.entry)

    @property
    def further_models(self) -> dict[str, bool]:
        """Models beside its own that encode what is written; True for those that must."""
        models = versions.further_models(self.entry)
        return {model: version.encoded for model, version in models.items()}


@dataclass(frozen=True)
class Begun:
    """A version that is being built."""

    number: int
    # For its files.
    folder: str
    # For what its model encodes, until the table takes it.
    vectors_folder: str


class Indexes:
    """The catalogue, with the table of each index open. Used on the event loop."""

    def __init__(self, settings: WriterSettings) -> None:
        """Closed until `start`."""
        self._settings = settings
        self._drift = DriftThread()
        # Of the encoder's tokenizer; set before `start`, if there is one.
        self.tokenize: Pieces | None = None
        self._executor = ThreadPoolExecutor(STORAGE_THREADS, thread_name_prefix="storage")
        self._maintenance = ThreadPoolExecutor(
            MAINTENANCE_THREADS, thread_name_prefix="maintenance"
        )
        self._catalogue: Catalogue | None = None
        self._open: dict[str, OpenIndex] = {}
        # Changes of the catalogue, one at a time.
        self._changing = asyncio.Lock()

    async def start(self) -> None:
        """Take the data root and open all tables.

        Raises DataRootInUseError, CatalogueDamagedError, TableDamagedError.
        """
        self._catalogue = await self._in_thread(Catalogue, self._settings.data)
        for entry in self._catalogue.entries():
            await self._open_index(entry)

    async def close(self) -> None:
        """Finish all commits and let go of the data root."""
        await asyncio.gather(*(each.close() for each in self._open.values()))
        self._open.clear()
        self._executor.shutdown()
        self._maintenance.shutdown()
        self._drift.close()
        if self._catalogue is not None:
            self._catalogue.close()

    def get(self, name: str) -> OpenIndex:
        """The index of that name. Raises IndexNotFoundError."""
        index = self._open.get(name)
        if index is None:
            raise IndexNotFoundError(name)
        return index

    def entries(self) -> list[IndexEntry]:
        """All indexes, in no order, from memory."""
        return [index.entry for index in self._open.values()]

    def describe(self) -> list[CatalogEntry]:
        """All indexes, by name, from memory."""
        return [describe_index(self._open[name]) for name in sorted(self._open)]

    async def create(
        self,
        name: str,
        *,
        dimension: int,
        encoder_model: str,
        request_id: str,
        recall_target: float = 0.0,
        kind: int = 0,
        fields: tuple[Field, ...] = (),
        feedback_disabled: bool = False,
    ) -> OpenIndex:
        """Make an index. Raises IndexExistsError, StorageFullError."""
        async with self._changing:
            entry = await self._in_thread(
                self._held.create,
                name,
                dimension=dimension,
                encoder_model=encoder_model,
                request_id=request_id,
                recall_target=recall_target,
                kind=kind,
                make_table=partial(PassageTable.create, fields=fields),
                fields=fields,
                feedback_disabled=feedback_disabled,
            )
            if name not in self._open:
                await self._open_index(entry)
            return self._open[name]

    async def update(
        self,
        name: str,
        *,
        recall_target: float | None,
        kind: int | None,
        feedback_disabled: bool | None = None,
    ) -> OpenIndex:
        """Change what versions are built to be, and whether feedback is taken; None leaves it.

        Raises IndexNotFoundError, StorageFullError.
        """
        async with self._changing:
            uid = self.get(name).entry.uid
            entry = await self._in_thread(
                self._held.update,
                uid,
                recall_target=recall_target,
                kind=kind,
                feedback_disabled=feedback_disabled,
            )
            return self._update(entry)

    async def drop(self, name: str) -> IndexEntry:
        """Drop an index; writes under way fail with INDEX_NOT_FOUND or are done before."""
        async with self._changing:
            index = self.get(name)
            del self._open[name]
            await index.close()
            try:
                return await self._in_thread(self._held.drop, name)
            except ServiceError:
                # It is still in the catalogue: serve it again.
                with contextlib.suppress(ServiceError):
                    await self._open_index(index.entry)
                raise

    async def pin(self, index: OpenIndex, name: str) -> PassageTable:
        """Keep the table's version of now until `unpin`; return the table at it."""
        return await index.committer.cleaner.pin(name)

    async def unpin(self, index: OpenIndex, name: str) -> None:
        """Let a version go that was pinned."""
        await index.committer.cleaner.unpin(name)

    async def reserve(self, name: str) -> Place:
        """Make an empty folder for an index that is restored; `enter` it or `release` the folder.

        Raises IndexExistsError, StorageFullError.
        """
        async with self._changing:
            uid, folder = await self._in_thread(self._held.reserve, name)
        return Place(name, uid, folder, self._held.root / folder)

    async def enter(self, entry: IndexEntry) -> OpenIndex:
        """Enter an index whose folder was reserved. Raises StorageFullError, TableDamagedError."""
        async with self._changing:
            # First, so that an index that cannot be opened is in no catalogue.
            opened = await self._opened(entry)
            await self._in_thread(self._held.enter, entry)
            self._open[entry.name] = opened
            return opened

    async def release(self, place: Place) -> None:
        """Remove a folder that was reserved, unless its index was entered."""
        async with self._changing:
            await self._in_thread(self._held.release, place.name, place.folder)

    async def begin_version(
        self,
        uid: str,
        *,
        promote: bool,
        encoder_model: str = "",
        encoder_bundle: str = "",
        dimension: int = 0,
        space: str = "",
    ) -> tuple[OpenIndex, Begun]:
        """Enter a version that is being built; from now on its model encodes what is written.

        Raises IndexNotFoundError, StorageFullError, and what `versions.begin` does.
        """

        def change(entry: IndexEntry) -> IndexEntry:
            return versions.begin(
                entry,
                now_ns=time.time_ns(),
                promote=promote,
                encoder_model=encoder_model,
                encoder_bundle=encoder_bundle,
                dimension=dimension,
                space=space,
            )

        index = await self._change_versions(uid, change)
        number = index.entry.last_version
        version = versions.find(index.entry, number)
        vectors_folder = ""
        if version.encoder_bundle:
            vectors_folder = self._held.vectors_uri(index.entry, version.encoder_model)
        folder = self._held.version_uri(index.entry, number)
        return index, Begun(number, folder, vectors_folder)

    async def adopt_vectors(self, uid: str, number: int) -> tuple[int, int]:
        """Take what a version's model has encoded into the table.

        Returns how many passages got their vectors, and how many have none yet. From now on no
        passage is written without. Raises IndexNotFoundError, VersionNotFoundError,
        StorageFullError.
        """
        index = await self._change_versions(uid, lambda entry: versions.note_encoded(entry, number))
        # What was on its way may lack them.
        await index.committer.settled()
        model = versions.find(index.entry, number).encoder_model
        folder = Path(self._held.vectors_uri(index.entry, model))
        return await index.committer.cleaner.adopt(model, folder)

    async def change_rollout(self, name: str, rollout: versions.RolloutRecord | None) -> OpenIndex:
        """Begin, change or end a rollout. Raises what `versions.change_rollout` does."""
        uid = self.get(name).entry.uid
        return await self._change_versions(
            uid, lambda entry: versions.change_rollout(entry, rollout)
        )

    async def finish_version(self, uid: str, ended: VersionRecord) -> OpenIndex:
        """Enter how a build ended.

        Raises IndexNotFoundError, VersionNotFoundError, VersionConflictError, StorageFullError.
        """
        if ended.state == "failed":
            async with self._changing:
                index = self._update(await self._in_thread(self._held.fail_version, uid, ended))
                await self._suit_models(index)
                return index
        return await self._change_versions(uid, lambda entry: versions.finish(entry, ended))

    async def promote(self, name: str, number: int, expected: int | None) -> OpenIndex:
        """Put a version in force. Raises what `shoal.table.versions.promote` does."""
        uid = self.get(name).entry.uid
        return await self._change_versions(
            uid, lambda entry: versions.promote(entry, number, expected)
        )

    async def roll_back(self, name: str, left: int) -> OpenIndex:
        """Put the previous version in force. Raises what `versions.roll_back` does."""
        uid = self.get(name).entry.uid
        return await self._change_versions(uid, lambda entry: versions.roll_back(entry, left))

    async def drop_version(self, name: str, number: int) -> OpenIndex:
        """Take a version out, and remove its files. Raises what `versions.drop` does."""
        uid = self.get(name).entry.uid
        return await self._change_versions(uid, lambda entry: versions.drop(entry, number))

    async def drop_space(self, name: str, space: str) -> OpenIndex:
        """Take a vector space out, with its files and vectors. Raises what `drop_space` does."""
        uid = self.get(name).entry.uid
        return await self._change_versions(uid, lambda entry: drop_space(entry, space))

    async def retire_versions(self, uid: str, serving: Set[int]) -> list[int]:
        """Drop versions beyond those that are kept, with their files; returns their numbers.

        serving: versions that answer searches. Raises IndexNotFoundError, StorageFullError.
        """
        gone: list[int] = []

        def change(entry: IndexEntry) -> IndexEntry:
            retired = versions.retire(entry, self._settings.keep_index_versions, serving)
            left = {each.number for each in retired.versions}
            gone.extend(each.number for each in entry.versions if each.number not in left)
            return retired

        await self._change_versions(uid, change)
        return gone

    async def drop_outdated(self, index: OpenIndex, *, held_out: bool) -> int:
        """Remove segments of versions that lack forgotten deletions; returns bytes.

        Raises IndexNotFoundError, StorageFullError.
        """
        async with self._changing:
            return await self._in_thread(
                self._held.drop_outdated,
                index.entry.uid,
                index.table.trimmed,
                held_out=held_out,
            )

    async def _change_versions(self, uid: str, change: versions.Change) -> OpenIndex:
        async with self._changing:
            index = self._update(await self._in_thread(self._held.change_versions, uid, change))
            await self._suit_models(index)
            return index

    async def _suit_models(self, index: OpenIndex) -> None:
        """Have the table hold the vectors of those models that a version has, and no others.

        Those of versions that failed stay, so that another build goes on with what is encoded.
        """
        wanted = {
            each.encoder_model: ModelVectors(
                each.encoder_model, each.dimension or index.table.dimension
            )
            for each in index.entry.versions
            if each.encoder_bundle
        }
        held = {each.model for each in index.table.models}
        for model in held - wanted.keys():
            await self._in_thread(index.table.drop_model, model)
        for model in wanted.keys() - held:
            await self._in_thread(index.table.add_model, wanted[model])
        folders = {self._held.vectors_uri(index.entry, model) for model in wanted}
        root = self._held.vectors_root(index.entry)
        await self._in_thread(_remove_others, root, folders)

    async def check_model(self, index: OpenIndex, model: str) -> None:
        """Make sure that an index is only ever encoded by one model: the first that encodes.

        Raises ServiceError, MODEL_MISMATCH.
        """
        if not index.entry.encoder_model:
            async with self._changing:
                uid = index.entry.uid
                self._update(await self._in_thread(self._held.record_model, uid, model))
        if index.entry.encoder_model != model and not index.entry.retired:
            raise ServiceError(
                Reason.REASON_MODEL_MISMATCH,
                f"index {index.entry.name!r} is encoded by {index.entry.encoder_model}, but the "
                f"encoders serve {model}: give them the bundle of the index, or write to a new "
                "index",
            )

    @property
    def root(self) -> Path:
        """The data root."""
        return self._held.root

    @property
    def _held(self) -> Catalogue:
        assert self._catalogue is not None
        return self._catalogue

    def _update(self, entry: IndexEntry) -> OpenIndex:
        index = self.get(entry.name)
        index.entry = entry
        return index

    async def _open_index(self, entry: IndexEntry) -> None:
        self._open[entry.name] = await self._opened(entry)

    async def _opened(self, entry: IndexEntry) -> OpenIndex:
        uri = self._held.table_uri(entry)
        table = await self._in_thread(PassageTable.open, uri, repair=True)
        await self._in_thread(_unpin_all, table)
        last_sequence = await self._in_thread(table.last_sequence)
        committer = Committer(
            table,
            next_sequence=last_sequence + 1,
            settings=self._settings,
            executor=self._executor,
            maintenance_executor=self._maintenance,
        )
        kept = await self._in_thread(FeedbackTable, self._held.root / entry.folder)
        feedback = FeedbackLog(kept, self._settings, self._executor, self._maintenance)
        drift = await self._in_thread(
            DriftWatch,
            self._held.root / entry.folder,
            table,
            kept,
            self._settings,
            self._drift,
            self.tokenize,
        )
        index = OpenIndex(entry, table, committer, feedback, drift)
        await self._suit_models(index)
        return index

    async def _in_thread(
        self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> _R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, partial(function, *args, **kwargs))


def _unpin_all(table: PassageTable) -> None:
    """Let go of versions that were pinned in an earlier life of the writer."""
    names = table.pins()
    for name in names:
        table.unpin(name)
    if names:
        # What was purged meanwhile is in their files, and nobody knows that any more.
        table.drop_history()


def _remove_others(root: Path, kept: Set[str]) -> None:
    """Remove the folders of models that no version has any more."""
    for path in root.iterdir() if root.is_dir() else ():
        if str(path) not in kept:
            shutil.rmtree(path, ignore_errors=True)


def describe_index(index: OpenIndex) -> CatalogEntry:
    """An index as the catalogue's readers see it."""
    entry = index.entry
    described = CatalogEntry(
        name=entry.name,
        uid=entry.uid,
        table_uri=index.table.uri,
        encoder_model=entry.encoder_model,
        dimension=entry.dimension,
        index_version=entry.index_version,
        codebook_uri=entry.codebook_uri,
        row_count=index.table.row_count,
        table_version=index.table.version,
        request_id=entry.request_id,
        versions=[version_message(each) for each in entry.versions],
        previous_version=entry.previous_version,
        recall_target=entry.recall_target,
        kind=SearchKind.ValueType(entry.kind),
        fields=field_messages(entry.fields),
        feedback_disabled=entry.feedback_disabled,
        drift_alert=index.drift.alert,
        rollout=None if entry.rollout is None else rollout_message(entry.rollout),
        codebook_uris={
            each.number: each.codebook_uri for each in entry.versions if each.codebook_uri
        },
    )
    described.create_time.FromNanoseconds(entry.create_time_ns)
    return described
