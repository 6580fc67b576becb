"""Does another model take over, one version beside the other, with every write in both?"""

import pytest
from shoal.client import FailedPreconditionError, InvalidArgumentError
from shoal.v1.indexes_pb2 import IndexVersionState
from shoal.v1.search_pb2 import SearchKind

from tests.harness.bundles import same_model
from tests.harness.controlled import controlled, ended, until

READY = IndexVersionState.INDEX_VERSION_STATE_READY
OWN = "tiny@1"
TEXTS = {
    "heron": "Herons breed in colonies, high up in trees near water.",
    "train": "The first trains ran on rails of cast iron.",
    "bread": "Bread rises because yeast makes gas of sugar.",
    "comet": "A comet grows a tail as it comes near the sun.",
}
QUESTION = "where do herons nest"


@pytest.fixture
def bundle(tmp_path):
    return same_model(tmp_path / "bundle", "another")


async def write(client, texts):
    summary = await client.upsert(
        "docs", [{"id": each, "text": text} for each, text in texts.items()]
    )
    assert summary.acknowledged == len(texts)
    return summary.table_version


async def built(client, bundle, **options):
    begun = await client.build_index_version("docs", encoder_bundle=str(bundle), **options)
    version = await ended(client, "docs", begun.number)
    assert version.state == READY, version.message
    return version


async def loaded(client):
    async def look():
        return (await client.describe_rollout("docs")).loaded

    await until(look)


async def answer(client, query=QUESTION, **options):
    found = await client.search("docs", query, hybrid=False, bypass_cache=True, **options)
    assert found.coverage.complete
    return found


async def first_hit(client, query=QUESTION, **options):
    return (await answer(client, query, **options)).hits[0].document_id


async def test_another_model_takes_over_and_is_rolled_back(tmp_path, bundle):
    async with controlled(tmp_path / "home") as (_, client):
        await client.create_index("docs")
        await write(client, TEXTS)
        version = await built(client, bundle)
        assert version.encoder_model.startswith("another@")
        assert (version.kind, version.passage_count) == (SearchKind.SEARCH_KIND_EXACT, len(TEXTS))
        before = await answer(client)
        assert (before.index_version, before.encoder_model) == (0, OWN)

        serving = await client.promote_index_version("docs", version.number)
        assert serving == version.number
        after = await answer(client, explain=True)
        assert (after.index_version, after.encoder_model) == (1, version.encoder_model)
        assert after.explanation.encoder_model == version.encoder_model
        assert after.hits[0].document_id == "heron"
        assert after.hits[0].dense_score > 0.5  # of the real model, and not of hashes of words
        described = (await client.describe_index("docs")).index
        assert (described.encoder_model, described.dimension) == (version.encoder_model, 384)

        rolled = await client.rollback_index("docs")
        assert rolled.serving_version == 0
        assert (await answer(client)).encoder_model == OWN


async def test_what_is_written_is_found_in_both_versions(tmp_path, bundle):
    async with controlled(tmp_path / "home") as (_, client):
        await client.create_index("docs")
        await write(client, TEXTS)
        version = await built(client, bundle)
        with pytest.raises(FailedPreconditionError, match="is not loaded"):
            await answer(client, index_version=version.number)
        await client.set_rollout("docs", version.number)
        await loaded(client)
        table_version = await write(client, {"stork": "Storks breed on roofs.", "train": "Gone."})
        await client.delete("docs", ["comet"])
        for number in (0, version.number):
            found = await answer(
                client,
                "storks breed on roofs",
                index_version=number,
                min_table_version=table_version,
                top_k=10,
            )
            assert found.index_version == number
            assert found.hits[0].document_id == "stork"
            assert {hit.document_id: hit.text for hit in found.hits}["train"] == "Gone."
        await client.promote_index_version("docs", version.number)
        assert await first_hit(client, "storks breed on roofs") == "stork"
        assert (await client.describe_rollout("docs")).rollout.candidate_version == 0


async def test_versions_of_one_model_share_what_it_has_encoded(tmp_path, bundle):
    async with controlled(tmp_path / "home") as (cluster, client):
        await client.create_index("docs")
        await write(client, TEXTS)
        await built(client, bundle)
        cluster.platform.steps.clear()
        await built(client, bundle)
        steps = [step for step, _ in cluster.platform.steps]
        assert "plan_encoding" in steps
        assert "encode_rows" not in steps


async def test_a_bundle_that_cannot_be_used_is_refused_before_anything_begins(tmp_path):
    async with controlled(tmp_path / "home") as (_, client):
        await client.create_index("docs")
        with pytest.raises(InvalidArgumentError, match="encoder_bundle"):
            await client.build_index_version("docs", encoder_bundle=str(tmp_path))
        assert not (await client.index_versions("docs")).versions
