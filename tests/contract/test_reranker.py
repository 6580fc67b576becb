"""Does the reranker, with the bundle that ships, keep what its proto says? Real gRPC and model."""

import asyncio
import contextlib
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from shoal.bundle import BundleFileMissingError, BundleInvalidError, load_bundle
from shoal.internal.v1.reranker_pb2 import RerankItem, RerankRequest
from shoal.internal.v1.reranker_pb2_grpc import RerankerServiceStub
from shoal.internal.v1.topology_pb2 import PublishTopologyRequest, Topology
from shoal.internal.v1.topology_pb2_grpc import TopologyServiceStub
from shoal.reranker.config import RerankerSettings
from shoal.reranker.server import RerankerService
from shoal.rpc.arrays import FLOAT32
from shoal.rpc.channels import open_channel
from shoal.rpc.errors import service_error_of
from shoal.rpc.server import ServiceHost
from shoal.v1.errors_pb2 import Reason

BUNDLES = Path(__file__).resolve().parents[2] / "deploy" / "bundles"
BUNDLE = BUNDLES / "reranker-minilm-l12-int8"
ENCODER = BUNDLES / "all-minilm-l6-v2-int8"

QUESTION = "Which team won Super Bowl 50?"
PASSAGES = [
    "Chloroplasts turn light into chemical energy.",
    "Super Bowl: The Denver Broncos defeated the Carolina Panthers to win Super Bowl 50.",
    "Warsaw lies on the Vistula.",
]


@contextlib.asynccontextmanager
async def served(bundle=BUNDLE, **settings):
    service = RerankerService(RerankerSettings(bundle=bundle, **settings), "reranker-0")
    host = ServiceHost(service, "127.0.0.1:0")
    async with open_channel(await host.start()) as channel:
        yield channel
    await host.stop(0)


@pytest.fixture
async def channel():
    async with served() as channel:
        yield channel


def item(query, passages, dense=None):
    dense = [0.0] * len(passages) if dense is None else dense
    return RerankItem(
        query=query, passages=passages, dense_scores=np.array(dense, FLOAT32).tobytes()
    )


async def rerank(channel, *items, timeout=60):
    return await RerankerServiceStub(channel).Rerank(RerankRequest(items=items), timeout=timeout)


def scores_of(scores):
    return (
        np.frombuffer(scores.rerank_scores, FLOAT32),
        np.frombuffer(scores.scores, FLOAT32),
    )


async def test_the_passage_that_answers_comes_first(channel):
    answer = await rerank(channel, item(QUESTION, PASSAGES))
    scores, blended = scores_of(answer.items[0])
    assert scores.argmax() == blended.argmax() == 1
    assert answer.model.startswith("reranker-minilm-l12-int8@")


async def test_scores_are_blended_as_the_card_says(channel):
    dense = [0.9, -0.4, 0.1]
    answer = await rerank(channel, item(QUESTION, PASSAGES, dense))
    scores, blended = scores_of(answer.items[0])
    weight = load_bundle(BUNDLE).card.blend.weight
    np.testing.assert_allclose(blended, np.array(dense) + weight * scores, atol=1e-5)


async def test_questions_of_one_call_are_scored_as_if_each_came_alone(channel):
    items = [item(QUESTION, PASSAGES), item("Where does Warsaw lie?", PASSAGES[::-1] * 20)]
    together = await rerank(channel, *items)
    for each, scores in zip(items, together.items, strict=True):
        alone, _ = scores_of((await rerank(channel, each)).items[0])
        shared, _ = scores_of(scores)
        # int8 scales its activations by batch, so scores move a little with it.
        spread = np.nanmax(alone) - np.nanmin(alone)
        np.testing.assert_allclose(shared, alone, atol=0.15 * spread)


async def test_the_first_passages_are_read_and_the_others_follow(channel):
    read = load_bundle(BUNDLE).card.blend.read
    dense = np.linspace(0.9, 0.5, read + 4).tolist()
    passages = [f"{PASSAGES[0]} {number}" for number in range(read + 3)] + [PASSAGES[1]]
    scores, blended = scores_of((await rerank(channel, item(QUESTION, passages, dense))).items[0])
    assert np.isnan(scores).tolist() == [False] * read + [True] * 4
    assert blended[read:].max() <= blended[:read].min()


async def test_the_company_of_the_best_lifts_a_passage(channel):
    # The second and third are as good, but the third resembles the first.
    near = np.eye(3, dtype=FLOAT32)
    near[0, 2] = near[2, 0] = 0.9
    asked = item(QUESTION, [PASSAGES[1], PASSAGES[0], PASSAGES[0]], [0.9, 0.5, 0.5])
    plain, blended = scores_of((await rerank(channel, asked)).items[0])
    assert blended[1] == pytest.approx(blended[2], abs=1e-5)
    asked.similarities = near.tobytes()
    scores, blended = scores_of((await rerank(channel, asked)).items[0])
    np.testing.assert_allclose(scores, plain, atol=1e-5)
    assert blended[0] > blended[2] > blended[1]


@pytest.mark.parametrize(
    "numbers", [[1.0] * 8, [1.0] * 8 + [np.nan]], ids=["too few", "not a number"]
)
async def test_similarities_that_make_no_sense_are_refused(channel, numbers):
    asked = item(QUESTION, PASSAGES)
    asked.similarities = np.array(numbers, FLOAT32).tobytes()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rerank(channel, asked)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "similarities" in caught.value.details()


async def test_any_text_is_scored(channel):
    passages = ["", "\0\x07", "x" * 100_000, "语言 ไทย العربية हिन्दी", "🐟"]
    scores, blended = scores_of((await rerank(channel, item("", passages))).items[0])
    assert np.isfinite(scores).all()
    assert np.isfinite(blended).all()


@pytest.mark.parametrize(
    ("items", "field"),
    [
        ([], "items"),
        ([item("q", ["p"] * 201)], "items[0].passages"),
        ([item("q", ["p"]), item("q", ["p", "r"], [0.0])], "items[1].dense_scores"),
    ],
)
async def test_wrong_requests_are_refused(channel, items, field):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rerank(channel, *items)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert list(service_error_of(caught.value).failure.fields) == [field]


async def test_overload_is_refused_and_a_passed_deadline_is_said_so():
    async with served(queue_tokens=500) as channel:
        long = item(QUESTION, ["many words " * 60] * 200)
        calls = [asyncio.ensure_future(rerank(channel, long)) for _ in range(3)]
        late = asyncio.ensure_future(rerank(channel, long, timeout=0.1))
        results = await asyncio.gather(*calls, late, return_exceptions=True)
        errors = [each for each in results if isinstance(each, grpc.aio.AioRpcError)]
        reasons = {service_error_of(each).reason for each in errors[:-1]}
        assert reasons == {Reason.REASON_OVERLOADED}
        assert service_error_of(errors[-1]).reason in {
            Reason.REASON_DEADLINE_EXCEEDED,
            Reason.REASON_OVERLOADED,
        }


async def test_it_tells_the_controller_what_it_serves(channel):
    answer = await TopologyServiceStub(channel).PublishTopology(
        PublishTopologyRequest(topology=Topology(epoch=4), instance_id="reranker-0"), timeout=20
    )
    assert (answer.epoch, answer.dimension, answer.problem) == (4, 0, "")
    assert answer.model == load_bundle(BUNDLE).model


async def test_a_missing_bundle_or_another_kind_keeps_it_from_starting(tmp_path):
    with pytest.raises(BundleFileMissingError):
        async with served(tmp_path / "none"):
            pass
    with pytest.raises(BundleInvalidError, match="not a reranker"):
        async with served(ENCODER):
            pass


async def test_it_starts_alone_from_the_command_line():
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shoal.reranker", "--bundle", str(BUNDLE)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            address = (await process.stdout.readline()).decode().strip()
            assert address, (await process.stderr.read()).decode()
            async with open_channel(address) as channel:
                assert (await rerank(channel, item(QUESTION, PASSAGES))).items
            process.terminate()
            _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
