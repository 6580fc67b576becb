"""What may become of an index's vector spaces, and what of its versions beside them?"""

import json

import pytest
from shoal.rpc.errors import InvalidFieldError
from shoal.rpc.space_names import MAX_SPACES
from shoal.table import versions
from shoal.table.catalogue import Catalogue, IndexEntry, entry_of
from shoal.table.errors import (
    BuildInProgressError,
    SpaceExistsError,
    SpaceNotFoundError,
    TooManySpacesError,
    VersionOfSpaceError,
)
from shoal.table.spaces import drop_space, in_force, spaces
from shoal.table.versions import RolloutRecord, VersionRecord

ENTRY = IndexEntry("docs", "uid", "indexes/docs", "own@1", 8, 0)


def begin(entry, space="", model="", **more):
    named = {"encoder_model": f"{model}@2", "encoder_bundle": f"/{model}"} if model else {}
    return versions.begin(entry, now_ns=1, promote=False, space=space, **named, **more)


def finish(entry, state="ready"):
    return versions.finish(entry, VersionRecord(entry.last_version, state, 0))


def built(entry, *args):
    return finish(begin(entry, *args))


def test_a_space_has_a_model_of_its_own_and_is_searched_by_its_newest_version():
    entry = built(ENTRY, "code", "new")
    assert in_force(entry) == {1: "code"}
    assert list(versions.further_models(entry)) == ["new@2"]
    entry = begin(entry, "code")
    assert entry.versions[-1].encoder_bundle == "/new"
    assert in_force(entry) == {1: "code"}  # Until it is ready.
    assert in_force(finish(entry, "failed")) == {1: "code"}
    entry = finish(entry)
    assert in_force(entry) == {2: "code"}
    assert (entry.index_version, entry.previous_version) == (0, None)
    assert [each.number for each in versions.drop(entry, 1).versions] == [2]


def test_nothing_that_is_about_the_default_space_takes_a_version_of_another():
    entry = built(ENTRY, "code", "new")
    for change in (
        lambda: versions.promote(entry, 1),
        lambda: versions.change_rollout(entry, RolloutRecord(1)),
        lambda: versions.drop(entry, 1),
    ):
        with pytest.raises(VersionOfSpaceError, match=r"version 1 .* of its vector space 'code'"):
            change()
    assert begin(entry).versions[-1].encoder_model == "own@1"
    promoted = versions.promote(built(entry, "", "other"), 2)
    assert (promoted.index_version, in_force(promoted)) == (2, {1: "code"})
    gone = versions.drop(promoted, versions.EXACT)  # The model that it was made with.
    assert in_force(gone) == {1: "code"}


def test_what_a_space_is_searched_by_is_never_retired():
    entry = built(built(ENTRY, "code", "new"), "code")
    for _ in range(4):
        entry = built(entry)
    kept = {each.number for each in versions.retire(entry, 2, set()).versions}
    assert kept == {2, 5, 6}
    loaded = {each.number for each in versions.retire(entry, 2, {1}).versions}
    assert loaded == {1, 2, 5, 6}


def test_a_version_that_a_space_has_left_is_not_kept_in_the_place_of_another():
    entry = built(built(built(ENTRY), "code", "new"), "code")
    assert {each.number for each in versions.retire(entry, 2, {2}).versions} == {1, 2, 3}
    assert {each.number for each in versions.retire(entry, 2, set()).versions} == {1, 3}
    assert {each.number for each in versions.retire(built(entry), 1, {2}).versions} == {2, 3, 4}


def test_a_space_is_added_once_but_again_if_it_failed():
    entry = begin(ENTRY, "code", "new")
    with pytest.raises(BuildInProgressError):
        begin(entry, "code", "new")
    failed = finish(entry, "failed")
    assert list(spaces(failed)) == ["code"]
    assert in_force(built(failed, "code", "new")) == {2: "code"}
    with pytest.raises(SpaceExistsError, match="build another version of it"):
        begin(finish(entry), "code", "new")


def test_a_space_that_failed_is_not_forgotten_for_what_failed_elsewhere():
    entry = finish(begin(ENTRY, "code", "new"), "failed")
    for _ in range(2 * versions.KEPT_FAILED):
        entry = finish(begin(entry), "failed")
    assert list(spaces(entry)) == ["code"]
    assert len(entry.versions) == 1 + versions.KEPT_FAILED
    for _ in range(2 * versions.KEPT_FAILED):
        entry = finish(begin(entry, "code", "new"), "failed")
    assert len(spaces(entry)["code"]) == versions.KEPT_FAILED
    assert len(entry.versions) == 2 * versions.KEPT_FAILED


def test_models_are_not_encoded_twice():
    with pytest.raises(InvalidFieldError, match="the model that the index was made with"):
        versions.begin(
            ENTRY,
            now_ns=1,
            promote=False,
            space="code",
            encoder_model="own@1",
            encoder_bundle="/own",
        )
    with pytest.raises(InvalidFieldError, match="the model that another space has"):
        begin(built(ENTRY, "code", "new"), "other", "new")
    promoted = versions.promote(built(ENTRY, "", "new"), 1)
    with pytest.raises(InvalidFieldError, match="the model that serves in the default space"):
        begin(promoted, "code", "new")


def test_there_are_only_so_many():
    entry = ENTRY
    for number in range(MAX_SPACES):
        entry = built(entry, f"space-{number}", f"model-{number}")
    with pytest.raises(TooManySpacesError, match="drop one of space-0, space-1"):
        begin(entry, "more", "more")
    assert begin(entry, "space-1").versions[-1].encoder_model == "model-1@2"
    assert begin(drop_space(entry, "space-2"), "more", "more").versions[-1].space == "more"


def test_a_space_goes_with_all_its_versions():
    entry = built(built(built(ENTRY, "code", "new")), "code")
    assert [each.number for each in drop_space(entry, "code").versions] == [2]
    with pytest.raises(SpaceNotFoundError, match="no vector space 'text': it has default, code"):
        drop_space(entry, "text")
    with pytest.raises(SpaceNotFoundError):
        begin(entry, "text")
    with pytest.raises(BuildInProgressError):
        drop_space(begin(entry, "code"), "code")


def test_the_catalogue_keeps_them_and_reads_what_was_written_before_there_were_any(tmp_path):
    catalogue = Catalogue(tmp_path)
    made = catalogue.create(
        "docs",
        dimension=8,
        encoder_model="own@1",
        request_id="",
        make_table=lambda uri, dimension: (tmp_path / uri).mkdir(parents=True),
    )
    catalogue.change_versions(made.uid, lambda entry: built(entry, "code", "new"))
    catalogue.close()
    again = Catalogue(tmp_path)
    assert in_force(again.get("docs")) == {1: "code"}
    again.close()
    stored = json.loads((tmp_path / "catalogue.json").read_text())["entries"][0]
    del stored["versions"][0]["space"]
    assert in_force(entry_of(stored)) == {}
