"""How is the writer told to clean an index, or to purge documents?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from shoal.internal.v1.writer_pb2 import (
    CleanTableRequest,
    CleanTableResponse,
    PurgeRowsRequest,
    PurgeRowsResponse,
)
from shoal.rpc.errors import InvalidFieldError
from shoal.v1.indexes_pb2 import CleanIndexResponse
from shoal.writer.indexes import Indexes
from shoal.writer.storage import StorageKeeper
from shoal.writer.validation import MAX_REMOVED_IDS, check_document_id, check_index_name

_Context = grpc.aio.ServicerContext[Any, Any]


class StorageHandlers:
    """The part of WriterService that is about storage."""

    _indexes: Indexes
    _keeper: StorageKeeper

    def _refuse_while_draining(self) -> None:
        raise NotImplementedError

    async def CleanTable(self, request: CleanTableRequest, context: _Context) -> CleanTableResponse:
        """Clean an index now."""
        del context
        self._refuse_while_draining()
        check_index_name(request.name, "name")
        index = self._indexes.get(request.name)
        cleaned = await self._keeper.clean(index, thorough=True)
        return CleanTableResponse(
            cleaned=CleanIndexResponse(
                rows_removed=cleaned.rows,
                tombstones_removed=cleaned.tombstones,
                documents_expired=cleaned.expired,
                bytes_removed=cleaned.bytes,
                versions_dropped=cleaned.versions,
                table_version=index.table.version,
            )
        )

    async def PurgeRows(self, request: PurgeRowsRequest, context: _Context) -> PurgeRowsResponse:
        """Take deleted documents out of all files."""
        del context
        self._refuse_while_draining()
        check_index_name(request.index, "index")
        check_ids(request.document_ids)
        index = self._indexes.get(request.index)
        return PurgeRowsResponse(purged=await self._keeper.purge(index, request.document_ids))


def check_ids(document_ids: Sequence[str]) -> None:
    """Check ids of documents to be removed. Raises InvalidFieldError."""
    if not 1 <= len(document_ids) <= MAX_REMOVED_IDS:
        raise InvalidFieldError(
            "document_ids", f"holds {len(document_ids)}; must be 1 to {MAX_REMOVED_IDS}"
        )
    for position, document_id in enumerate(document_ids):
        check_document_id(document_id, f"document_ids[{position}]")
