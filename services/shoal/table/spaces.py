"""Which vector spaces does an index have, and by which version is each searched?

A space is a name that versions bear: all of one model, which is not that of the default space. It
is searched by the newest of them that is READY, so that it needs no promotion, and goes with all of
them. Versions without such a name are of the default space. Pure functions over an entry of the
catalogue.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from shoal.rpc.errors import InvalidFieldError
from shoal.rpc.space_names import MAX_SPACES
from shoal.table.errors import (
    BuildInProgressError,
    SpaceExistsError,
    SpaceNotFoundError,
    TooManySpacesError,
    VersionOfSpaceError,
)

if TYPE_CHECKING:
    from shoal.table.catalogue import IndexEntry
    from shoal.table.versions import VersionRecord


def spaces(entry: IndexEntry) -> dict[str, tuple[VersionRecord, ...]]:
    """The versions of each space, oldest first, by name."""
    found: dict[str, tuple[VersionRecord, ...]] = {}
    for each in entry.versions:
        if each.space:
            found[each.space] = (*found.get(each.space, ()), each)
    return dict(sorted(found.items()))


def in_force(entry: IndexEntry) -> dict[int, str]:
    """The versions that spaces are searched by, and the space of each."""
    newest = {each.space: each.number for each in entry.versions if each.space and _ready(each)}
    return {number: space for space, number in newest.items()}


def model_of(
    entry: IndexEntry, space: str, model: str, bundle: str, dimension: int, *, in_force: str
) -> tuple[str, str, int]:
    """Model, bundle and dimension of a version that is to be built for a space.

    model, bundle, dimension: of a space that is to be added; an empty model: the space's own.
    in_force: the model that the default space is searched by.
    Raises SpaceExistsError, SpaceNotFoundError, TooManySpacesError, InvalidFieldError.
    """
    known = spaces(entry)
    before = known.get(space, ())
    if not model:
        if not before:
            raise SpaceNotFoundError(entry.name, space, list(known))
        return before[-1].encoder_model, before[-1].encoder_bundle, before[-1].dimension
    # One whose build failed is added again, to go on with what was encoded.
    if any(_ready(each) for each in before):
        raise SpaceExistsError(entry.name, space)
    if space not in known and len(known) >= MAX_SPACES:
        raise TooManySpacesError(entry.name, list(known))
    others = {each.encoder_model: name for name, own in known.items() for each in own}
    whose = ""
    if model == entry.encoder_model:
        whose = "the index was made with"
    elif model == in_force:
        whose = "serves in the default space"
    elif others.get(model, space) != space:
        whose = "another space has"
    if whose:
        raise InvalidFieldError(
            "encoder_bundle", f"is {model}, the model that {whose}: a space needs one of its own"
        )
    return model, bundle, dimension


def drop_space(entry: IndexEntry, space: str) -> IndexEntry:
    """Take a space out with all its versions. Raises SpaceNotFoundError, BuildInProgressError."""
    known = spaces(entry)
    if space not in known:
        raise SpaceNotFoundError(entry.name, space, list(known))
    for each in known[space]:
        if each.state == "building":
            raise BuildInProgressError(entry.name, each.number)
    return replace(entry, versions=tuple(each for each in entry.versions if each.space != space))


def require_default(entry: IndexEntry, version: VersionRecord) -> None:
    """Raises VersionOfSpaceError for a version of a named space, which never serves by default."""
    if version.space:
        raise VersionOfSpaceError(entry.name, version.number, version.space)


def _ready(version: VersionRecord) -> bool:
    return version.state == "ready"
