"""How do the versions of an index travel?"""

from __future__ import annotations

from typing import Final

from shoal.rpc.errors import InvalidFieldError
from shoal.table.versions import RolloutRecord, State, VersionRecord
from shoal.v1.indexes_pb2 import IndexVersion, IndexVersionState, Rollout
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
        encoder_bundle=record.encoder_bundle,
        dimension=record.dimension,
        space=record.space,
    )
    message.create_time.FromNanoseconds(record.create_time_ns)
    if record.finish_time_ns:
        message.finish_time.FromNanoseconds(record.finish_time_ns)
    return message


def rollout_message(record: RolloutRecord) -> Rollout:
    """A rollout as callers see it."""
    return Rollout(
        candidate_version=record.candidate,
        shadow_share=record.shadow_share,
        canary_share=record.canary_share,
    )


def rollout_record(message: Rollout) -> RolloutRecord:
    """A rollout as the catalogue takes it. Raises InvalidFieldError."""
    for name in ("shadow_share", "canary_share"):
        share = getattr(message, name)
        if not 0.0 <= share <= 1.0:
            raise InvalidFieldError(f"rollout.{name}", f"is {share}; must be 0 to 1")
    return RolloutRecord(message.candidate_version, message.shadow_share, message.canary_share)


def ended_version(message: IndexVersion, codebook_uri: str, *, now_ns: int) -> VersionRecord | None:
    """How a build ended, as the catalogue takes it; None for a state that is no end.

    The model is the one that it began with.
    """
    if message.state == IndexVersionState.INDEX_VERSION_STATE_FAILED:
        return VersionRecord(
            message.number,
            "failed",
            0,
            finish_time_ns=now_ns,
            recall=message.recall,
            recall_target=message.recall_target,
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
        kind=message.kind,
    )
