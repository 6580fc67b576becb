"""When is the storage of the indexes cleaned, and what is left of a document that is purged?"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final

from shoal.rpc.errors import ServiceError
from shoal.v1.documents_pb2 import PurgeDocumentsResponse
from shoal.writer.cleaning import Cleaned
from shoal.writer.config import WriterSettings
from shoal.writer.indexes import Indexes, OpenIndex

_log = logging.getLogger(__name__)

# Ids that are named in what remains; of more, the number is.
_NAMED: Final = 5


class StorageKeeper:
    """Cleans all indexes from time to time, and any of them when it is asked to."""

    def __init__(
        self, settings: WriterSettings, indexes: Indexes, loaded: Callable[[str], set[int] | None]
    ) -> None:
        """loaded: gives the versions of an index, by its uid, that shard servers hold or load.

        None while nobody knows.
        """
        self._settings, self._indexes, self._loaded = settings, indexes, loaded
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to clean from time to time, and to look for drift."""
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._watch_drift())]

    async def stop(self) -> None:
        """Clean no more. What a thread is at is done by then, or goes on where it was left."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def clean(self, index: OpenIndex, *, thorough: bool) -> Cleaned:
        """Clean one index. Raises StorageFullError, IndexNotFoundError.

        thorough: write files again however little has been removed from them.
        """
        uid = index.entry.uid
        # First what makes room at once.
        loaded = self._loaded(uid)
        dropped = [] if loaded is None else await self._indexes.retire_versions(uid, loaded)
        cleaned = await index.committer.clean(thorough=thorough)
        cleaned.versions = dropped
        disabled = index.entry.feedback_disabled
        await index.feedback.clean(disabled=disabled)
        if disabled:
            await index.drift.thread.run(index.drift.clear)
            index.drift.alert = ""
        cleaned.bytes += await self._indexes.drop_outdated(index, held_out=False)
        return cleaned

    async def purge(self, index: OpenIndex, document_ids: Sequence[str]) -> PurgeDocumentsResponse:
        """Take deleted documents out of all files of an index. Raises StorageFullError."""
        # First: feedback that comes meanwhile on an answer of before is out of date.
        await index.feedback.purge(document_ids)
        await index.drift.thread.run(index.drift.purge, document_ids)
        purged = await index.committer.cleaner.purge(document_ids)
        # Again: a reference that was taken meanwhile may hold them.
        await index.drift.thread.run(index.drift.purge, document_ids)
        dropped_bytes = await self._indexes.drop_outdated(index, held_out=True)
        return PurgeDocumentsResponse(
            table_version=index.table.version,
            rows_removed=purged.rows,
            bytes_removed=purged.bytes + dropped_bytes,
            remains=[
                *_written_again(purged.rewritten),
                *_being_copied(pinned=purged.pinned),
                *_being_built(index),
            ],
            unknown_ids=purged.unknown,
        )

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._settings.trim_interval_s)
            for entry in self._indexes.entries():
                try:
                    await self.clean(self._indexes.get(entry.name), thorough=False)
                except ServiceError as error:
                    _log.warning("cannot clean index %s: %s", entry.name, error)
                except Exception:  # noqa: BLE001  # the other indexes are cleaned all the same
                    _log.exception("cannot clean index %s", entry.name)

    async def _watch_drift(self) -> None:
        while True:
            await asyncio.sleep(self._settings.drift_interval_s)
            for entry in self._indexes.entries():
                try:
                    index = self._indexes.get(entry.name)
                    drift = index.drift
                    drift.alert = await drift.thread.run(drift.check, index.in_force)
                except ServiceError as error:
                    _log.warning("cannot measure the drift of %s: %s", entry.name, error)
                except Exception:  # noqa: BLE001  # the other indexes are watched all the same
                    _log.exception("cannot measure the drift of %s", entry.name)


def _written_again(ids: Sequence[str]) -> list[str]:
    if not ids:
        return []
    named = ", ".join(ids[:_NAMED]) + (f" and {len(ids) - _NAMED} more" if ids[_NAMED:] else "")
    return [f"{named}: written again since the purge began, and kept as they are now"]


def _being_copied(*, pinned: bool) -> list[str]:
    if not pinned:
        return []
    return [
        "a snapshot that was being taken when they were purged, and the version of the table that "
        "it copies: the version goes as the snapshot ends, and the snapshot is yours to remove"
    ]


def _being_built(index: OpenIndex) -> list[str]:
    return [
        f"version {each.number} of the index, which is being built, may hold their ids and codes: "
        "its segments are removed by the first cleaning after it is ready"
        for each in index.entry.versions
        if each.state == "building"
    ]
