"""What if a part fails only halfway: some shards, a replica behind, an answer lost on its way back?

fault                                          promise
a replica has only some of its shards ready    the other replica's complete answer
no replica has all of them                     the fullest answer, soon, and what is missing
another replica has not applied the row yet    the text all the same
a server falls back behind the probe's word    `min_table_version` is kept
a server was killed and is back in a moment    a complete answer, a little later
... and stays away                             nobody waits for it for long
the writer's answer is lost                    a drop succeeds all the same
a query's filter is refused                    the others of its call are answered
many deep queries at once                      no call's answer is too large to be sent
the same fault again and again                 a few attempts, not one after the other
the reranker hangs                             not every search waits for it
every instance of a role is overloaded         the caller is told at once, and when to come back
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from shoal.broker.fan_out import MAX_TEXTS
from shoal.broker.replicas import NEVER_S
from shoal.broker.targets import TRIES
from shoal.filters.fields import Field, Kind
from shoal.internal.v1.shard_pb2 import FetchPassagesRequest, FetchPassagesResponse, Fill
from shoal.internal.v1.writer_pb2 import DropTableRequest, DropTableResponse
from shoal.internal.v1.writer_pb2_grpc import (
    WriterServiceServicer,
    add_WriterServiceServicer_to_server,
)
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.v1.cluster_pb2 import Role
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import DropIndexRequest
from shoal.v1.search_pb2 import Hybrid, Stage

from tests.harness.broker import ONE_SERVER, TWO_REPLICAS, TWO_SERVERS, Rig, ids_of, rigged
from tests.harness.cluster import Groups, until
from tests.harness.stand_ins import StandIn, StandInShardServer, unavailable

VECTORS_ALONE = Hybrid(disabled=True)
ONE_OF_TWO_IS_COPIED: Groups = [
    ((0,), ("shard-server-0", "shard-server-1")),
    ((1,), ("shard-server-2",)),
]


def prefer(rig: Rig, server_id: str) -> None:
    """Make the broker believe that one replica is by far the fastest."""
    for target in rig.broker._targets[Role.ROLE_SHARD_SERVER].all():
        target.health.latency_s = 1e-6 if target.id == server_id else 10.0


@pytest.mark.parametrize("preferred", ["shard-server-0", "shard-server-1"])
async def test_half_an_answer_is_not_taken_while_another_replica_has_all(preferred: str) -> None:
    async with rigged(TWO_REPLICAS) as rig:
        rig.shards["shard-server-0"].unready = {1}
        prefer(rig, preferred)
        for number in range(6):
            response = await rig.search(f"whale {number}", bypass_cache=True)
            assert response.coverage.complete
            assert ids_of(response) == rig.best(f"whale {number}")


@pytest.mark.parametrize("other", ["half", "dead"])
async def test_the_fullest_answer_is_taken_if_no_replica_has_all(other: str) -> None:
    async with rigged(TWO_REPLICAS) as rig:
        rig.shards["shard-server-0"].unready = {1}
        if other == "dead":
            await rig.cluster.kill("shard-server-1")
        else:
            rig.shards["shard-server-1"].unready = {1}
        response = await rig.search(bypass_cache=True, timeout_s=30.0)
        # Nobody is asked again and again until the deadline.
        assert all(len(server.calls) <= 2 for server in rig.shards.values())
        assert ids_of(response) == rig.best(without=1)
        assert response.coverage.shards_searched == 1
        assert any("shard 1" in each.message for each in response.coverage.cuts)


async def test_text_is_read_where_it_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica leaves out rows that it has not applied: it must not be asked for them."""
    right = StandInShardServer.FetchPassages

    async def fetch(
        self: StandInShardServer, request: FetchPassagesRequest, context: Any
    ) -> FetchPassagesResponse:
        if self.follower.instance_id == "shard-server-1":
            return FetchPassagesResponse()
        found: FetchPassagesResponse = await right(self, request, context)
        return found

    monkeypatch.setattr(StandInShardServer, "FetchPassages", fetch)
    async with rigged(ONE_OF_TWO_IS_COPIED) as rig:
        searches = [rig.search(f"whale {at}", bypass_cache=True, explain=True) for at in range(80)]
        found = await asyncio.gather(*searches)
        of_zero = [
            each
            for each in found
            if "shard-server-0" in {state.shard_server for state in each.explanation.shards}
        ]
        assert of_zero
        assert {len(each.hits) for each in of_zero} == {10}


async def test_an_answer_is_never_behind_what_was_asked_for() -> None:
    """The probe has seen version 5; since then the server has come back with version 3."""
    async with rigged(ONE_SERVER, probe_interval_s=0.5) as rig:
        server = rig.shards["shard-server-0"]
        rig.library.version = 5
        route = rig.broker._routes().index("books")
        await until(lambda: rig.broker._probe.reached(route, 5))
        server.describes.gate.clear()
        server.version = 3
        search = asyncio.create_task(rig.search(min_table_version=5))
        await until(lambda: len(server.calls) > 1)
        server.version = None
        assert (await search).table_version == 5


async def test_a_server_that_was_killed_is_waited_for() -> None:
    async with rigged(TWO_SERVERS) as rig:
        await rig.search()
        address = rig.cluster.instances["shard-server-1"].address
        await rig.cluster.kill("shard-server-1")
        search = asyncio.create_task(rig.search(timeout_s=30.0, bypass_cache=True))
        target = rig.broker._targets[Role.ROLE_SHARD_SERVER].get("shard-server-1")
        assert target is not None
        await until(lambda: target.health.down_since_s != NEVER_S)
        await rig.cluster.add(rig.shards["shard-server-1"], listen=address)
        response = await search
        assert response.coverage.complete
        assert ids_of(response) == rig.best()


async def test_an_outage_that_lasts_stalls_nobody_for_long() -> None:
    async with rigged(TWO_SERVERS, restart_s=1.0, straggler_s=0.1) as rig:
        await rig.search()
        await rig.cluster.kill("shard-server-1")
        for number in range(4):
            response = await rig.search(f"gull {number}", timeout_s=60.0)
            assert response.coverage.shards_searched == 1
        # The patience counts from the first failure, and not from that of each search.
        fan_out = rig.broker._search._pipeline.shards
        away = [each for each in rig.broker._routes().index("books").groups if 1 in each.shards]
        assert fan_out._restart_deadline(away, Deadline.after(60.0)).passed


async def test_an_explanation_names_the_shards_that_did_not_answer() -> None:
    async with rigged(TWO_SERVERS) as rig:
        assert (await rig.search()).coverage.complete
        await rig.cluster.kill("shard-server-1")
        response = await rig.search(explain=True, timeout_s=2.0)
        missing = next(each for each in response.explanation.shards if each.shard == 1)
        assert missing.shard_server == "shard-server-1"
        assert missing.table_version == 0
        assert missing.passages == len(rig.library.rows_of([1], 2))
        (cut,) = response.coverage.cuts
        assert cut.stage == Stage.STAGE_SEARCH


async def test_an_index_must_be_named() -> None:
    async with rigged(ONE_SERVER) as rig:
        with pytest.raises(ServiceError) as caught:
            await rig.search(index="")
        assert caught.value.reason == Reason.REASON_INVALID_FIELD
        assert list(caught.value.failure.fields) == ["index"]


class ForgetfulWriter(StandIn, WriterServiceServicer):
    """Drops tables, but its first answer is lost."""

    def __init__(self, *tables: str) -> None:
        super().__init__("writer-0")
        self.tables = set(tables)
        self.drops = 0

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        add_WriterServiceServicer_to_server(self, server)
        return ["shoal.internal.v1.WriterService"]

    async def DropTable(self, request: DropTableRequest, context: Any) -> DropTableResponse:
        self.drops += 1
        if request.name not in self.tables:
            raise ServiceError(Reason.REASON_INDEX_NOT_FOUND, "there is no such index")
        self.tables.remove(request.name)
        if self.drops == 1:
            raise unavailable("the answer is lost")
        return DropTableResponse(uid=f"uid-of-{request.name}")


async def test_a_drop_whose_answer_was_lost_is_a_drop() -> None:
    async with rigged(ONE_SERVER) as rig:
        writer = ForgetfulWriter("books")
        await rig.cluster.add(writer)
        await rig.cluster.publish()
        method, request = rig.caller.indexes.DropIndex, DropIndexRequest(name="books")
        drop = asyncio.create_task(rig.caller.call(method, request))
        await until(lambda: writer.drops == 2)
        rig.cluster.indexes.clear()
        await rig.cluster.publish()
        await drop
        with pytest.raises(ServiceError) as caught:
            await rig.caller.call(method, request)  # Now it really is not there.
        assert caught.value.reason == Reason.REASON_INDEX_NOT_FOUND


async def test_deep_queries_do_not_make_an_answer_too_large_to_send() -> None:
    async with rigged(ONE_SERVER) as rig:
        server = rig.shards["shard-server-0"]
        server.faults.gate.clear()
        deep = [
            asyncio.create_task(
                rig.search(f"whale {at}", top_k=1000, bypass_cache=True, hybrid=VECTORS_ALONE)
            )
            for at in range(12)
        ]
        light = [
            asyncio.create_task(
                rig.search(f"reef {at}", omit_text=True, bypass_cache=True, hybrid=VECTORS_ALONE)
            )
            for at in range(12)
        ]
        await until(lambda: sum(map(len, rig.encoder.calls)) == 24)
        server.faults.gate.set()
        assert all(len(each.hits) == 60 for each in await asyncio.gather(*deep))
        assert all(len(each.hits) == 10 for each in await asyncio.gather(*light))
        texts = [
            sum(k for k, fill in zip(call.top_k, call.fill, strict=True) if fill == Fill.FILL_TEXT)
            for call in server.calls
        ]
        assert max(texts) <= MAX_TEXTS
        assert sum(texts) == 12_000


async def test_a_filter_that_is_refused_fails_its_own_query_alone() -> None:
    async with rigged(ONE_SERVER, fields=[Field("year", Kind.INTEGER)]) as rig:
        server = rig.shards["shard-server-0"]
        server.refused_filter = "year < 3"
        server.faults.gate.clear()
        first = asyncio.create_task(rig.search("captain", bypass_cache=True))
        await until(lambda: len(server.calls) == 1)
        others = [
            asyncio.create_task(rig.search(f"whale {at}", filter=text, bypass_cache=True))
            for at, text in enumerate(("", "year < 2", "", "year < 3"))
        ]
        await until(lambda: sum(map(len, rig.encoder.calls)) == 5)
        server.faults.gate.set()
        assert len((await first).hits) == 10
        *answers, refusal = await asyncio.gather(*others, return_exceptions=True)
        # They did go together.
        assert max(call.queries.count for call in server.calls) > 1
        assert [len(each.hits) for each in answers] == [10, 10, 10]
        assert isinstance(refusal, ServiceError)
        assert refusal.reason == Reason.REASON_INVALID_FILTER


@pytest.mark.parametrize(
    "reason", [Reason.REASON_INTERNAL, Reason.REASON_CHECKSUM_MISMATCH, Reason.REASON_OVERLOADED]
)
async def test_a_fault_that_comes_back_is_met_a_few_times(reason: Reason.ValueType) -> None:
    """OVERLOADED without a delay is what gRPC says of an answer that is too large."""
    async with rigged(ONE_SERVER) as rig:
        server = rig.shards["shard-server-0"]
        server.faults.fails = ServiceError(reason, "a bug")
        with pytest.raises(ServiceError, match="a bug"):
            await rig.search(timeout_s=20.0)
        assert len(server.calls) == TRIES


@pytest.mark.parametrize("role", ["encoder", "shard server"])
async def test_an_overload_is_passed_on_at_once_with_its_delay(role: str) -> None:
    async with rigged(ONE_SERVER) as rig:
        stand_in = rig.encoder if role == "encoder" else rig.shards["shard-server-0"]
        stand_in.faults.fails = ServiceError(
            Reason.REASON_OVERLOADED, "too much to do", retry_delay_s=0.5
        )
        with pytest.raises(ServiceError, match="too much to do") as caught:
            await rig.search(timeout_s=30.0)
        assert caught.value.reason == Reason.REASON_OVERLOADED
        assert caught.value.failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.failure.retry_delay_s == pytest.approx(0.5)
        assert len(stand_in.calls) == 1


async def test_not_every_search_waits_for_a_reranker_that_hangs() -> None:
    async with rigged(ONE_SERVER, rerank_s=1.0) as rig:
        rig.reranker.faults.gate.clear()
        for number in range(2):
            await rig.search(f"whale {number}", rerank=True)
        calls = len(rig.reranker.calls)
        for number in range(20):
            response = await rig.search(f"gull {number}", rerank=True)
            (cut,) = response.coverage.cuts
            assert (cut.stage, cut.reason) == (Stage.STAGE_RERANK, "RERANKER_UNAVAILABLE")
        assert len(rig.reranker.calls) - calls < 10
        rig.reranker.faults.gate.set()
        async with asyncio.timeout(30):
            while not (await rig.search("island", rerank=True)).coverage.complete:
                await asyncio.sleep(0.05)
