"""How are whole documents read from the shards that own them?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from shoal.broker.routes import IndexRoute, ShardGroup
from shoal.broker.targets import Targets
from shoal.internal.v1.shard_pb2 import FetchDocumentsRequest, StoredDocument
from shoal.internal.v1.shard_pb2_grpc import ShardServiceStub
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.table.slots import shard_of, slot_of
from shoal.v1.errors_pb2 import Reason


class DocumentReader:
    """Reads documents by id."""

    def __init__(self, shard_servers: Targets) -> None:
        """shard_servers: those that hold the indexes."""
        self._shard_servers = shard_servers

    async def read(
        self,
        route: IndexRoute,
        document_ids: Iterable[str],
        deadline: Deadline,
        min_table_version: int = 0,
    ) -> dict[str, StoredDocument]:
        """Read documents, by id; those that are not there are left out.

        Raises SHARD_UNAVAILABLE or NOT_READY if a shard cannot be asked: all or nothing.
        """
        by_group: dict[ShardGroup, list[str]] = {}
        for id_ in document_ids:
            by_group.setdefault(_owner(route, id_), []).append(id_)
        found: dict[str, StoredDocument] = {}
        for documents in await asyncio.gather(
            *(
                self._fetch(route, group, ids, min_table_version, deadline)
                for group, ids in by_group.items()
            )
        ):
            found |= documents
        return found

    async def _fetch(
        self,
        route: IndexRoute,
        group: ShardGroup,
        ids: list[str],
        min_table_version: int,
        deadline: Deadline,
    ) -> dict[str, StoredDocument]:
        request = FetchDocumentsRequest(
            layout=route.layout, document_ids=ids, min_table_version=min_table_version
        )
        try:
            _, response = await self._shard_servers.first_to_do(
                lambda target: target.call(
                    lambda: ShardServiceStub(target.channel).FetchDocuments(
                        request, timeout=deadline.budget_s
                    )
                ),
                deadline,
                group.servers,
            )
        except (TimeoutError, ServiceError) as error:
            bare = isinstance(error, ServiceError) and error.reason == Reason.REASON_UNSPECIFIED
            if isinstance(error, ServiceError) and not bare:
                raise
            raise ServiceError(
                Reason.REASON_SHARD_UNAVAILABLE,
                f"{' and '.join(group.servers)} did not answer in time: try again",
            ) from error
        return {document.document_id: document for document in response.documents}


def _owner(route: IndexRoute, document_id: str) -> ShardGroup:
    if not route.groups:
        raise ServiceError(
            Reason.REASON_NOT_READY, f"index {route.name} is being loaded: try again in a moment"
        )
    shard = shard_of(slot_of(document_id), route.shard_count)
    return next(group for group in route.groups if shard in group.shards)
