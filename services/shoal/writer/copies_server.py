"""How is the writer asked to take and to restore snapshots?"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from shoal.internal.v1.writer_pb2 import (
    FindSnapshotsRequest,
    FindSnapshotsResponse,
    RestoreTableRequest,
    RestoreTableResponse,
    SnapshotTableRequest,
    SnapshotTableResponse,
)
from shoal.table.snapshot_errors import CopyEndedError
from shoal.table.snapshots import Taken
from shoal.v1.indexes_pb2 import Snapshot
from shoal.writer.copies import Copies, stopping
from shoal.writer.indexes import describe_index
from shoal.writer.validation import check_index_name

_Context = grpc.aio.ServicerContext[Any, Any]


class CopyHandlers:
    """The part of WriterService that is about snapshots."""

    _copies: Copies

    def _refuse_while_draining(self) -> None:
        raise NotImplementedError

    async def SnapshotTable(
        self, request: SnapshotTableRequest, context: _Context
    ) -> AsyncIterator[SnapshotTableResponse]:
        """Copy an index to a place."""
        del context
        self._refuse_while_draining()
        check_index_name(request.name, "name")
        running = self._copies.snapshot(request.name, request.uri)
        try:
            async for progress in running.progress():
                yield SnapshotTableResponse(progress=progress)
            yield SnapshotTableResponse(snapshot=snapshot_message(await running.result()))
        except CopyEndedError as error:
            raise stopping() from error
        finally:
            running.leave()

    async def RestoreTable(
        self, request: RestoreTableRequest, context: _Context
    ) -> AsyncIterator[RestoreTableResponse]:
        """Make an index from a snapshot."""
        del context
        self._refuse_while_draining()
        if request.name:
            check_index_name(request.name, "name")
        running = self._copies.restore(request.uri, request.name)
        try:
            async for progress in running.progress():
                yield RestoreTableResponse(progress=progress)
            yield RestoreTableResponse(entry=describe_index(await running.result()))
        except CopyEndedError as error:
            raise stopping() from error
        finally:
            running.leave()

    async def FindSnapshots(
        self, request: FindSnapshotsRequest, context: _Context
    ) -> FindSnapshotsResponse:
        """List some of the snapshots at a place."""
        del context
        self._refuse_while_draining()
        found, after = await self._copies.find(request.uri, request.count, request.after)
        return FindSnapshotsResponse(snapshots=map(snapshot_message, found), after=after)


def snapshot_message(taken: Taken) -> Snapshot:
    """A snapshot as callers see it."""
    manifest = taken.manifest
    message = Snapshot(
        uri=taken.uri,
        name=manifest.entry["name"],
        uid=manifest.entry["uid"],
        table_version=manifest.table_version,
        index_version=manifest.entry["index_version"],
        document_count=manifest.document_count,
        passage_count=manifest.passage_count,
        size_bytes=manifest.size_bytes,
        encoder_model=manifest.entry["encoder_model"],
        dimension=manifest.entry["dimension"],
    )
    message.create_time.FromNanoseconds(manifest.create_time_ns)
    return message
