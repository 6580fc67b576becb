"""How do the versions of an index travel?"""

from __future__ import annotations

from typing import Final

from shoal.table.versions import State, VersionRecord
from shoal.v1.indexes_pb2 import IndexVersion, IndexVersionState
from shoal.v1.search_pb2 import SearchKind

_STATES: Final[dict[State, IndexVersionState.ValueType]] = {
    "building": IndexVersionState.INDEX_VERSION_STATE_BUILDING,
    "ready": IndexVersionState.INDEX_VERSION_STATE_READY,
    "failed": IndexVersionState.INDEX_VERSION_STATE_FAILED,
}


def version_message(record: VersionRecord) -> IndexVersion:
    """A version as callers see it."""
    message = IndexVersion(
        number=record.number,
        state=_STATES[record.state],
        table_version=record.table_version,
        document_count=record.document_count,
        passage_count=record.passage_count,
        shard_count=record.shard_count,
        size_bytes=record.size_bytes,
        recall=record.recall,
        recall_target=record.recall_target,
        encoder_model=record.encoder_model,
        message=record.message,
        promote=record.promote,
        kind=SearchKind.ValueType(record.kind),
    )
    message.create_time.FromNanoseconds(record.create_time_ns)
    if record.finish_time_ns:
        message.finish_time.FromNanoseconds(record.finish_time_ns)
    return message


def ended_version(
    message: IndexVersion, codebook_uri: str, *, encoder_model: str, now_ns: int
) -> VersionRecord | None:
    """How a build ended, as the catalogue takes it; None for a state that is no end."""
    if message.state == IndexVersionState.INDEX_VERSION_STATE_FAILED:
        return VersionRecord(
            message.number,
            "failed",
            0,
            finish_time_ns=now_ns,
            recall=message.recall,
            recall_target=message.recall_target,
            encoder_model=encoder_model,
            message=message.message,
            kind=message.kind,
        )
    if message.state != IndexVersionState.INDEX_VERSION_STATE_READY:
        return None
    return VersionRecord(
        message.number,
        "ready",
        0,
        finish_time_ns=now_ns,
        codebook_uri=codebook_uri,
        table_version=message.table_version,
        document_count=message.document_count,
        passage_count=message.passage_count,
        shard_count=message.shard_count,
        size_bytes=message.size_bytes,
        recall=message.recall,
        recall_target=message.recall_target,
        encoder_model=encoder_model,
        kind=message.kind,
    )
