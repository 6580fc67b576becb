"""How does a shard server answer calls? Check, wait for the version, search, fill, answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

import grpc
from shoal.internal.v1.shard_pb2 import (
    DESCRIPTOR,
    CountTermsRequest,
    CountTermsResponse,
    DescribeShardsRequest,
    DescribeShardsResponse,
    FetchDocumentsRequest,
    FetchDocumentsResponse,
    FetchPassagesRequest,
    FetchPassagesResponse,
    Fill,
    LayoutKey,
    SearchShardsRequest,
    SearchShardsResponse,
)
from shoal.internal.v1.shard_pb2_grpc import (
    ShardServiceServicer,
    add_ShardServiceServicer_to_server,
)
from shoal.internal.v1.topology_pb2 import PublishTopologyResponse, Topology
from shoal.lexical.analysis import Analyzer, analyzer_of
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.rpc.topology import RefusedTopologyError, TopologyFollower
from shoal.shard import answer, requests
from shoal.shard.admission import Admission, ProgressSignal
from shoal.shard.allocator import bound_heaps
from shoal.shard.config import ShardSettings
from shoal.shard.follow import IndexFollower
from shoal.shard.held import HeldLayout, LayoutId
from shoal.shard.holdings import Holdings
from shoal.shard.kernel import faiss
from shoal.shard.lexical_leg import words_of
from shoal.shard.search import Target
from shoal.table.errors import TableNotFoundError
from shoal.table.slots import shard_of, slots_of
from shoal.table.table import PassageTable
from shoal.v1.errors_pb2 import Reason

# Part of a call's budget that it may wait for a version: the rest is for its work and the way back.
_WAIT_SHARE: Final = 0.8
# Of the allocator's, beside one for each thread that searches: for whoever reads the table.
_FURTHER_HEAPS: Final = 2
# Calls that read from the table at once: reading waits for the disk, not for a core.
_READING_THREADS: Final = 4

_Context = grpc.aio.ServicerContext[Any, Any]
_Answer = TypeVar("_Answer")


class ShardService(ShardServiceServicer):
    """Serves ShardService for all shards that the topology gives to this instance."""

    def __init__(
        self,
        settings: ShardSettings,
        instance_id: str = "",
        *,
        topology: Topology | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """topology: one to follow from the start, in place of a controller.

        wall_clock: seconds since 1970, for what expires.
        """
        self._wall_clock = wall_clock
        self.follower = TopologyFollower(instance_id, follow=self._follow, describe=self._describe)
        self._settings = settings
        self._instance_id = instance_id
        self._first_topology = topology
        self._admission = Admission(settings.max_waiting_queries)
        self._holdings: Holdings | None = None
        self._signal: ProgressSignal | None = None
        self._searchers: ThreadPoolExecutor | None = None
        self._readers: ThreadPoolExecutor | None = None

    def register(self, server: grpc.aio.Server) -> Sequence[str]:
        """Add the handlers to a server."""
        add_ShardServiceServicer_to_server(self, server)
        return [DESCRIPTOR.services_by_name["ShardService"].full_name]

    async def start(self) -> None:
        """Make the threads. Shards are loaded once a topology names them."""
        if self._settings.device == "cuda":
            from shoal.shard.gpu import check_gpu

            check_gpu()
        bound_heaps(self._settings.threads + _FURTHER_HEAPS)
        self._signal = ProgressSignal()
        self._searchers = ThreadPoolExecutor(
            self._settings.threads,
            "shard-search",
            # A batch is divided among these threads: FAISS must not divide it again.
            initializer=faiss.omp_set_num_threads,
            initargs=(1,),
        )
        self._readers = ThreadPoolExecutor(_READING_THREADS, "shard-read")
        self._holdings = Holdings(
            self._settings, self._instance_id, self._signal.notify, self._now_us
        )
        if self._first_topology is not None:
            refusal = self.follower.accept(self._first_topology)
            if refusal:
                raise ValueError(f"cannot follow the topology: {refusal}")

    async def drain(self) -> None:
        """Take nothing new; return when what was taken is answered."""
        await self._admission.drain()

    async def stop(self) -> None:
        """End all threads and let go of the shards."""
        holdings, self._holdings = self._holdings, None
        if holdings is not None:
            await asyncio.to_thread(holdings.close)
        for pool in (self._searchers, self._readers):
            if pool is not None:
                await asyncio.to_thread(pool.shutdown)

    async def SearchShards(
        self, request: SearchShardsRequest, context: _Context
    ) -> SearchShardsResponse:
        """Find candidates of many queries in many shards."""
        deadline = Deadline.of(context)
        requests.check_search(request)
        follower, layout = self._find(request.layout)
        queries = requests.read_queries(request, layout.dimension)
        with self._admission.admit(len(queries)):
            shards = list(request.shards)
            # Waiting is for shards that can be searched at all.
            self._targets(layout, shards)
            await self._wait_for(follower, layout, shards, request.min_table_version, deadline)
            targets = self._targets(layout, shards)
            conditions = requests.read_conditions(request, _table(follower).fields)
            words = words_of(request.lexical, _analyzer(follower))
            top_ks = list(request.top_k)
            searched = answer.Searching(targets, layout, queries, top_ks, conditions, words)
            blocks = searched.blocks(self._settings.threads)
            respond = partial(answer.respond, shards, searched, fills=request.fill)
            # One turn of a thread, where one will do: each more costs as much as ten passages.
            if len(blocks) == 1:
                response = await self._search(
                    lambda: respond(found=[searched.run(blocks[0])]), deadline
                )
            else:
                found = await asyncio.gather(
                    *(self._search(partial(searched.run, block), deadline) for block in blocks)
                )
                response = await self._search(partial(respond, found=found), deadline)
            if layout.live is not None:
                searched.offer_to(layout.live.window)
            wanted = answer.rows_wanted(response, request.fill)
            if wanted:
                await self._read_table(
                    follower,
                    lambda table: answer.add_content(table, response, request.fill, wanted),
                    deadline,
                )
            return response

    async def CountTerms(self, request: CountTermsRequest, context: _Context) -> CountTermsResponse:
        """Count the terms of texts."""
        deadline = Deadline.of(context)
        requests.check_count(request)
        follower, layout = self._find(request.layout)
        shards = list(request.shards)
        self._targets(layout, shards)  # Waiting is for shards that can be searched at all.
        await self._wait_for(follower, layout, shards, request.min_table_version, deadline)
        targets = self._targets(layout, shards)
        analyzer, texts = _analyzer(follower), list(request.texts)
        return await self._search(lambda: answer.count_texts(targets, texts, analyzer), deadline)

    async def FetchPassages(
        self, request: FetchPassagesRequest, context: _Context
    ) -> FetchPassagesResponse:
        """Read passages by row id."""
        deadline = Deadline.of(context)
        row_ids = requests.read_row_ids(request)
        follower, layout = self._find(request.layout)
        targets = self._targets(layout, layout.shards)
        if request.fill == Fill.FILL_REFERENCE:
            return await self._read(lambda: answer.fetch_passages(targets, row_ids, None), deadline)
        return await self._read_table(
            follower,
            lambda table: answer.fetch_passages(targets, row_ids, table, request.vector_count),
            deadline,
        )

    async def FetchDocuments(
        self, request: FetchDocumentsRequest, context: _Context
    ) -> FetchDocumentsResponse:
        """Read whole documents by id."""
        deadline = Deadline.of(context)
        requests.check_documents(request)
        follower, layout = self._find(request.layout)
        ids = list(dict.fromkeys(request.document_ids))
        owners = shard_of(slots_of(ids), layout.id.shard_count).tolist()
        shards = sorted(set(owners))
        self._targets(layout, shards, all_of_them=True)
        await self._wait_for(follower, layout, shards, request.min_table_version, deadline)
        targets = self._targets(layout, shards, all_of_them=True)
        return await self._read_table(
            follower, lambda table: answer.fetch_documents(targets, owners, ids, table), deadline
        )

    async def DescribeShards(
        self, request: DescribeShardsRequest, context: _Context
    ) -> DescribeShardsResponse:
        """States of all shards."""
        del request, context
        return DescribeShardsResponse(shards=self._held().states())

    def _follow(self, topology: Topology) -> None:
        if self._holdings is None:
            raise RefusedTopologyError("the shard server is not running")
        self._holdings.follow(topology)

    def _describe(self, response: PublishTopologyResponse) -> None:
        if self._holdings is not None:
            response.shards.extend(self._holdings.states())

    def _held(self) -> Holdings:
        if self._holdings is None:
            raise ServiceError(Reason.REASON_DRAINING, "the shard server is stopping")
        return self._holdings

    def _find(self, key: LayoutKey) -> tuple[IndexFollower, HeldLayout]:
        found = self._held().find(LayoutId.of(key))
        if found is None:
            raise ServiceError(
                Reason.REASON_NOT_READY,
                f"this server has no shards of index {key.index_uid}, version "
                f"{key.index_version}, divided into {key.shard_count}: follow the topology",
            )
        return found

    async def _wait_for(
        self,
        follower: IndexFollower,
        layout: HeldLayout,
        shards: Sequence[int],
        version: int,
        deadline: Deadline,
    ) -> None:
        """Wait until the shards that are ready have applied a version of the table."""
        if version == 0:
            return
        assert self._signal is not None

        def reached() -> bool:
            applied = _applied_versions(layout, shards)
            return bool(applied) and min(applied) >= version

        share = deadline.share(_WAIT_SHARE)
        if await self._signal.wait_until(reached, follower.poke, share):
            return
        if follower.table_version >= version or not _applied_versions(layout, shards):
            raise ServiceError(
                Reason.REASON_NOT_READY,
                f"the shards have not applied table version {version} in time: ask another replica",
            )
        raise ServiceError(
            Reason.REASON_TABLE_VERSION_AHEAD,
            f"min_table_version is {version}, but the table is at {follower.table_version}: ask "
            "for a version that a write has returned",
        )

    async def _search(self, work: Callable[[], _Answer], deadline: Deadline) -> _Answer:
        return await _in_pool(self._searchers, work, deadline)

    async def _read(self, work: Callable[[], _Answer], deadline: Deadline) -> _Answer:
        return await _in_pool(self._readers, work, deadline)

    async def _read_table(
        self,
        follower: IndexFollower,
        work: Callable[[PassageTable], _Answer],
        deadline: Deadline,
    ) -> _Answer:
        """Read from the table; at its latest version, if a purge has removed the one followed."""
        table = _table(follower)

        def read() -> _Answer:
            try:
                return work(table)
            except TableNotFoundError:
                return work(PassageTable.open(table.uri))

        return await self._read(read, deadline)

    def _targets(
        self,
        layout: HeldLayout,
        shards: Sequence[int] | dict[int, Any],
        *,
        all_of_them: bool = False,
    ) -> list[Target]:
        """The shards that are ready, each in its present state.

        Raises NOT_READY if there is none.
        """
        return _targets(layout, shards, self._now_us(), all_of_them=all_of_them)

    def _now_us(self) -> int:
        return int(self._wall_clock() * 1e6)


async def _in_pool(
    pool: ThreadPoolExecutor | None, work: Callable[[], _Answer], deadline: Deadline
) -> _Answer:
    """Work in a thread, unless the caller has left before it begins."""
    if pool is None:
        raise ServiceError(Reason.REASON_NOT_READY, "the shard server has not started")

    def in_time() -> _Answer:
        if deadline.passed:
            raise TimeoutError
        return work()

    return await asyncio.get_running_loop().run_in_executor(pool, in_time)


def _applied_versions(layout: HeldLayout, shards: Sequence[int]) -> list[int]:
    """Table versions of those shards that are ready."""
    held = [layout.shards[number] for number in shards if number in layout.shards]
    loaded = [each.shard for each in held if each.ready]
    return [shard.view.cursor.version for shard in loaded if shard is not None]


def _targets(
    layout: HeldLayout,
    shards: Sequence[int] | dict[int, Any],
    now_us: int,
    *,
    all_of_them: bool,
) -> list[Target]:
    targets = []
    for number in shards:
        held = layout.shards.get(number)
        shard = held.shard if held is not None and held.ready else None
        if shard is not None:
            targets.append(Target(number, shard.present(now_us)))
    missing = len(targets) < len(shards)
    if (shards and not targets) or (all_of_them and missing):
        states = [layout.state(number) for number in shards]
        why = "; ".join(state.message for state in states if not state.ready)
        raise ServiceError(Reason.REASON_NOT_READY, f"{why}: ask another replica, or again")
    return targets


def _analyzer(follower: IndexFollower) -> Analyzer | None:
    """What makes the terms of the index; None if its table has none, or none of this release's."""
    return analyzer_of(_table(follower).analyzer)


def _table(follower: IndexFollower) -> PassageTable:
    # A shard that is ready was loaded from it.
    assert follower.table is not None
    return follower.table
