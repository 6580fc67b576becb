"""Which spaces does a search ask, how are their rankings fused, and what is said of the answer?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shoal.broker.answer import Ranked, Trace
from shoal.broker.coverage import cut
from shoal.broker.routes import routes_of
from shoal.broker.spaces import (
    coverage_of_all,
    fuse_spaces,
    note_space,
    route_to_read,
    slowest,
    spaces_of,
    unanswered,
    weight_of,
)
from shoal.broker.targets import MAX_LAYOUTS, Target
from shoal.internal.v1.topology_pb2 import IndexPlacement, Layout, ShardPlacement, Topology
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import IndexVersionState
from shoal.v1.search_pb2 import (
    CacheState,
    Coverage,
    Hit,
    SearchRequest,
    SearchResponse,
    SpaceAnswer,
    Stage,
    Vectors,
)


def ranking(space, *documents, best=0.9, at_s=0):
    """Candidates of a space, best first; a document may be given with the time of its state."""
    found = []
    for position, each in enumerate(documents):
        id_, time_s = each if isinstance(each, tuple) else (each, at_s)
        hit = Hit(document_id=id_)
        hit.update_time.seconds = time_s
        score = best - position / 100
        found.append(Ranked(hit, 0, "server", score, score))
    note_space(found, space)
    return found


def ids(ranked):
    return [each.hit.document_id for each in ranked]


def test_what_several_spaces_find_goes_before_what_one_does():
    fused = fuse_spaces([ranking("a", "x", "both", "y"), ranking("b", "z", "both", best=0.2)])
    assert ids(fused) == ["both", "x", "z", "y"]
    both = fused[0]
    assert [(each.space, each.rank) for each in both.spaces] == [("a", 2), ("b", 2)]
    assert both.dense_score == pytest.approx(0.89)  # Of the space that ranks it best.
    # In the range of the first space's scores: its best one, if all spaces rank it first.
    assert fused[1].score == pytest.approx(0.9 / 2)
    (alone,) = fuse_spaces([ranking("a", "x"), ranking("b", "x")])
    assert alone.score == pytest.approx(0.9)


def test_a_hit_is_of_the_space_that_ranks_it_best():
    fused = fuse_spaces([ranking("a", "x", "y"), ranking("b", "y", "x", best=0.2)])
    assert {each.hit.document_id: each.spaces[0].space for each in fused} == {"x": "a", "y": "b"}
    assert {each.hit.document_id: each.dense_score for each in fused} == {"x": 0.9, "y": 0.2}


def test_of_a_document_in_two_states_the_newer_one_is_kept():
    fused = fuse_spaces([ranking("a", ("x", 1), "y"), ranking("b", "y", ("x", 2))])
    (found,) = (each for each in fused if each.hit.document_id == "x")
    assert (found.hit.update_time.seconds, [each.space for each in found.spaces]) == (2, ["b"])


def test_an_empty_ranking_and_scores_below_0_do_no_harm():
    assert fuse_spaces([[], []]) == []
    fused = fuse_spaces([[], ranking("b", "x", "y", best=-0.5)])
    assert ids(fused) == ["x", "y"]
    assert fused[0].score > fused[1].score > 0


@given(st.lists(st.lists(st.integers(0, 30), unique=True, max_size=20), min_size=1, max_size=5))
def test_fusing_loses_nothing_repeats_nothing_and_is_in_order(lists):
    rankings = [
        ranking(f"space-{at}", *(str(each) for each in documents))
        for at, documents in enumerate(lists)
    ]
    fused = fuse_spaces(rankings)
    assert sorted(ids(fused)) == sorted({str(each) for documents in lists for each in documents})
    scores = [each.score for each in fused]
    assert scores == sorted(scores, reverse=True)
    for each in fused:
        ranks = [rank.rank for rank in each.spaces]
        assert ranks == sorted(ranks)
    if len(lists) == 1:
        assert ids(fused) == ids(rankings[0])


def layout(version):
    placement = ShardPlacement(shard_server="shard-server-0-0", shards=[0, 1])
    return Layout(
        index_version=version,
        shard_count=2,
        placements=[placement],
        encoder_model=f"model-{version}@1" if version else "",
        dimension=4 * version,
    )


@pytest.fixture
def route():
    index = IndexPlacement(
        name="docs", uid="uid", encoder_model="own@1", dimension=8, serving=layout(0)
    )
    index.spaces.add(name="code", serving=layout(2))
    index.spaces.add(name="late", preparing=layout(3))
    building = IndexVersionState.INDEX_VERSION_STATE_BUILDING
    failed = IndexVersionState.INDEX_VERSION_STATE_FAILED
    index.spaces.add(name="new", state=building)
    index.spaces.add(name="torn", state=failed, message="disk full")
    return routes_of(Topology(indexes=[index])).index("docs")


def request(*spaces, **fields):
    return SearchRequest(index="docs", text="q", spaces=spaces, **fields)


def test_the_spaces_that_are_named_are_found(route):
    assert spaces_of(request(), route) == []
    default, code = spaces_of(request("default", "code"), route)
    assert default is route
    assert (code.space, code.index_version, code.encoder_model) == ("code", 2, "model-2@1")
    assert (code.dimension, code.fields, code.uid) == (8, route.fields, route.uid)


@pytest.mark.parametrize(
    ("space", "reason", "said"),
    [
        ("other", Reason.REASON_SPACE_NOT_FOUND, "it has default, code, late, new, torn"),
        ("late", Reason.REASON_VERSION_NOT_READY, "is being loaded"),
        ("new", Reason.REASON_VERSION_NOT_READY, "is being built"),
        ("torn", Reason.REASON_VERSION_NOT_READY, r"could not be built \(disk full\)"),
    ],
)
def test_a_space_that_cannot_be_searched_is_told_from_one_that_is_not_there(
    route, space, reason, said
):
    with pytest.raises(ServiceError, match=said) as raised:
        spaces_of(request("default", space), route)
    assert raised.value.reason == reason


@pytest.mark.parametrize(("number", "space"), [(2, "code"), (3, "late")])
def test_who_asks_for_a_spaces_version_is_told_to_name_the_space(route, number, space):
    with pytest.raises(ServiceError, match=f"is of its vector space {space}: name that") as raised:
        route.version(number)
    assert raised.value.reason == Reason.REASON_VERSION_OF_SPACE
    assert route.version(0) is route


def test_a_search_counts_once_in_each_space():
    assert [weight_of(request(*each)) for each in ("", "a", "ab", "a" * 99)] == [1, 1, 2, 5]


def test_requests_that_mean_nothing_are_refused(route):
    for wrong in (
        request("code", "code"),
        request("code", index_version=2),
        request("a", "b", "c", "d", "e", "f"),
        SearchRequest(index="docs", vector=Vectors(), spaces=["default", "code"]),
    ):
        with pytest.raises(InvalidFieldError):
            spaces_of(wrong, route)


def test_coverage_is_that_of_all_spaces_together(route):
    whole = SpaceAnswer(
        space="default",
        coverage=Coverage(
            complete=True,
            shards_searched=2,
            shards_total=2,
            passages_searched=7,
            passages_total=7,
        ),
    )
    assert coverage_of_all([whole, whole], []).complete
    late = cut(Stage.STAGE_SEARCH, Reason.REASON_DEADLINE_SHARE_SPENT, "it did not answer in time")
    missing = unanswered(route.in_space("code"), 7, late)
    assert (missing.encoder_model, missing.index_version) == ("model-2@1", 2)
    both = coverage_of_all([whole, missing], [])
    assert (both.complete, both.shards_searched, both.shards_total) == (False, 2, 4)
    assert (both.passages_searched, both.passages_total) == (7, 14)
    assert [each.message for each in both.cuts] == ["space code: it did not answer in time"]
    reranking = cut(Stage.STAGE_RERANK, Reason.REASON_RERANKER_UNAVAILABLE, "none")
    assert not coverage_of_all([whole], [reranking]).complete


def answered(space, shards_searched, *, complete):
    coverage = Coverage(complete=complete, shards_searched=shards_searched, shards_total=2)
    return SpaceAnswer(space=space, coverage=coverage)


def test_documents_are_read_in_a_space_that_has_answered(route):
    def read_by(*answers):
        return route_to_read(SearchResponse(spaces=answers), route).space

    assert route_to_read(SearchResponse(), route) is route
    assert read_by(answered("code", 1, complete=False)) == "code"
    silent, whole = answered("default", 0, complete=False), answered("code", 2, complete=True)
    assert read_by(silent, whole) == "code"
    assert read_by(silent, answered("code", 1, complete=False)) == "code"
    assert read_by(answered("default", 2, complete=True), whole) == "default"
    assert read_by(answered("dropped", 2, complete=True)) == "default"


def test_stages_side_by_side_take_as_long_as_the_longest():
    encode, search = Stage.STAGE_ENCODE, Stage.STAGE_SEARCH
    known = CacheState.CACHE_STATE_VECTOR_HIT
    one = Trace(timings=[(encode, 0.1), (search, 0.2), (search, 0.2)], cache=known)
    other = Trace(timings=[(encode, 0.3)])
    joint = slowest([one, other])
    assert joint.timings == [(encode, 0.3), (search, 0.4)]
    assert joint.cache == CacheState.CACHE_STATE_BYPASS
    assert slowest([one, one]).cache == known


async def test_calls_in_one_space_do_not_push_out_those_gathered_in_another():
    target = Target("shard-server-0-0", "127.0.0.1:1")
    try:
        target.coalescers["encode"] = None
        for version in range(MAX_LAYOUTS + 3):
            for purpose in ("search", "count"):
                key = (purpose, ("uid", version, 2), (0, 1))
                target.make_room(purpose, key[1])
                target.coalescers[key] = None
        target.make_room("search", ("another", 0, 2))
        for purpose in ("search", "count"):
            held = [key[1][1] for key in target.coalescers if key[0] == purpose]
            assert held == list(range(3, MAX_LAYOUTS + 3))
        assert "encode" in target.coalescers
    finally:
        await target.channel.close()
