"""How does one index move from the layout it has to the layout it should have?

        (created)                 every shard ready somewhere
    nothing ──────────> preparing ─────────────────────────────> serving
                            ^                                       │
                            │   scale, or a new index version       │
                            └───────────────────────────────────────┘
                              serving goes on until all of the new
                              layout is ready; then it is replaced

A version that was replaced stands by for a while: it is kept loaded, and ready to serve again. It
and a candidate follow another number of shards after what serves, and stay as they are until their
new divisions are ready.

Pure functions; the controller calls them for each index in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from shoal.cluster.config import Scale
from shoal.cluster.placement import place
from shoal.internal.v1.topology_pb2 import (
    IndexPlacement,
    Layout,
    PublishTopologyResponse,
    SpacePlacement,
)
from shoal.internal.v1.writer_pb2 import CatalogEntry
from shoal.v1.indexes_pb2 import IndexVersion, IndexVersionState
from shoal.v1.search_pb2 import SearchKind

# A first version is built when an index has stopped growing: a codebook fits the data it has seen.
SETTLED_S: Final = 5.0
SETTLED_GROWTH: Final = 1.02
# For one that never stops it is built at this many times the threshold.
IMPATIENT_FACTOR: Final = 10
# A build that failed is tried again after so long.
RETRY_S: Final = 60.0


@dataclass(frozen=True)
class Growth:
    """How an index has grown of late."""

    row_count: int
    since_s: float
    """Since when it has had about that many rows."""

    def seen(self, row_count: int, now_s: float) -> Growth:
        """Take note of a count; the time starts anew if it has grown by more than a little."""
        if row_count > self.row_count * SETTLED_GROWTH or row_count < self.row_count:
            return Growth(row_count, now_s)
        return self


@dataclass(frozen=True)
class Building:
    """A build of an index that runs, or failed."""

    failed_s: float | None = None
    """When it failed; None while it runs."""
    error: str = ""


@dataclass(frozen=True)
class Standby:
    """A version that was replaced, and since when it stands by."""

    index_version: int
    since_s: float


def build_due(
    entry: CatalogEntry,
    growth: Growth,
    building: Building | None,
    train_at_passages: int,
    now_s: float,
) -> bool:
    """True if the index should get its first codebook now.

    A version of another model that is searched exactly has none, as version 0.
    """
    failed, exact = IndexVersionState.INDEX_VERSION_STATE_FAILED, SearchKind.SEARCH_KIND_EXACT
    others = [
        each
        for each in entry.versions
        if each.state != failed and each.kind != exact and not each.space
    ]
    # A build of now would put the model of now in force again after the rollout.
    if entry.codebook_uri or others or entry.HasField("rollout"):
        return False
    if entry.row_count < train_at_passages:
        return False
    if building is not None:
        return building.failed_s is not None and now_s - building.failed_s >= RETRY_S
    settled = now_s - growth.since_s >= SETTLED_S
    return settled or entry.row_count >= train_at_passages * IMPATIENT_FACTOR


def interrupted_build(entry: CatalogEntry, building: Building | None) -> int | None:
    """The version of an index that nobody builds any more, although the catalogue says so."""
    if building is not None and building.failed_s is None:
        return None
    for version in entry.versions:
        if version.state == IndexVersionState.INDEX_VERSION_STATE_BUILDING:
            return version.number
    return None


def plan_index(
    entry: CatalogEntry,
    before: IndexPlacement | None,
    scale: Scale,
    answers: Mapping[str, PublishTopologyResponse],
    keeps_standby: Callable[[int], bool] = lambda version: False,
) -> IndexPlacement:
    """Decide an index's layouts.

    answers: the last answers of the instances that are ready, by id. keeps_standby: whether a
    version that was replaced may still stand by.
    """
    index = IndexPlacement(
        name=entry.name,
        uid=entry.uid,
        table_uri=entry.table_uri,
        encoder_model=entry.encoder_model,
        dimension=entry.dimension,
        recall_target=entry.recall_target,
        declared_kind=entry.kind,
        create_time=entry.create_time,
        fields=entry.fields,
        feedback_disabled=entry.feedback_disabled,
    )
    wanted = layout_of(entry, scale, entry.index_version)
    index.spaces.extend(_plan_spaces(entry, before, scale, answers))
    if entry.HasField("rollout") and entry.rollout.candidate_version != entry.index_version:
        index.rollout.CopyFrom(entry.rollout)
        index.candidate.CopyFrom(layout_of(entry, scale, entry.rollout.candidate_version))
    if before is None or not before.HasField("serving"):
        # The first time, an answer from one replica of each shard is better than none.
        field = index.serving if serves(wanted, entry.uid, answers) else index.preparing
        field.CopyFrom(wanted)
        return index
    can_take_over = _is_ready(wanted, entry.uid, answers) and is_encoded(wanted, answers)
    if before.serving == wanted or can_take_over:
        index.serving.CopyFrom(wanted)
    else:
        index.serving.CopyFrom(_meanwhile(before, wanted, answers))
        index.preparing.CopyFrom(wanted)
    if index.HasField("candidate") and before.HasField("candidate"):
        index.candidate.CopyFrom(_beside(index, before.candidate, index.candidate, answers))
    replaced = _replaced(entry, before, index)
    if replaced is not None and keeps_standby(replaced.index_version):
        number, uri = replaced.index_version, replaced.codebook_uri
        standby = layout_of(entry, scale, number, uri)
        index.standby.CopyFrom(_beside(index, replaced, standby, answers))
    return index


def _plan_spaces(
    entry: CatalogEntry,
    before: IndexPlacement | None,
    scale: Scale,
    answers: Mapping[str, PublishTopologyResponse],
) -> list[SpacePlacement]:
    """Decide the layouts of an index's spaces: each is searched by its newest READY version."""
    known = {each.name: each for each in (before.spaces if before is not None else ())}
    versions: dict[str, list[IndexVersion]] = {}
    for each in entry.versions:
        if each.space:
            versions.setdefault(each.space, []).append(each)
    plans = []
    for name, own in sorted(versions.items()):
        newest = own[-1]
        placed = SpacePlacement(
            name=name,
            state=newest.state,
            message=newest.message,
            encoder_model=newest.encoder_model,
            dimension=newest.dimension or entry.dimension,
        )
        ready = [
            each.number for each in own if each.state == IndexVersionState.INDEX_VERSION_STATE_READY
        ]
        if ready:
            wanted = layout_of(entry, scale, ready[-1])
            _place_space(placed, known.get(name), wanted, entry.uid, answers)
        plans.append(placed)
    return plans


def _place_space(
    placed: SpacePlacement,
    before: SpacePlacement | None,
    wanted: Layout,
    uid: str,
    answers: Mapping[str, PublishTopologyResponse],
) -> None:
    """What serves goes on until all of what is wanted is ready, and its queries can be encoded."""
    serving = before.serving if before is not None and before.HasField("serving") else None
    ready = serves(wanted, uid, answers) if serving is None else _is_ready(wanted, uid, answers)
    if wanted == serving or (ready and is_encoded(wanted, answers)):
        placed.serving.CopyFrom(wanted)
        return
    placed.preparing.CopyFrom(wanted)
    if serving is not None:
        placed.serving.CopyFrom(serving)


def _meanwhile(
    before: IndexPlacement, wanted: Layout, answers: Mapping[str, PublishTopologyResponse]
) -> Layout:
    """What serves until what is wanted is ready.

    That is the version that is wanted, if it stands by or is a candidate, and be it divided
    otherwise: so that a rollback takes no longer because the number of shards was changed before.
    """
    if wanted.index_version != before.serving.index_version:
        for name in ("standby", "candidate"):
            held: Layout = getattr(before, name)
            if (
                before.HasField(name)
                and held.index_version == wanted.index_version
                and serves(held, before.uid, answers)
                and is_encoded(held, answers)
            ):
                return held
    return before.serving


def _beside(
    index: IndexPlacement,
    before: Layout,
    wanted: Layout,
    answers: Mapping[str, PublishTopologyResponse],
) -> Layout:
    """What is held of a version beside what serves: as it was, until it is divided as wanted."""
    if before.index_version != wanted.index_version or before == wanted:
        return wanted
    if index.HasField("preparing"):
        return before  # What serves is divided first.
    if _is_ready(wanted, index.uid, answers):
        return wanted
    index.dividing.append(wanted)
    return before


def _replaced(entry: CatalogEntry, before: IndexPlacement, now: IndexPlacement) -> Layout | None:
    """The layout to which a rollback would lead, or leads, as long as it is loaded anyhow."""
    replaced = before.serving
    if replaced.index_version == now.serving.index_version:
        if not before.HasField("standby"):
            return None
        replaced = before.standby
    # One that is to serve again, and does not answer at the moment, may do so in the next one.
    returns = now.HasField("preparing") and now.preparing.index_version == replaced.index_version
    left = entry.HasField("previous_version") and entry.previous_version == replaced.index_version
    return replaced if returns or left else None


def layout_of(entry: CatalogEntry, scale: Scale, number: int, codebook_uri: str = "") -> Layout:
    """The layout of a version of an index.

    codebook_uri: known otherwise, if the catalogue says nothing of it.
    """
    if number == entry.index_version:
        codebook_uri = entry.codebook_uri
    further = [each for each in entry.versions if each.number == number and each.encoder_bundle]
    return place(
        scale,
        index_version=number,
        codebook_uri=entry.codebook_uris.get(number, codebook_uri),
        encoder_model=further[0].encoder_model if further else "",
        dimension=further[0].dimension if further else 0,
    )


def is_encoded(layout: Layout, answers: Mapping[str, PublishTopologyResponse]) -> bool:
    """True if an encoder answers that can encode the queries of a layout of another model."""
    model = layout.encoder_model
    return not model or any(answer.model == model for answer in answers.values())


def further_bundles(catalogue: Iterable[CatalogEntry]) -> dict[str, str]:
    """The bundle of each model that a version has, beside those that indexes were made with."""
    failed = IndexVersionState.INDEX_VERSION_STATE_FAILED
    return {
        version.encoder_model: version.encoder_bundle
        for entry in catalogue
        for version in entry.versions
        if version.encoder_bundle and version.state != failed
    }


def _is_ready(layout: Layout, uid: str, answers: Mapping[str, PublishTopologyResponse]) -> bool:
    """True if every copy of every shard can be searched."""
    return all(
        set(placement.shards) <= _ready_shards(layout, uid, answers.get(placement.shard_server))
        for placement in layout.placements
    )


def serves(layout: Layout, uid: str, answers: Mapping[str, PublishTopologyResponse]) -> bool:
    """True if some copy of every shard can be searched."""
    ready: set[int] = set()
    for placement in layout.placements:
        ready |= _ready_shards(layout, uid, answers.get(placement.shard_server))
    return ready >= set(range(layout.shard_count))


def _ready_shards(layout: Layout, uid: str, answer: PublishTopologyResponse | None) -> set[int]:
    states: Iterable[int] = (
        state.shard
        for state in (answer.shards if answer is not None else ())
        if state.ready
        and state.layout.index_uid == uid
        and state.layout.index_version == layout.index_version
        and state.layout.shard_count == layout.shard_count
    )
    return set(states)
