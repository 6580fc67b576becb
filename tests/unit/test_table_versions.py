"""What may become of an index's versions, and what may not?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.rpc.errors import ServiceError
from shoal.table.catalogue import IndexEntry
from shoal.table.errors import (
    BuildInProgressError,
    NoPreviousVersionError,
    VersionConflictError,
    VersionNotFoundError,
    VersionNotReadyError,
    VersionServesError,
)
from shoal.table.versions import (
    KEPT_FAILED,
    VersionRecord,
    begin,
    drop,
    find,
    finish,
    promote,
    roll_back,
)

EMPTY = IndexEntry("a", "uid", "indexes/a-uid", "m@1", 4, 0)


def ready(number):
    return VersionRecord(number, "ready", 0, finish_time_ns=9, codebook_uri=f"v{number}")


def failed(number, message="disk full"):
    return VersionRecord(number, "failed", 0, finish_time_ns=9, message=message)


def built(entry, *, promotes=False):
    entry = begin(entry, now_ns=5, promote=promotes)
    return finish(entry, ready(entry.last_version))


def test_two_builds_at_once_are_one_too_many():
    entry = begin(EMPTY, now_ns=5, promote=False)
    with pytest.raises(BuildInProgressError, match="version 1 of index 'a' is being built"):
        begin(entry, now_ns=6, promote=False)
    assert begin(finish(entry, failed(1)), now_ns=6, promote=False).last_version == 2


def test_a_number_is_never_given_twice():
    entry = drop(built(EMPTY), 1)
    assert [each.number for each in built(entry).versions] == [2]


def test_the_end_of_a_build_may_be_told_twice_but_not_otherwise():
    entry = begin(EMPTY, now_ns=5, promote=False)
    entry = finish(entry, ready(1))
    assert finish(entry, ready(1)) == entry
    with pytest.raises(VersionConflictError, match="is ready already"):
        finish(entry, failed(1))
    with pytest.raises(VersionNotFoundError, match="no version 7: it has 1"):
        finish(entry, ready(7))


def test_a_build_that_was_to_promote_its_version_does():
    entry = built(EMPTY, promotes=True)
    assert (entry.index_version, entry.codebook_uri, entry.previous_version) == (1, "v1", 0)
    assert built(entry).index_version == 1


def test_a_build_promotes_nothing_over_what_came_into_force_meanwhile():
    """It may be of another model: a build of the old one would undo a rollout."""
    model = {"encoder_model": "new@2", "encoder_bundle": "/bundles/new", "dimension": 4}
    entry = finish(begin(EMPTY, now_ns=5, promote=False, **model), ready(1))
    entry = promote(begin(entry, now_ns=6, promote=True), 1)
    entry = finish(entry, ready(2))
    assert (entry.index_version, entry.previous_version) == (1, 0)
    late = find(entry, 2)
    assert (late.state, late.encoder_model, late.promote) == ("ready", "m@1", True)
    assert "version 1 came into force during its build, in the place of 0" in late.message
    assert finish(entry, ready(2)) == entry
    by_hand = promote(entry, 2)
    assert (by_hand.index_version, find(by_hand, 2).message) == (2, "")


def test_a_build_promotes_over_what_was_in_force_as_it_began():
    entry = begin(built(EMPTY, promotes=True), now_ns=5, promote=True)
    there_and_back = promote(promote(entry, 0), 1)
    assert finish(there_and_back, ready(2)).index_version == 2
    assert finish(promote(entry, 0), ready(2)).index_version == 0


def test_only_what_is_ready_is_promoted():
    entry = begin(EMPTY, now_ns=5, promote=True)
    with pytest.raises(VersionNotReadyError, match="is being built"):
        promote(entry, 1)
    entry = finish(entry, failed(1, "recall@10 is 0.500"))
    assert entry.index_version == 0
    with pytest.raises(VersionNotReadyError, match=r"failed to be built: recall@10 is 0\.500"):
        promote(entry, 1)
    with pytest.raises(VersionNotFoundError):
        promote(entry, 2)


def test_a_promotion_may_expect_what_it_replaces():
    entry = built(built(EMPTY))
    with pytest.raises(VersionConflictError, match=r"version 0 .* is in force, and not 1"):
        promote(entry, 2, expected=1)
    entry = promote(entry, 2, expected=0)
    assert promote(entry, 2, expected=0) == entry  # Repeated, as the answer was lost.


def test_rolling_back_twice_leads_forward_again():
    entry = built(built(EMPTY, promotes=True), promotes=True)
    back = roll_back(entry, 2)
    assert (back.index_version, back.codebook_uri, back.previous_version) == (1, "v1", 2)
    assert roll_back(back, 2) == back  # Repeated, as the answer was lost.
    assert roll_back(back, 1).index_version == 2
    with pytest.raises(VersionConflictError):
        roll_back(entry, 5)
    with pytest.raises(NoPreviousVersionError):
        roll_back(EMPTY, 0)


def test_exact_search_is_a_version_like_others():
    entry = built(EMPTY, promotes=True)
    exact = roll_back(entry, 1)
    assert (exact.index_version, exact.codebook_uri) == (0, "")
    assert promote(entry, 0) == exact
    with pytest.raises(VersionServesError):
        drop(exact, 0)


def test_what_serves_or_is_being_built_is_not_dropped():
    entry = begin(built(built(EMPTY, promotes=True), promotes=True), now_ns=5, promote=False)
    with pytest.raises(VersionServesError, match="version 2 of index 'a' serves"):
        drop(entry, 2)
    with pytest.raises(BuildInProgressError):
        drop(entry, 3)
    with pytest.raises(VersionNotFoundError):
        drop(entry, 9)
    assert drop(entry, 1).previous_version is None


def test_builds_that_fail_again_and_again_do_not_fill_the_catalogue():
    entry = built(EMPTY)
    for _ in range(10):
        entry = begin(entry, now_ns=5, promote=False)
        entry = finish(entry, failed(entry.last_version))
    states = [each.state for each in entry.versions]
    assert states == ["ready", *["failed"] * KEPT_FAILED]


OPERATIONS = st.one_of(
    st.builds(lambda p: lambda e: begin(e, now_ns=1, promote=p), st.booleans()),
    st.builds(lambda n: lambda e: finish(e, ready(n)), st.integers(1, 6)),
    st.builds(lambda n: lambda e: finish(e, failed(n)), st.integers(1, 6)),
    st.builds(lambda n: lambda e: promote(e, n), st.integers(0, 6)),
    st.builds(lambda n: lambda e: roll_back(e, n), st.integers(0, 6)),
    st.builds(lambda n: lambda e: drop(e, n), st.integers(0, 6)),
)


@given(st.lists(OPERATIONS, max_size=30))
def test_whatever_is_done_what_serves_is_there(operations):
    entry = EMPTY
    for change in operations:
        before = entry
        try:
            entry = change(entry)
        except ServiceError:
            continue
        assert entry.last_version >= before.last_version
        numbers = [each.number for each in entry.versions]
        assert numbers == sorted(set(numbers))
        assert sum(each.state == "building" for each in entry.versions) <= 1
        for number in {entry.index_version, entry.previous_version or 0} - {0}:
            assert find(entry, number).state == "ready"
        assert bool(entry.codebook_uri) == (entry.index_version > 0)
