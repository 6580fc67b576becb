"""What does the broker do when encoder, reranker, writer or controller fail, or all is too much?

fault                         promise
reranker away, failing, slow  the order of the dense scores, and a cut that says so
encoder fails once            tried again
encoder away                  ENCODER_UNAVAILABLE, before the deadline
writer away                   WRITER_UNAVAILABLE, before the deadline
controller away               CONTROLLER_UNAVAILABLE, before the deadline; status without it
more searches than allowed    RESOURCE_EXHAUSTED with a delay, at once
"""

from __future__ import annotations

import asyncio

import grpc
import pytest
from shoal.internal.v1.topology_pb2 import GetControllerStatusResponse
from shoal.rpc.errors import ServiceError
from shoal.v1.cluster_pb2 import (
    GetClusterStatusRequest,
    InstanceState,
    Scale,
    ScaleClusterRequest,
)
from shoal.v1.documents_pb2 import DeleteDocumentsRequest, Document, GetDocumentsRequest
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import CreateIndexRequest, DropIndexRequest
from shoal.v1.search_pb2 import CacheState, Stage

from tests.harness.broker import ONE_SERVER, Rig, ids_of, rigged
from tests.harness.cluster import until
from tests.harness.stand_ins import RERANKER_MODEL, StandInController, StandInEncoder, unavailable

BUDGET_S = 2.0


async def test_reranking_changes_the_order_and_says_who_did_it() -> None:
    async with rigged() as rig:
        response = await rig.search("captain 29", rerank=True, explain=True)
        assert response.coverage.complete
        assert response.hits[0].document_id == "doc-29"
        assert response.explanation.reranker_model == RERANKER_MODEL
        assert all(hit.HasField("rerank_score") for hit in response.hits)
        assert [hit.score for hit in response.hits] == sorted(
            (hit.score for hit in response.hits), reverse=True
        )
        (call,) = rig.reranker.calls
        assert len(call[0].passages) == 50
        assert call[0].passages[0].startswith("Title of doc-")


@pytest.mark.parametrize("fault", ["fails", "dead", "hangs"])
async def test_without_a_reranker_the_dense_order_stands(fault: str) -> None:
    """At once, or after what a search waits for it: not only at the end of the caller's time."""
    async with rigged(rerank_s=0.3) as rig:
        if fault == "fails":
            rig.reranker.faults.fails = unavailable()
        elif fault == "dead":
            await rig.cluster.kill("reranker-0")
        else:
            rig.reranker.faults.gate.clear()
        for _ in range(2):
            response = await rig.search(rerank=True, timeout_s=20.0)
            assert ids_of(response) == rig.best()
            assert not response.coverage.complete
            (cut,) = response.coverage.cuts
            assert cut.stage == Stage.STAGE_RERANK
            assert cut.reason in {"RERANKER_UNAVAILABLE", "DEADLINE_SHARE_SPENT"}
            assert not response.hits[0].HasField("rerank_score")
        assert max(rig.reranker.budgets_s, default=0.0) < 1.0  # Not the 20 s that the caller has.


async def test_a_cluster_that_has_no_reranker_misses_none() -> None:
    async with rigged(reranker=False) as rig:
        response = await rig.search(rerank=True)
        assert response.coverage.complete
        assert ids_of(response) == rig.best()


async def test_an_encoder_that_fails_once_is_asked_again() -> None:
    async with rigged() as rig:
        rig.encoder.faults.failures = [unavailable()]
        assert ids_of(await rig.search()) == rig.best()
        assert len(rig.encoder.calls) == 2


async def test_another_encoder_takes_over() -> None:
    async with rigged() as rig:
        await rig.cluster.add(StandInEncoder("encoder-1"))
        await rig.cluster.publish()
        await rig.cluster.kill("encoder-0")
        for number in range(6):
            assert (await rig.search(f"whale {number}")).coverage.complete


@pytest.mark.parametrize("fault", ["dead", "hangs", "absent"])
async def test_no_encoder(fault: str) -> None:
    async with rigged(encoder=fault != "absent") as rig:
        if fault == "dead":
            await rig.cluster.kill("encoder-0")
        rig.encoder.faults.gate.clear()
        with pytest.raises(ServiceError) as caught:
            await rig.search(timeout_s=BUDGET_S)
        # The broker's words: a timer of gRPC's would have said DEADLINE_EXCEEDED.
        assert caught.value.reason == Reason.REASON_ENCODER_UNAVAILABLE


async def test_an_encoder_of_another_model_is_refused() -> None:
    async with rigged() as rig:
        rig.encoder.model = "other@2"
        with pytest.raises(ServiceError, match="other@2") as caught:
            await rig.search()
        assert caught.value.reason == Reason.REASON_MODEL_MISMATCH


async def test_identical_queries_make_one_call_to_the_encoder() -> None:
    async with rigged() as rig:
        rig.encoder.faults.gate.clear()
        searches = [asyncio.create_task(rig.search(explain=True)) for _ in range(8)]
        await until(lambda: rig.under_way == 8)
        rig.encoder.faults.gate.set()
        found = await asyncio.gather(*searches)
        assert [text for call in rig.encoder.calls for text in call] == ["whale ship"]
        assert all(ids_of(each) == rig.best() for each in found)
        shared = [each.explanation.cache == CacheState.CACHE_STATE_SHARED for each in found]
        assert sum(shared) == 7


async def test_an_answer_that_was_cut_for_lack_of_time_is_not_shared_with_those_who_have_it() -> (
    None
):
    async with rigged(rerank_s=1.0) as rig:
        rig.reranker.faults.gate.clear()
        hurried = asyncio.create_task(rig.search(rerank=True, timeout_s=5.0))
        await until(lambda: bool(rig.reranker.calls))
        patient = asyncio.create_task(rig.search(rerank=True, timeout_s=20.0))
        await until(lambda: rig.under_way == 2)
        assert not (await hurried).coverage.complete
        rig.reranker.faults.gate.set()
        assert (await patient).coverage.complete


async def test_queries_that_wait_for_the_encoder_share_its_next_call() -> None:
    async with rigged() as rig:
        rig.encoder.faults.gate.clear()
        searches = [asyncio.create_task(rig.search(f"reef {number}")) for number in range(9)]
        await until(lambda: rig.under_way == 9)
        rig.encoder.faults.gate.set()
        await asyncio.gather(*searches)
        assert len(rig.encoder.calls) <= 3


async def test_more_than_is_allowed_is_refused_with_a_delay() -> None:
    async with rigged(max_concurrent=2) as rig:
        rig.encoder.faults.gate.clear()
        taken = [asyncio.create_task(rig.search(f"gull {number}")) for number in range(2)]
        await until(lambda: rig.under_way == 2)
        with pytest.raises(ServiceError) as caught:
            await rig.search("one too many")
        assert caught.value.reason == Reason.REASON_OVERLOADED
        assert caught.value.failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.failure.retry_delay_s == pytest.approx(0.25)
        rig.encoder.faults.gate.set()
        await asyncio.gather(*taken)
        assert await rig.search("there is room again")


async def refused_in_time(rig: Rig, method: object, request: object) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await rig.caller.call(method, request, BUDGET_S)
    return caught.value


async def test_no_writer() -> None:
    async with rigged(ONE_SERVER) as rig:
        caller = rig.caller
        errors = await asyncio.gather(
            *(
                refused_in_time(rig, method, request)
                for method, request in (
                    (
                        caller.documents.DeleteDocuments,
                        DeleteDocumentsRequest(index="books", document_ids=["a"]),
                    ),
                    (caller.indexes.CreateIndex, CreateIndexRequest(name="more")),
                    (caller.indexes.DropIndex, DropIndexRequest(name="books")),
                )
            )
        )
        assert {error.reason for error in errors} == {Reason.REASON_WRITER_UNAVAILABLE}
        with pytest.raises(ServiceError) as caught:
            await caller.upsert("books", [Document(id="a", text="b")])
        assert caught.value.reason == Reason.REASON_WRITER_UNAVAILABLE


async def test_documents_cannot_be_read_without_their_shard() -> None:
    async with rigged() as rig:
        for id_ in rig.shards:
            await rig.cluster.kill(id_)
        request = GetDocumentsRequest(index="books", document_ids=["doc-1", "doc-2"])
        error = await refused_in_time(rig, rig.caller.documents.GetDocuments, request)
        assert error.reason == Reason.REASON_SHARD_UNAVAILABLE


@pytest.mark.parametrize("fault", ["absent", "dead", "hangs"])
async def test_no_controller(fault: str) -> None:
    async with rigged() as rig:
        controller = StandInController()
        if fault != "absent":
            await rig.cluster.add(controller)
            await rig.cluster.publish()
        if fault == "dead":
            await rig.cluster.kill("controller-0")
        controller.faults.gate.clear()
        cluster = rig.caller.cluster
        status = await rig.caller.call(
            cluster.GetClusterStatus, GetClusterStatusRequest(), BUDGET_S
        )
        assert not status.whole
        assert "controller" in status.problems[0]
        states = {each.id: each.state for each in status.instances}
        assert states["broker-0"] == InstanceState.INSTANCE_STATE_READY
        if fault != "absent":
            assert states["controller-0"] == InstanceState.INSTANCE_STATE_UNAVAILABLE
        request = ScaleClusterRequest(scale=Scale(replicas=2))
        error = await refused_in_time(rig, cluster.ScaleCluster, request)
        assert error.reason == Reason.REASON_CONTROLLER_UNAVAILABLE


async def test_the_controller_is_asked_while_it_is_there() -> None:
    async with rigged() as rig:
        controller = StandInController()
        await rig.cluster.add(controller)
        await rig.cluster.publish()
        controller.status = GetControllerStatusResponse(topology=rig.cluster.topology(), whole=True)
        cluster = rig.caller.cluster
        status = await rig.caller.call(cluster.GetClusterStatus, GetClusterStatusRequest())
        assert status.whole
        assert status.epoch == rig.cluster.epoch
        request = ScaleClusterRequest(scale=Scale(replicas=2))
        assert (await rig.caller.call(cluster.ScaleCluster, request)).scale.replicas == 2
        controller.faults.failures = [
            ServiceError(Reason.REASON_INVALID_FIELD, "scale.replicas: is too many")
        ]
        with pytest.raises(ServiceError, match="too many"):
            await rig.caller.call(cluster.ScaleCluster, request)
