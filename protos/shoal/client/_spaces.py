"""The part of both clients that is about the vector spaces of an index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.v1.indexes_pb2 import (
    AddSpaceRequest,
    AddSpaceResponse,
    DropSpaceRequest,
    IndexVersion,
)
from shoal.v1.search_pb2 import SearchKind

if TYPE_CHECKING:
    from shoal.v1.indexes_pb2_grpc import IndexServiceAsyncStub, IndexServiceStub


class SpaceCalls:
    """Of `Client`."""

    _indexes: IndexServiceStub

    def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        raise NotImplementedError

    def add_space(
        self,
        name: str,
        space: str,
        encoder_bundle: str,
        *,
        recall_target: float | None = None,
        kind: SearchKind.ValueType = SearchKind.SEARCH_KIND_UNSPECIFIED,
        timeout_s: float = 60.0,
    ) -> IndexVersion:
        """Begin to encode an index by another model too, as a space; return its version.

        encoder_bundle: folder of the model's bundle, which all machines reach. recall_target, kind:
        those of the index, unless they are given. `index_versions` says how far it is.
        """
        request = add_request(name, space, encoder_bundle, recall_target, kind)
        response: AddSpaceResponse = self._call(self._indexes.AddSpace, request, timeout_s)
        return response.version

    def drop_space(self, name: str, space: str, *, timeout_s: float = 30.0) -> None:
        """Drop a vector space with its vectors. Documents and other spaces stay."""
        request = DropSpaceRequest(name=name, space=space)
        self._call(self._indexes.DropSpace, request, timeout_s)


class AsyncSpaceCalls:
    """Of `AsyncClient`."""

    _indexes: IndexServiceAsyncStub

    async def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        raise NotImplementedError

    async def add_space(
        self,
        name: str,
        space: str,
        encoder_bundle: str,
        *,
        recall_target: float | None = None,
        kind: SearchKind.ValueType = SearchKind.SEARCH_KIND_UNSPECIFIED,
        timeout_s: float = 60.0,
    ) -> IndexVersion:
        """Begin to encode an index by another model too: as `Client.add_space`."""
        request = add_request(name, space, encoder_bundle, recall_target, kind)
        response: AddSpaceResponse = await self._call(self._indexes.AddSpace, request, timeout_s)
        return response.version

    async def drop_space(self, name: str, space: str, *, timeout_s: float = 30.0) -> None:
        """Drop a vector space: as `Client.drop_space`."""
        request = DropSpaceRequest(name=name, space=space)
        await self._call(self._indexes.DropSpace, request, timeout_s)


def add_request(
    name: str,
    space: str,
    encoder_bundle: str,
    recall_target: float | None,
    kind: SearchKind.ValueType,
) -> AddSpaceRequest:
    """Which space to add, and what it is to be."""
    return AddSpaceRequest(
        name=name,
        space=space,
        encoder_bundle=encoder_bundle,
        recall_target=recall_target,
        kind=kind,
    )
