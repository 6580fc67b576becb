"""Do filters hold through real services, in every call that searches?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from shoal.broker.cache import answer_key
from shoal.broker.routes import IndexRoute
from shoal.client import AsyncClient, InvalidArgumentError, search_request
from shoal.filters.fields import field_messages, read_fields

from tests.harness.real import client_of, real_cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIELDS = {
    "lang": "string",
    "year": "integer",
    "price": "float",
    "open": "boolean",
    "at": "timestamp",
    "tags": "strings",
}
QUESTION = "Which river is the longest?"
LANGS = ("en", "de", "fr")


def metadata_of(number: int) -> dict[str, Any]:
    if number % 10 == 9:
        return {"lang": None, "free": {"form": [number]}}
    return {
        "lang": LANGS[number % 3],
        "year": 2000 + number,
        "price": number / 2,
        "open": number % 2 == 0,
        "at": f"20{10 + number % 10}-05-01T00:00:00Z",
        "tags": [f"t{number % 4}", "all"],
        "free": "form",
    }


def documents(first: int = 0, count: int = 60) -> list[dict[str, Any]]:
    return [
        {
            "id": f"d{number}",
            "text": f"River number {number} is {number * 7 % 61} miles long. " * (1 + number % 3),
            "metadata": metadata_of(number),
        }
        for number in range(first, first + count)
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncClient]:
    data = tmp_path_factory.mktemp("data")
    async with real_cluster(data) as cluster, client_of(cluster) as client:
        index = await client.create_index("rivers", fields=FIELDS)
        assert {each.name for each in index.fields} == set(FIELDS)
        summary = await client.upsert("rivers", documents())
        assert not summary.failures
        await client.search("rivers", "x", min_table_version=summary.table_version)
        yield client


async def ids(client: AsyncClient, filter_: str, **more: Any) -> set[str]:
    response = await client.search("rivers", QUESTION, top_k=1_000, filter=filter_, **more)
    assert response.coverage.complete
    return {hit.document_id for hit in response.hits}


@pytest.mark.parametrize(
    ("filter_", "holds"),
    [
        ('lang == "en"', lambda m: m.get("lang") == "en"),
        ('lang != "en"', lambda m: m.get("lang") not in (None, "en")),
        ('!(lang == "en")', lambda m: m.get("lang") != "en"),
        ("year >= 2010 && year < 2020", lambda m: 2010 <= m.get("year", 0) < 2020),
        ('lang in ["de", "fr"] && open', lambda m: m.get("lang") in ("de", "fr") and m["open"]),
        (
            '"t1" in tags || price > 25',
            lambda m: "t1" in m.get("tags", ()) or m.get("price", 0) > 25,
        ),
        ('at > timestamp("2015-06-01T00:00:00Z")', lambda m: m.get("at", "") > "2015-06"),
        ("!has(year)", lambda m: "year" not in m),
        ("year == 1", lambda m: False),
    ],
)
@pytest.mark.parametrize("rerank", [True, False])
async def test_a_filter_holds_and_leaves_nothing_out(
    client: AsyncClient, filter_: str, holds: Any, rerank: bool
) -> None:
    expected = {each["id"] for each in documents() if holds(each["metadata"])}
    assert await ids(client, filter_, rerank=rerank) == expected
    assert await ids(client, filter_, hits_per_document=1, rerank=rerank) == expected


async def test_hits_are_those_of_the_whole_that_match_in_the_same_order(
    client: AsyncClient,
) -> None:
    whole = await client.search("rivers", QUESTION, top_k=1_000, rerank=False)
    part = await client.search("rivers", QUESTION, top_k=10, rerank=False, filter='lang == "de"')
    expected = [
        hit.document_id for hit in whole.hits if hit.metadata.fields["lang"].string_value == "de"
    ]
    assert [hit.document_id for hit in part.hits] == expected[:10]


async def test_identical_questions_with_different_filters_never_share_an_answer(
    client: AsyncClient,
) -> None:
    asked = [f'lang == "{LANGS[at % 3]}"' for at in range(30)] + [""] * 10
    answers = await asyncio.gather(
        *(client.search("rivers", QUESTION, top_k=50, filter=each) for each in asked)
    )
    for filter_, answer in zip(asked, answers, strict=True):
        assert answer.hits
        for hit in answer.hits:
            assert not filter_ or f'lang == "{hit.metadata["lang"]}"' == filter_
    batch = await client.batch_search(
        search_request("rivers", QUESTION, filter=each) for each in (*asked[:3], "yeer == 1")
    )
    for filter_, result in zip(asked, batch.results[:3], strict=False):
        langs = {hit.metadata["lang"] for hit in result.response.hits}
        assert [f'lang == "{each}"' for each in langs] == [filter_]
    assert batch.results[3].error.reason == "INVALID_FILTER"


async def test_an_answer_is_cached_under_its_filter() -> None:
    route = IndexRoute("rivers", "uid", 384, "m@1", None, 1, 2, ())  # type: ignore[arg-type]
    keys = {
        answer_key(search_request("rivers", QUESTION, filter=each), route, (1, 1), ("m@1",), 20)
        for each in ("", "open", "!open")
    }
    assert len(keys) == 3


async def test_contexts_are_made_of_what_matches(client: AsyncClient) -> None:
    found = await client.retrieve_context("rivers", QUESTION, filter='lang == "fr"')
    assert found.contexts
    assert {each.metadata["lang"] for each in found.contexts} == {"fr"}


async def test_an_explanation_says_how_many_match(client: AsyncClient) -> None:
    passages = await client.search("rivers", QUESTION, top_k=1_000, rerank=False)
    holding = [hit for hit in passages.hits if hit.metadata.fields["open"].bool_value]
    response = await client.search("rivers", QUESTION, filter="open", explain=True)
    shards = response.explanation.shards
    assert sum(each.passages_matching for each in shards) == len(holding)
    assert all(each.passages_matching < each.passages for each in shards)
    plain = await client.search("rivers", QUESTION, explain=True)
    assert not any(each.HasField("passages_matching") for each in plain.explanation.shards)


@pytest.mark.parametrize(
    ("filter_", "said"),
    [
        ("lagn == 'x'", "the index declares lang:string"),
        ("year == 'x'", "type integer"),
        ("year ==", "character 8"),
        ("lang.matches('x')", "not supported"),
        ("x" * 5_000, "4,096"),
    ],
)
async def test_a_bad_filter_is_refused_by_name(
    client: AsyncClient, filter_: str, said: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=said) as caught:
        await client.search("rivers", QUESTION, filter=filter_)
    assert caught.value.reason == "INVALID_FILTER"
    assert list(caught.value.fields) == ["filter"]


async def test_a_document_with_a_value_of_another_type_fails_alone(client: AsyncClient) -> None:
    wrong = {"id": "wrong", "text": "x", "metadata": {"year": "last"}}
    good = {"id": "good", "text": "x", "metadata": {"year": 1}}
    summary = await client.upsert("rivers", [wrong, good])
    (failure,) = summary.failures
    assert failure.document_id == "wrong"
    assert "document.metadata.year" in failure.message
    assert "whole number" in failure.message
    version = summary.table_version
    assert await ids(client, "year == 1", min_table_version=version) == {"good"}
    version = await client.delete("rivers", ["good"])
    assert await ids(client, "year == 1", min_table_version=version) == set()


async def test_what_is_written_is_filtered_at_its_version(client: AsyncClient) -> None:
    document = {"id": "moving", "text": "A river that moves.", "metadata": {"year": 1}}
    for year in range(1, 4):
        document["metadata"] = {"year": year}
        summary = await client.upsert("rivers", [document])
        version = summary.table_version
        for each in range(1, 4):
            found = await ids(client, f"year == {each}", min_table_version=version)
            assert ("moving" in found) == (each == year)
    await client.delete("rivers", ["moving"])


async def test_fields_are_described_and_checked(client: AsyncClient) -> None:
    found = await client.describe_index("rivers")
    assert {each.name: str(each.kind) for each in read_fields(found.index.fields)} == FIELDS
    assert field_messages(read_fields(found.index.fields)) == list(found.index.fields)
    with pytest.raises(InvalidArgumentError) as caught:
        await client.create_index("bad", fields={"in": "string"})
    assert list(caught.value.fields) == ["fields[0].name"]
    with pytest.raises(ValueError, match="'text' is no type"):
        await client.create_index("bad", fields={"lang": "text"})
    plain = await client.create_index("plain")
    assert not plain.fields
    with pytest.raises(InvalidArgumentError, match="declares none"):
        await client.search("plain", QUESTION, filter="open")


async def test_fields_are_there_after_a_restart(tmp_path: Path) -> None:
    async with real_cluster(tmp_path) as cluster, client_of(cluster) as first:
        await first.create_index("rivers", fields=FIELDS)
        await first.upsert("rivers", documents(count=12))
    async with real_cluster(tmp_path) as cluster, client_of(cluster) as again:
        async with asyncio.timeout(60):
            while sum([each.document_count async for each in again.list_indexes()]) < 12:
                await asyncio.sleep(0.05)
        expected = {
            each["id"] for each in documents(count=12) if each["metadata"].get("lang") == "en"
        }
        assert await ids(again, 'lang == "en"') == expected
