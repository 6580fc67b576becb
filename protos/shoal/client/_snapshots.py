"""The part of both clients that is about snapshots."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from shoal.client._errors import ShoalError, error_of
from shoal.v1.indexes_pb2 import (
    CopyProgress,
    Index,
    ListSnapshotsRequest,
    RestoreIndexRequest,
    Snapshot,
    SnapshotIndexRequest,
)

if TYPE_CHECKING:
    from shoal.v1.indexes_pb2_grpc import IndexServiceAsyncStub, IndexServiceStub

OnProgress: TypeAlias = Callable[[CopyProgress], None]


class SnapshotCalls:
    """Of `Client`."""

    _indexes: IndexServiceStub
    _wait_for_ready: bool

    def snapshot_index(
        self,
        name: str,
        uri: str,
        *,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> Snapshot:
        """Copy an index, as it is now, to a folder or an object store; return what was taken.

        uri: an absolute path of the writer's machine, or a URL that fsspec knows; empty there.
        on_progress: called, in this thread, with how far it is. timeout_s: for all of it; None sets
        no limit.
        """
        request = SnapshotIndexRequest(name=name, uri=uri)
        taken: Snapshot = self._copy(
            self._indexes.SnapshotIndex, request, "snapshot", on_progress, timeout_s
        )
        return taken

    def restore_index(
        self,
        uri: str,
        *,
        name: str = "",
        shards: int = 0,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> Index:
        """Make an index from a snapshot; return it, LOADING if it does not answer yet.

        name: empty means that of the index that the snapshot is of. shards: 0 means as the cluster
        has. on_progress, timeout_s: as for `snapshot_index`.
        """
        request = RestoreIndexRequest(uri=uri, name=name, shards=shards)
        index: Index = self._copy(
            self._indexes.RestoreIndex, request, "index", on_progress, timeout_s
        )
        return index

    def list_snapshots(self, uri: str, *, timeout_s: float = 30.0) -> Iterator[Snapshot]:
        """The snapshots at a place, or in the folders in it. timeout_s: for each page."""
        token = ""
        while True:
            request = ListSnapshotsRequest(uri=uri, page_token=token)
            try:
                page = self._indexes.ListSnapshots(
                    request, timeout=timeout_s, wait_for_ready=self._wait_for_ready
                )
            except grpc.RpcError as error:
                raise error_of(error) from error
            yield from page.snapshots
            token = page.next_page_token
            if not token:
                return

    def _copy(
        self,
        method: Any,
        request: Any,
        result: str,
        on_progress: OnProgress | None,
        timeout_s: float | None,
    ) -> Any:
        call = method(request, timeout=timeout_s, wait_for_ready=self._wait_for_ready)
        try:
            for response in call:
                if response.HasField(result):
                    return getattr(response, result)
                if on_progress is not None:
                    on_progress(response.progress)
        except grpc.RpcError as error:
            raise error_of(error) from error
        finally:
            call.cancel()
        raise ended_early()


class AsyncSnapshotCalls:
    """Of `AsyncClient`."""

    _indexes: IndexServiceAsyncStub
    _wait_for_ready: bool

    async def snapshot_index(
        self,
        name: str,
        uri: str,
        *,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> Snapshot:
        """Copy an index, as it is now, to a folder or an object store; return what was taken.

        uri: an absolute path of the writer's machine, or a URL that fsspec knows; empty there.
        on_progress: called with how far it is. timeout_s: for all of it; None sets no limit.
        """
        request = SnapshotIndexRequest(name=name, uri=uri)
        taken: Snapshot = await self._copy(
            self._indexes.SnapshotIndex, request, "snapshot", on_progress, timeout_s
        )
        return taken

    async def restore_index(
        self,
        uri: str,
        *,
        name: str = "",
        shards: int = 0,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> Index:
        """Make an index from a snapshot; return it, LOADING if it does not answer yet.

        name: empty means that of the index that the snapshot is of. shards: 0 means as the cluster
        has. on_progress, timeout_s: as for `snapshot_index`.
        """
        request = RestoreIndexRequest(uri=uri, name=name, shards=shards)
        index: Index = await self._copy(
            self._indexes.RestoreIndex, request, "index", on_progress, timeout_s
        )
        return index

    async def list_snapshots(self, uri: str, *, timeout_s: float = 30.0) -> AsyncIterator[Snapshot]:
        """The snapshots at a place, or in the folders in it. timeout_s: for each page."""
        token = ""
        while True:
            request = ListSnapshotsRequest(uri=uri, page_token=token)
            try:
                page = await self._indexes.ListSnapshots(
                    request, timeout=timeout_s, wait_for_ready=self._wait_for_ready
                )
            except grpc.aio.AioRpcError as error:
                raise error_of(error) from error
            for snapshot in page.snapshots:
                yield snapshot
            token = page.next_page_token
            if not token:
                return

    async def _copy(
        self,
        method: Any,
        request: Any,
        result: str,
        on_progress: OnProgress | None,
        timeout_s: float | None,
    ) -> Any:
        call = method(request, timeout=timeout_s, wait_for_ready=self._wait_for_ready)
        try:
            async for response in call:
                if response.HasField(result):
                    return getattr(response, result)
                if on_progress is not None:
                    on_progress(response.progress)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        finally:
            call.cancel()
        raise ended_early()


def ended_early() -> ShoalError:
    """What a stream fails with that ends without its result."""
    return ShoalError(
        "UNSPECIFIED", grpc.StatusCode.INTERNAL, "the broker ended the copy without a result"
    )
