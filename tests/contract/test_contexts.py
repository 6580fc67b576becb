"""Are hits gathered by document and glued into contexts, over gRPC, of real texts?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio
from shoal.client import AsyncClient, InvalidArgumentError
from shoal.rpc.tokens import rough_token_count

from tests.harness.real import client_of, real_cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")

CORPUS = Path(__file__).resolve().parents[2] / "deploy" / "corpora" / "xquad-en"
QUESTION = "Who played in the Super Bowl?"
DOCUMENT_COUNT = 12


def articles() -> list[dict[str, str]]:
    """Paragraphs of Wikipedia, put together to long documents."""
    found: dict[str, list[str]] = {}
    for line in (CORPUS / "corpus.jsonl").read_text("utf-8").splitlines():
        paragraph = json.loads(line)
        found.setdefault(paragraph["title"], []).append(paragraph["text"])
    return [
        {"id": f"article-{number}", "title": title, "text": "\n\n".join(texts)}
        for number, (title, texts) in enumerate(list(found.items())[:DOCUMENT_COUNT])
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncClient]:
    data = tmp_path_factory.mktemp("data")
    settings = {"passage_tokens": 60, "passage_overlap_tokens": 20}
    async with real_cluster(data, writer=settings) as cluster, client_of(cluster) as client:
        await client.create_index("articles")
        summary = await client.upsert("articles", articles())
        assert summary.passage_count > 5 * DOCUMENT_COUNT
        await client.search("articles", "x", min_table_version=summary.table_version)
        yield client


async def test_a_document_comes_back_whole_though_its_passages_overlap(client: AsyncClient) -> None:
    sources = {each["id"]: each["text"] for each in articles()}
    found = await client.get("articles", list(sources))
    assert {each.id: each.text for each in found.documents} == sources
    spans = [list(each.passages) for each in found.documents]
    assert any(after.start < before.end for each in spans for before, after in pairwise(each))


@pytest.mark.parametrize("rerank", [False, True])
@pytest.mark.parametrize("per_document", [1, 3])
async def test_hits_are_gathered_by_document(
    client: AsyncClient, per_document: int, rerank: bool
) -> None:
    response = await client.search(
        "articles", QUESTION, top_k=8, hits_per_document=per_document, rerank=rerank
    )
    counts = Counter(hit.document_id for hit in response.hits)
    assert len(counts) == 8
    assert max(counts.values()) <= per_document
    assert (per_document == 1) == (len(response.hits) == 8)
    scores = [hit.score for hit in response.hits]
    assert scores == sorted(scores, reverse=True)
    assert all(hit.text for hit in response.hits)
    # The first candidates are read; the others have no score of the reranker's.
    assert any(hit.HasField("rerank_score") for hit in response.hits) == rerank
    assert response.coverage.complete


async def test_each_document_is_stood_for_by_its_best_passage(client: AsyncClient) -> None:
    everything = await client.search("articles", QUESTION, top_k=1_000, rerank=False)
    best = {hit.document_id: hit for hit in reversed(everything.hits)}
    grouped = await client.search(
        "articles", QUESTION, top_k=1_000, rerank=False, hits_per_document=1, omit_text=True
    )
    assert len(grouped.hits) == len(best) == DOCUMENT_COUNT
    assert {hit.document_id: hit.passage for hit in grouped.hits} == {
        id_: hit.passage for id_, hit in best.items()
    }
    assert not any(hit.text for hit in grouped.hits)


async def test_contexts_keep_their_budget_and_cite_what_they_hold(client: AsyncClient) -> None:
    sources = {each["id"]: each["text"] for each in articles()}
    response = await client.retrieve_context(
        "articles", QUESTION, token_budget=400, top_k=6, explain=True
    )
    assert response.contexts
    assert response.token_count == sum(each.token_count for each in response.contexts) <= 400
    assert response.coverage.complete
    assert response.explanation.timings
    cited = 0
    for context in response.contexts:
        source = sources[context.document_id]
        assert context.text == source[context.span.start : context.span.end]
        assert context.token_count == rough_token_count(context.text)
        for citation in context.citations:
            assert context.span.start <= citation.span.start < citation.span.end <= context.span.end
        cited += len(context.citations)
    assert cited + response.hits_left_out == 6
    alone = await client.retrieve_context(
        "articles", QUESTION, token_budget=4_000, neighbours=0, top_k=6, rerank=False
    )
    wide = await client.retrieve_context(
        "articles", QUESTION, token_budget=4_000, neighbours=2, top_k=6, rerank=False
    )
    assert wide.token_count > alone.token_count


async def test_what_cannot_be_is_refused_by_name(client: AsyncClient) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        await client.search("articles", QUESTION, hits_per_document=101)
    assert "group.per_document" in raised.value.fields
    with pytest.raises(InvalidArgumentError) as raised:
        await client.retrieve_context("articles", QUESTION, token_budget=3)
    assert "token_budget" in raised.value.fields
    with pytest.raises(InvalidArgumentError) as raised:
        await client.retrieve_context("articles", QUESTION, neighbours=21)
    assert "neighbours" in raised.value.fields
