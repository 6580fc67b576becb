"""The client of Shoal: plain Python in, the messages of `shoal.v1` out, errors with a type.

    from shoal.client import Client

    with Client("127.0.0.1:7600") as client:
        for hit in client.search("xquad", "Who won Super Bowl 50?", top_k=3).hits:
            print(hit.score, hit.document_id, hit.text)

`AsyncClient` is the same with `async with` and `await`. Every failure is a `ShoalError`. Whatever
else is in this package is private, and may change in any release.
"""

from shoal.client._async import AsyncClient
from shoal.client._errors import (
    AbortedError,
    AlreadyExistsError,
    CoverageIncompleteError,
    DataLossError,
    DeadlineExceededError,
    DimensionMismatchError,
    FailedPreconditionError,
    IndexExistsError,
    IndexNotFoundError,
    InternalError,
    InvalidArgumentError,
    InvalidVectorError,
    ModelMismatchError,
    NotFoundError,
    OverloadedError,
    ShoalError,
    StorageFullError,
    TableVersionAheadError,
    UnavailableError,
)
from shoal.client._feedback import feedback_on
from shoal.client._requests import search_request
from shoal.client._sync import Client
from shoal.client._upsert import UpsertSummary
from shoal.v1.documents_pb2 import Document
from shoal.v1.search_pb2 import SearchRequest

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "AsyncClient",
    "Client",
    "CoverageIncompleteError",
    "DataLossError",
    "DeadlineExceededError",
    "DimensionMismatchError",
    "Document",
    "FailedPreconditionError",
    "IndexExistsError",
    "IndexNotFoundError",
    "InternalError",
    "InvalidArgumentError",
    "InvalidVectorError",
    "ModelMismatchError",
    "NotFoundError",
    "OverloadedError",
    "SearchRequest",
    "ShoalError",
    "StorageFullError",
    "TableVersionAheadError",
    "UnavailableError",
    "UpsertSummary",
    "feedback_on",
    "search_request",
]
