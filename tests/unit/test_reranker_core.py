"""Does the reranker check what it is asked, share batches between questions, and blend each alone?

The model is scripted, for its faults; tests/contract/test_reranker.py has a real one.
"""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from shoal.internal.v1.reranker_pb2 import RerankItem, RerankRequest
from shoal.internal.v1.topology_pb2 import PublishTopologyResponse
from shoal.reranker.config import RerankerSettings
from shoal.reranker.server import MAX_PASSAGE_BYTES, MAX_QUERY_BYTES, RerankerService
from shoal.rpc.errors import InvalidFieldError, ServiceError
from shoal.v1.errors_pb2 import Reason


class Model:
    """Scores a passage by how often it holds the question."""

    model = "scripted@1"

    def __init__(self):
        self.batches = []
        self.error = None

    def costs(self, pairs):
        return [len(query) + len(passage) + 1 for query, passage in pairs]

    def score(self, pairs):
        if self.error:
            raise self.error
        self.batches.append(list(pairs))
        return np.array([passage.count(query) for query, passage in pairs], dtype=np.float32)

    def readable(self, dense_scores):
        return np.arange(len(dense_scores))

    def blend(self, rerank_scores, dense_scores, similarities):
        # Depends on all passages of a question, and on no other's.
        return (rerank_scores - rerank_scores.mean() + dense_scores).astype(np.float32)


class Call:
    def time_remaining(self):
        return 30.0


@pytest.fixture
def model():
    return Model()


@pytest.fixture
async def service(model):
    settings = RerankerSettings(bundle=Path("/nowhere"), batch_tokens=64)
    service = RerankerService(settings, "reranker-0", load=lambda _: model)
    await service.start()
    model.batches.clear()
    yield service
    await service.stop()


def item(query, passages, dense=None):
    dense = np.zeros(len(passages)) if dense is None else dense
    return RerankItem(query=query, passages=passages, dense_scores=np.array(dense, "<f4").tobytes())


async def rerank(service, *items):
    return await service.Rerank(RerankRequest(items=items), Call())


async def test_each_question_gets_its_own_scores_blended_alone(service):
    answer = await rerank(
        service, item("a", ["aa", "b", "a"], [0.5, 0.25, 0.0]), item("b", ["bbb"], [1.0])
    )
    scores = [
        (np.frombuffer(each.rerank_scores, "<f4").tolist(), np.frombuffer(each.scores, "<f4"))
        for each in answer.items
    ]
    assert [each for each, _ in scores] == [[2, 0, 1], [3]]
    assert scores[0][1].tolist() == [1.5, -0.75, 0.0]
    assert scores[1][1].tolist() == [1.0]
    assert answer.model == "scripted@1"


async def test_pairs_of_several_questions_share_batches(service, model):
    await rerank(service, item("q", ["x"] * 3), item("r", ["y"] * 3))
    assert len(model.batches) == 1
    assert {query for query, _ in model.batches[0]} == {"q", "r"}


async def test_large_requests_are_split_and_put_together_again(service, model):
    passages = ["a" * (at % 50) for at in range(200)]
    answer = await rerank(service, item("a", passages))
    got = np.frombuffer(answer.items[0].rerank_scores, "<f4")
    assert got.tolist() == [at % 50 for at in range(200)]
    assert len(model.batches) > 20


@pytest.mark.parametrize(
    ("items", "field"),
    [
        ([], "items"),
        ([item("q", ["p"])] * 65, "items"),
        ([item("q", [])], "items[0].passages"),
        ([item("q", ["p"]), item("q", ["p"] * 201)], "items[1].passages"),
        ([item("q", ["p", "r"], [1.0])], "items[0].dense_scores"),
        ([RerankItem(query="q", passages=["p"], dense_scores=b"xyz")], "items[0].dense_scores"),
        ([item("q", ["p"], [np.nan])], "items[0].dense_scores"),
        ([item("语" * (MAX_QUERY_BYTES // 3 + 1), ["p"])], "items[0].query"),
        ([item("q", ["p", "x" * (MAX_PASSAGE_BYTES + 1)])], "items[0].passages[1]"),
    ],
)
async def test_wrong_requests_are_refused_by_field(service, items, field):
    with pytest.raises(InvalidFieldError) as caught:
        await rerank(service, *items)
    assert list(caught.value.failure.fields) == [field]


async def test_a_failing_model_is_internal_is_described_and_recovers(service, model):
    model.error = RuntimeError("no memory")
    with pytest.raises(ServiceError, match="no memory") as caught:
        await rerank(service, item("q", ["p"]))
    assert caught.value.reason == Reason.REASON_INTERNAL
    model.error = None

    def problem():
        response = PublishTopologyResponse()
        service._describe(response)
        return response.problem

    assert "no memory" in problem()
    async with asyncio.timeout(30):
        while problem():
            await asyncio.sleep(0.002)
    assert len((await rerank(service, item("q", ["p"]))).items) == 1


async def test_draining_refuses_what_is_new(service):
    await service.drain()
    with pytest.raises(ServiceError) as caught:
        await rerank(service, item("q", ["p"]))
    assert caught.value.reason == Reason.REASON_DRAINING
