"""Which versions does an index have, and what may follow what?

                     verified             promote
    begin ─> building ──────────> ready <──────────> in force (and the one before it: previous)
                 │                  │
                 └─ failed ─────────┴── drop ──> gone, its files too

Pure functions from an entry of the catalogue to the next one. Numbers rise and are never given
twice, so that what an orphan of an old build still writes lies in a folder that nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from shoal.table import spaces
from shoal.table.errors import (
    BuildInProgressError,
    NoPreviousVersionError,
    VersionConflictError,
    VersionNotFoundError,
    VersionNotReadyError,
    VersionOfSpaceError,
    VersionServesError,
)

if TYPE_CHECKING:
    from shoal.table.catalogue import IndexEntry

State = Literal["building", "ready", "failed"]

# Version 0 is exact search by the model that the index was made with: there until that model is
# dropped with it, and never listed.
EXACT: Final = 0
# Failed builds of a space that are remembered, so that a build which fails every minute does not
# fill the catalogue.
KEPT_FAILED: Final = 3


@dataclass(frozen=True)
class VersionRecord:
    """A version of an index, as the catalogue knows it."""

    number: int
    state: State
    create_time_ns: int
    # Whether its build was to promote it.
    promote: bool = False
    # 0 while it is being built.
    finish_time_ns: int = 0
    # Empty unless it is ready.
    codebook_uri: str = ""
    table_version: int = 0
    document_count: int = 0
    passage_count: int = 0
    shard_count: int = 0
    size_bytes: int = 0
    recall: float = 0.0
    recall_target: float = 0.0
    encoder_model: str = ""
    # Why it failed, or why it is not in force although its build was to promote it.
    message: str = ""
    # How it is searched, as the protos number it; 0 while that is not known.
    kind: int = 0
    # Folder of the encoder's bundle, if it is not the one that the index was made with.
    encoder_bundle: str = ""
    # Numbers in its vectors; 0 for those of the index.
    dimension: int = 0
    # Whether its model has encoded every passage, so that none may be written without.
    encoded: bool = False
    # What was in force as its build began; None in a record of an older release.
    begun_beside: int | None = None
    # The vector space that it belongs to; empty for the default one.
    space: str = ""


@dataclass(frozen=True)
class RolloutRecord:
    """A version on its way to serve."""

    candidate: int
    # Part of the queries that are run in it too, in the background.
    shadow_share: float = 0.0
    # Part of the callers that are answered from it.
    canary_share: float = 0.0


Change = Callable[["IndexEntry"], "IndexEntry"]


def find(entry: IndexEntry, number: int) -> VersionRecord:
    """The version of that number. Raises VersionNotFoundError."""
    for version in entry.versions:
        if version.number == number:
            return version
    raise VersionNotFoundError(entry.name, number, [each.number for each in entry.versions])


def model_in_force(entry: IndexEntry) -> tuple[str, str, int]:
    """Model, bundle and dimension of the version in force; "" and 0 where they are the index's."""
    for version in entry.versions:
        if version.number == entry.index_version:
            return version.encoder_model, version.encoder_bundle, version.dimension
    return entry.encoder_model, "", 0


@dataclass(frozen=True)
class InForce:
    """The vectors that questions and passages of a version are compared by."""

    index_version: int
    # `name@fingerprint`; empty if nothing was encoded yet.
    model: str
    # Numbers in a vector.
    dimension: int
    # The model whose column the table has; empty: the one that it was made with.
    column_model: str


def in_force_of(entry: IndexEntry) -> InForce:
    """The vectors of the version in force."""
    model, bundle, dimension = model_in_force(entry)
    if not bundle:
        # A version of before the first text was encoded does not name the model.
        return InForce(entry.index_version, entry.encoder_model, entry.dimension, "")
    return InForce(entry.index_version, model, dimension or entry.dimension, model)


def further_models(entry: IndexEntry) -> dict[str, VersionRecord]:
    """The models beside the index's own that encode what is written, and a version of each.

    Of several versions of one model, one whose passages are all encoded, if there is one.
    """
    models: dict[str, VersionRecord] = {}
    for each in sorted(entry.versions, key=lambda version: version.encoded):
        if each.state != "failed" and each.encoder_bundle:
            models[each.encoder_model] = each
    return models


def begin(
    entry: IndexEntry,
    *,
    now_ns: int,
    promote: bool,
    encoder_model: str = "",
    encoder_bundle: str = "",
    dimension: int = 0,
    space: str = "",
) -> IndexEntry:
    """Enter a version that is being built. Raises BuildInProgressError, and what `model_of` does.

    encoder_model, encoder_bundle, dimension: of another model than the index's own; without it the
    version has the model of the one in force. space: that it is for; empty: the default one.
    """
    for version in entry.versions:
        if version.state == "building":
            raise BuildInProgressError(entry.name, version.number)
    number = entry.last_version + 1
    if space:
        encoder_model, encoder_bundle, dimension = spaces.model_of(
            entry,
            space,
            encoder_model,
            encoder_bundle,
            dimension,
            in_force=model_in_force(entry)[0],
        )
    elif not encoder_model:
        encoder_model, encoder_bundle, dimension = model_in_force(entry)
    elif encoder_model == entry.encoder_model:
        encoder_bundle, dimension = "", 0
    before = further_models(entry).get(encoder_model)
    record = VersionRecord(
        number,
        "building",
        now_ns,
        promote=promote,
        encoder_model=encoder_model,
        encoder_bundle=encoder_bundle,
        dimension=dimension,
        encoded=before is not None and before.encoded,
        begun_beside=entry.index_version,
        space=space,
    )
    # Of this space alone: a failed build may be all that another one is known by.
    failed = [
        each.number for each in entry.versions if each.state == "failed" and each.space == space
    ]
    forgotten = set(failed[: max(0, len(failed) - KEPT_FAILED + 1)])
    kept = tuple(each for each in entry.versions if each.number not in forgotten)
    return replace(entry, versions=(*kept, record), last_version=number)


def finish(entry: IndexEntry, ended: VersionRecord) -> IndexEntry:
    """Enter how a build ended; a version that its build was to promote is in force with it.

    But not if another one has come into force since the build began: whoever promoted that, or
    rolled back to it, has decided later, perhaps for another model. Raises VersionNotFoundError;
    VersionConflictError if it has ended otherwise.
    """
    before = find(entry, ended.number)
    ended = replace(
        ended,
        create_time_ns=before.create_time_ns,
        promote=before.promote,
        encoder_model=before.encoder_model,
        encoder_bundle=before.encoder_bundle,
        dimension=before.dimension,
        encoded=before.encoded,
        begun_beside=before.begun_beside,
        space=before.space,
    )
    if before.state != "building":
        if before.state == ended.state:
            return entry  # It was told before.
        raise VersionConflictError(
            f"version {ended.number} of index {entry.name!r} is {before.state} already, and cannot "
            f"become {ended.state}: read the catalogue again"
        )
    promotes = ended.promote and ended.state == "ready"
    if promotes and ended.begun_beside not in (None, entry.index_version):
        promotes, ended = False, replace(ended, message=_overtaken(entry, ended))
    versions = tuple(ended if each.number == ended.number else each for each in entry.versions)
    entry = replace(entry, versions=versions)
    return promote(entry, ended.number) if promotes else entry


def _overtaken(entry: IndexEntry, ended: VersionRecord) -> str:
    """Why a version is not in force that its build was to promote."""
    return (
        f"not promoted: version {entry.index_version} came into force during its build, in the "
        f"place of {ended.begun_beside}. Promote it if it is to serve"
    )


def note_encoded(entry: IndexEntry, number: int) -> IndexEntry:
    """Note that the model of a version encodes every passage from now on."""
    noted = replace(find(entry, number), encoded=True)
    versions = tuple(noted if each.number == number else each for each in entry.versions)
    return replace(entry, versions=versions)


def change_rollout(entry: IndexEntry, rollout: RolloutRecord | None) -> IndexEntry:
    """Begin, change or end a rollout.

    Raises VersionNotFoundError, VersionNotReadyError, VersionOfSpaceError; VersionServesError if
    the candidate is in force.
    """
    if rollout is not None:
        if rollout.candidate == entry.index_version:
            raise VersionServesError(entry.name, rollout.candidate)
        if rollout.candidate != EXACT or entry.retired:
            version = find(entry, rollout.candidate)
            spaces.require_default(entry, version)
            if version.state != "ready":
                raise VersionNotReadyError(
                    entry.name, version.number, version.state, version.message
                )
    return replace(entry, rollout=rollout)


def _without_candidate(entry: IndexEntry, numbers: Set[int]) -> IndexEntry:
    """End a rollout whose candidate is one of some versions."""
    ends = entry.rollout is not None and entry.rollout.candidate in numbers
    return replace(entry, rollout=None) if ends else entry


def promote(entry: IndexEntry, number: int, expected: int | None = None) -> IndexEntry:
    """Put a version in force.

    expected: only if this one is in force. Raises VersionConflictError, VersionNotFoundError,
    VersionNotReadyError, VersionOfSpaceError.
    """
    if entry.index_version == number:
        return entry
    if number == EXACT and entry.retired:
        raise VersionNotFoundError(entry.name, number, [each.number for each in entry.versions])
    if expected is not None and entry.index_version != expected:
        raise VersionConflictError(
            f"version {entry.index_version} of index {entry.name!r} is in force, and not "
            f"{expected}: look again, and decide anew"
        )
    codebook_uri, records = "", entry.versions
    if number != EXACT:
        version = find(entry, number)
        spaces.require_default(entry, version)
        if version.state != "ready":
            raise VersionNotReadyError(entry.name, number, version.state, version.message)
        codebook_uri = version.codebook_uri
        # It says at most why its build did not do this.
        told = replace(version, message="")
        records = tuple(told if each.number == number else each for each in records)
    return replace(
        _without_candidate(entry, {number}),
        versions=records,
        index_version=number,
        codebook_uri=codebook_uri,
        previous_version=entry.index_version,
    )


def roll_back(entry: IndexEntry, left: int) -> IndexEntry:
    """Put the previous version in force again, and note the one that is left as the previous one.

    left: the version that is in force; repeating the call changes nothing.
    Raises NoPreviousVersionError, VersionConflictError.
    """
    if entry.previous_version is None:
        raise NoPreviousVersionError(entry.name)
    if entry.previous_version == left:
        return entry  # It was done, and the answer was lost.
    return promote(entry, entry.previous_version, expected=left)


def retire(entry: IndexEntry, keep: int, serving: Set[int]) -> IndexEntry:
    """Take out READY versions beyond the newest `keep`, but those that are or may soon be needed.

    Of spaces none is kept that is not needed: there is no way back to it.
    serving: versions that answer, in force or not.
    """
    candidates = set() if entry.rollout is None else {entry.rollout.candidate}
    needed = {entry.index_version, entry.previous_version, *serving, *candidates}
    needed |= spaces.in_force(entry).keys()
    spare = [each for each in entry.versions if each.state == "ready" and each.number not in needed]
    ready = [each.number for each in spare if not each.space]
    surplus = set(ready[: max(0, len(ready) - keep)])
    surplus |= {each.number for each in spare if each.space}
    kept = tuple(each for each in entry.versions if each.number not in surplus)
    return replace(entry, versions=kept)


def own_versions(entry: IndexEntry) -> set[int]:
    """Versions of the model that an index was made with: 0 among them."""
    return {EXACT, *(each.number for each in entry.versions if not each.encoder_bundle)}


def _retire_own_model(entry: IndexEntry) -> IndexEntry:
    """Let go of the model that an index was made with, and of all versions that have it.

    Raises VersionNotFoundError if it is gone, VersionServesError if a version of it serves, and
    BuildInProgressError.
    """
    if entry.retired:
        raise VersionNotFoundError(entry.name, EXACT, [each.number for each in entry.versions])
    own = own_versions(entry)
    if entry.index_version in own:
        raise VersionServesError(entry.name, entry.index_version)
    for version in entry.versions:
        if version.number in own and version.state == "building":
            raise BuildInProgressError(entry.name, version.number)
    previous = entry.previous_version
    return replace(
        _without_candidate(entry, own),
        versions=tuple(each for each in entry.versions if each.number not in own),
        previous_version=None if previous in own else previous,
        encoder_model="",
        retired=True,
    )


def drop(entry: IndexEntry, number: int) -> IndexEntry:
    """Take a version out; with version 0 the model goes that the index was made with.

    Raises VersionNotFoundError, VersionServesError, BuildInProgressError; VersionOfSpaceError for
    the one that a space is searched by.
    """
    if number == entry.index_version:
        raise VersionServesError(entry.name, number)
    if number == EXACT:
        return _retire_own_model(entry)
    version = find(entry, number)
    if version.state == "building":
        raise BuildInProgressError(entry.name, number)
    if number in spaces.in_force(entry):
        raise VersionOfSpaceError(entry.name, number, version.space)
    previous = entry.previous_version
    return replace(
        _without_candidate(entry, {number}),
        versions=tuple(each for each in entry.versions if each.number != number),
        previous_version=None if previous == number else previous,
    )
