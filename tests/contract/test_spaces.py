"""Is an index searched by several models, alone and together, and are its promises kept in each?

The default space has a stand-in encoder, which knows words alone; the other has a real bundle,
which knows meanings.
"""

import asyncio
import itertools
import threading

import pytest
from shoal.client import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from shoal.table import PassageTable
from shoal.v1.indexes_pb2 import IndexVersionState, SpaceState
from shoal.v1.search_pb2 import SearchKind

from loadtest.other_bundles import same_model
from tests.harness.controlled import controlled, ended, until

READY = IndexVersionState.INDEX_VERSION_STATE_READY
OWN = "tiny@1"
# Of the question, the first shares the words and the second the meaning.
QUESTION = "where do herons nest"
TEXTS = {
    "words": "where herons do nest where nest herons do",
    "meaning": "Birds of the heron family breed in colonies, high up in trees close to water.",
    **{f"train-{at}": f"Locomotive number {at} ran on rails of cast iron." for at in range(8)},
    **{f"bread-{at}": f"Loaf {at} rises because yeast makes gas of sugar." for at in range(8)},
}
FIELDS = {"lang": "string"}


@pytest.fixture
def bundle(tmp_path):
    return same_model(tmp_path / "bundle", "meanings")


async def write(client, texts):
    summary = await client.upsert(
        "docs",
        [
            {"id": each, "text": text, "metadata": {"lang": "fr" if each == "words" else "en"}}
            for each, text in texts.items()
        ],
    )
    assert summary.acknowledged == len(texts)
    return summary.table_version


async def state_of(client, space="by-meaning"):
    index = (await client.describe_index("docs")).index
    return next((each for each in index.spaces if each.name == space), None)


async def searchable(client, space="by-meaning"):
    async def look():
        found = await state_of(client, space)
        return found if found is not None and found.state == SpaceState.SPACE_STATE_READY else None

    return await until(look)


async def spaced(client, bundle):
    """An index with a second space."""
    await client.create_index("docs", fields=FIELDS)
    await write(client, TEXTS)
    begun = await client.add_space("docs", "by-meaning", str(bundle))
    version = await ended(client, "docs", begun.number)
    assert (version.state, version.space) == (READY, "by-meaning"), version.message
    await searchable(client)
    return version


async def found_in(client, *spaces, query=QUESTION, top_k=3, **options):
    answer = await client.search(
        "docs", query, spaces=spaces, top_k=top_k, hybrid=False, explain=True, **options
    )
    assert answer.coverage.complete, answer.coverage
    return answer


def ids(answer):
    return [hit.document_id for hit in answer.hits]


async def test_what_one_model_does_not_find_another_does_and_both_together_find_both(
    tmp_path, bundle
):
    async with controlled(tmp_path / "home") as (_, client):
        version = await spaced(client, bundle)
        by_words = await found_in(client, "default")
        assert ids(by_words)[0] == "words"
        assert "meaning" not in ids(by_words)
        assert [each.encoder_model for each in by_words.spaces] == [OWN]
        by_meaning = await found_in(client, "by-meaning", filter='lang == "en"')
        assert ids(by_meaning)[0] == "meaning"
        assert (by_meaning.index_version, by_meaning.encoder_model) == (
            version.number,
            version.encoder_model,
        )
        (rank,) = by_meaning.hits[0].provenance.spaces
        assert (rank.space, rank.rank) == ("by-meaning", 1)

        both = await found_in(client, "default", "by-meaning")
        assert set(ids(both)[:2]) == {"words", "meaning"}
        assert [(each.space, each.index_version, each.encoder_model) for each in both.spaces] == [
            ("default", 0, OWN),
            ("by-meaning", version.number, version.encoder_model),
        ]
        assert (both.index_version, both.encoder_model) == (0, "")
        assert (both.coverage.shards_searched, both.coverage.shards_total) == (4, 4)
        assert both.coverage.passages_searched == 2 * len(TEXTS)
        assert all(each.coverage.complete for each in both.spaces)
        scores = [hit.score for hit in both.hits]
        assert scores == sorted(scores, reverse=True)
        meaning = next(hit for hit in both.hits if hit.document_id == "meaning")
        assert meaning.provenance.spaces[0].space == "by-meaning"
        assert meaning.provenance.encoder_model == version.encoder_model
        assert {each.space for each in both.explanation.shards} == {"default", "by-meaning"}
        # Unnamed, it is the default space, and says nothing of spaces.
        plain = await client.search("docs", QUESTION, hybrid=False)
        assert (plain.encoder_model, list(plain.spaces)) == (OWN, [])
        contexts = await client.retrieve_context(
            "docs", QUESTION, spaces=["default", "by-meaning"], hybrid=False
        )
        assert {"words", "meaning"} <= {each.document_id for each in contexts.contexts}
        assert [each.space for each in contexts.spaces] == ["default", "by-meaning"]
        # A snapshot holds the default space alone.
        await client.snapshot_index("docs", str(tmp_path / "snapshot"))
        restored = await client.restore_index(str(tmp_path / "snapshot"), name="again", shards=1)
        assert not restored.spaces
        again = await client.search("again", QUESTION, hybrid=False, top_k=3)
        assert ids(again) == ids(by_words)


async def test_writes_deletions_filters_and_purges_hold_in_every_space(tmp_path, bundle):
    async with controlled(tmp_path / "home") as (_, client):
        version = await spaced(client, bundle)
        spaces = (("default",), ("by-meaning",), ("default", "by-meaning"))
        # It shares words and meaning with the question.
        at = await write(client, {"new": "where do herons nest", "meaning": "Herons nest here."})
        for each in spaces:
            answer = await found_in(client, *each, min_table_version=at, top_k=20)
            assert answer.table_version >= at
            texts = {hit.document_id: hit.text for hit in answer.hits}
            assert "new" in ids(answer)[:3]
            assert texts["meaning"] == "Herons nest here."
            only = await found_in(client, *each, filter='lang == "fr"', top_k=20)
            assert ids(only) == ["words"]
            grouped = await found_in(client, *each, hits_per_document=1, top_k=4)
            assert len(set(ids(grouped))) == 4
        at = await client.delete("docs", ["new"])
        for each in spaces:
            assert "new" not in ids(await found_in(client, *each, min_table_version=at, top_k=20))
        (uri,) = (tmp_path / "home" / "data" / "indexes").glob("docs-*/table.lance")
        purged = await client.purge("docs", ["meaning"])
        for each in spaces:
            after = await found_in(client, *each, min_table_version=purged.table_version, top_k=20)
            assert set(ids(after)) == TEXTS.keys() - {"meaning"}
        assert [each.model for each in PassageTable.open(str(uri)).models] == [
            version.encoder_model
        ]


async def test_looking_deeper_than_the_caller_wants_makes_no_answer_incomplete(
    tmp_path, bundle, monkeypatch
):
    for module in ("grouping", "space_search"):
        monkeypatch.setattr(f"shoal.broker.{module}.MAX_TOP_K", 6)
    async with controlled(tmp_path / "home") as (_, client):
        await spaced(client, bundle)
        # Among the best passages are many of one document.
        at = await write(client, {"long": "Herons nest in trees close to water. " * 200})
        both = await found_in(
            client,
            "default",
            "by-meaning",
            query="herons nest in trees",
            hits_per_document=1,
            top_k=1,
            min_table_version=at,
        )
        assert len(both.hits) == 1


async def test_a_space_outlives_restarts_and_goes_when_it_is_dropped(tmp_path, bundle):
    async with controlled(tmp_path / "home") as (cluster, client):
        version = await spaced(client, bundle)
        platform = cluster.platform
        await cluster.kill_controller()
        for id_ in ("writer-0", "shard-server-0-0", "broker-0"):
            await platform.hosts[id_].stop(0)
            await platform.start_again(id_)
        await cluster.start_controller()
        await searchable(client)
        at = await write(client, {"new": "Herons breed in colonies close to water."})
        both = await found_in(client, "default", "by-meaning", min_table_version=at)
        assert "new" in ids(both)
        further = f"encoder-{version.encoder_model.rpartition('@')[2]}-0"
        assert further in platform.placed_ids()

        await client.drop_space("docs", "by-meaning")
        with pytest.raises(NotFoundError, match="no vector space 'by-meaning': it has default"):
            await found_in(client, "default", "by-meaning")
        with pytest.raises(NotFoundError, match="no vector space 'by-meaning'"):
            await client.drop_space("docs", "by-meaning")
        assert not (await client.index_versions("docs")).versions
        (uri,) = (tmp_path / "home" / "data" / "indexes").glob("docs-*/table.lance")
        assert PassageTable.open(str(uri)).models == ()
        await until(lambda: further not in platform.placed_ids())
        at = await write(client, {"last": "where do herons nest"})
        assert "last" in ids(await found_in(client, "default", min_table_version=at))


async def test_a_rollout_of_the_default_model_goes_on_beside_a_space(tmp_path, bundle):
    async with controlled(tmp_path / "home") as (_, client):
        version = await spaced(client, bundle)
        with pytest.raises(FailedPreconditionError, match="is of its vector space 'by-meaning'"):
            await client.promote_index_version("docs", version.number)
        with pytest.raises(FailedPreconditionError, match="is of its vector space 'by-meaning'"):
            await client.set_rollout("docs", version.number)
        with pytest.raises(FailedPreconditionError, match="drop the space"):
            await client.drop_index_version("docs", version.number)
        begun = await client.build_index_version(
            "docs", encoder_bundle=str(same_model(tmp_path / "other", "other"))
        )
        other = await ended(client, "docs", begun.number)
        assert (other.state, other.space) == (READY, "")
        assert await client.promote_index_version("docs", other.number) == other.number
        both = await found_in(client, "default", "by-meaning")
        assert [each.encoder_model for each in both.spaces] == [
            other.encoder_model,
            version.encoder_model,
        ]
        assert (await client.rollback_index("docs")).serving_version == 0
        both = await found_in(client, "by-meaning", "default")
        assert [each.encoder_model for each in both.spaces] == [version.encoder_model, OWN]


async def test_a_space_is_built_again_for_more_shards_and_by_itself(tmp_path, bundle):
    async with controlled(tmp_path / "home") as (cluster, client):
        first = await spaced(client, bundle)
        steps = len(cluster.platform.ranges)
        begun = await client.build_index_version("docs", space="by-meaning")
        second = await ended(client, "docs", begun.number)
        assert (second.state, second.encoder_model) == (READY, first.encoder_model)
        assert len(cluster.platform.ranges) == steps  # It is encoded already.

        async def taken_over():
            return (await state_of(client)).index_version == second.number

        await until(taken_over)
        await client.scale(shards=1)

        async def divided():
            answer = await client.search("docs", QUESTION, spaces=["default", "by-meaning"])
            assert answer.coverage.complete  # All the while.
            return answer.coverage.shards_total == 2

        await until(divided)
        await client.drop_index_version("docs", first.number)
        assert ids(await found_in(client, "by-meaning", filter='lang == "en"'))[0] == "meaning"


async def test_a_space_that_does_not_answer_is_left_out_and_named(tmp_path, bundle):
    async with controlled(tmp_path / "home") as (cluster, client):
        version = await spaced(client, bundle)
        id_ = f"encoder-{version.encoder_model.rpartition('@')[2]}-0"
        await cluster.platform.hosts[id_].stop(0)
        # Of other words: the vector of a question that was asked is known.
        answer = await client.search(
            "docs", "nesting herons", spaces=["default", "by-meaning"], hybrid=False, timeout_s=3.0
        )
        assert answer.hits
        assert not answer.coverage.complete
        (cut,) = answer.coverage.cuts
        assert cut.message.startswith("space by-meaning: it did not answer")
        default, other = answer.spaces
        assert (default.coverage.complete, other.coverage.complete) == (True, False)
        assert (other.coverage.shards_searched, other.coverage.shards_total) == (0, 2)
        assert other.coverage.passages_total == len(TEXTS)

        async def not_waited_for():
            # Of other words each time, and now and then one asks the encoder all the same.
            words = f"herons {next(numbers)}"
            spaces = ["default", "by-meaning"]
            answer = await client.search("docs", words, spaces=spaces, hybrid=False)
            (cut,) = answer.coverage.cuts
            return cut.reason == "ENCODER_UNAVAILABLE" and "for a while" in cut.message

        numbers = itertools.count()
        await until(not_waited_for)
        await cluster.platform.start_again(id_)
        await until(lambda: _complete(client))


async def _complete(client):
    spaces = ["default", "by-meaning"]
    return (await client.search("docs", "herons that nest", spaces=spaces)).coverage.complete


async def test_what_cannot_be_is_refused_with_what_to_do(tmp_path, bundle):
    async with controlled(tmp_path / "home") as (cluster, client):
        await client.create_index("docs", fields=FIELDS)
        await write(client, TEXTS)
        with pytest.raises(InvalidArgumentError, match="the space that an index has anyhow"):
            await client.add_space("docs", "default", str(bundle))
        with pytest.raises(InvalidArgumentError, match="no name for a vector space"):
            await client.add_space("docs", "By Meaning", str(bundle))
        with pytest.raises(InvalidArgumentError, match="encoder_bundle"):
            await client.add_space("docs", "by-meaning", str(tmp_path))
        with pytest.raises(NotFoundError, match="no vector space 'other': it has default"):
            await client.build_index_version("docs", space="other")
        go_on = threading.Event()
        cluster.platform.before = lambda step, job: step != "encode_rows" or go_on.wait(60)
        begun = await client.add_space("docs", "by-meaning", str(bundle))
        await until(lambda: state_of(client))
        assert (await state_of(client)).state == SpaceState.SPACE_STATE_BUILDING
        with pytest.raises(FailedPreconditionError, match="is being built"):
            await found_in(client, "by-meaning")
        with pytest.raises(FailedPreconditionError, match="is being built"):
            await client.drop_space("docs", "by-meaning")
        go_on.set()
        assert (await ended(client, "docs", begun.number)).state == READY
        await searchable(client)
        with pytest.raises(AlreadyExistsError, match="'by-meaning' already: build another version"):
            await client.add_space("docs", "by-meaning", str(bundle))
        with pytest.raises(InvalidArgumentError, match="the model that another space has"):
            await client.add_space("docs", "again", str(bundle))
        with pytest.raises(InvalidArgumentError, match="names several, and a vector is of one"):
            await found_in(client, "default", "by-meaning", query=[1.0] * 8)
        with pytest.raises(InvalidArgumentError, match="twice"):
            await found_in(client, "default", "default")
        with pytest.raises(InvalidArgumentError, match="is of the default space"):
            await found_in(client, "by-meaning", index_version=0)
        with pytest.raises(InvalidArgumentError, match="leave out `promote`"):
            await client.build_index_version("docs", space="by-meaning", promote=True)
        by_vector = await found_in(client, "by-meaning", query=[1.0] * 384)
        assert len(by_vector.hits) == 3


async def test_a_build_of_a_space_that_failed_goes_on_where_it_was(tmp_path, bundle):
    async with controlled(tmp_path / "home") as (cluster, client):
        await client.create_index("docs")
        await client.upsert("docs", [{"id": each, "text": text} for each, text in TEXTS.items()])

        def full(step, job):
            if step == "count":
                raise OSError(28, "No space left on device")

        cluster.platform.before = full
        begun = await client.add_space(
            "docs", "by-meaning", str(bundle), kind=SearchKind.SEARCH_KIND_EXACT
        )
        failed = await ended(client, "docs", begun.number)
        assert failed.state == IndexVersionState.INDEX_VERSION_STATE_FAILED

        async def shown():
            found = await state_of(client)
            return found if found.state == SpaceState.SPACE_STATE_FAILED else None

        assert "No space left" in (await until(shown)).message
        cluster.platform.before = lambda step, job: None
        encoded = sum(cluster.platform.ranges)
        assert encoded == len(TEXTS)
        begun = await client.add_space("docs", "by-meaning", str(bundle))
        assert (await ended(client, "docs", begun.number)).state == READY
        assert sum(cluster.platform.ranges) == encoded
        await searchable(client)
        await asyncio.gather(*(found_in(client, "default", "by-meaning") for _ in range(8)))

        await cluster.kill_controller()  # So that nobody tells the broker.
        with pytest.raises(DeadlineExceededError, match="is dropped, but was still found"):
            await client.drop_space("docs", "by-meaning", timeout_s=2.0)
        assert await state_of(client) is not None
        await cluster.start_controller()

        async def gone():
            return await state_of(client) is None

        await until(gone)
