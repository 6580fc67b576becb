"""What can be done to an index of a living cluster, and what must hold after it?

One index of a cluster that outlives it. Each operation is done through the public client, or to the
processes; `check` compares all that the client can see with the oracle.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
from shoal.client import AsyncClient, FailedPreconditionError
from shoal.shard.kind_names import KindName, number_of
from shoal.v1.indexes_pb2 import DescribeIndexResponse, IndexVersionState
from shoal.v1.search_pb2 import SearchKind

from tests.harness.controlled import Controlled, ended, until
from tests.harness.processes import Processes
from tests.model.conditions import FIELDS, some
from tests.model.oracle import DIMENSION
from tests.model.searches import FEW_HITS, Searches, Shape
from tests.model.traffic import IDS, TOP_K, Ledger, Traffic

if TYPE_CHECKING:
    from tests.model.operations import Operation

# Documents that are there from the start. Training needs 624 passages, whatever is deleted.
BASE: Final = 700
# Ids that are written and deleted: some of them are there from the start.
POOL: Final = [f"b{at}" for at in range(50)] + [f"n{at}" for at in range(30)]
WATCHED: Final = [
    *POOL,
    *(f"b{at}" for at in range(50, BASE, 40)),
    *itertools.chain(*IDS),
]
_NAMES: Final = itertools.count()


class World:
    """An index, and what it should be."""

    def __init__(self, cluster: Controlled, client: AsyncClient) -> None:
        """The index is not there yet."""
        assert isinstance(cluster.platform, Processes)
        self.cluster, self.client, self.platform = cluster, client, cluster.platform
        self.name = f"model{next(_NAMES)}"
        self.ledger = Ledger(client, self.name)
        self.author, self.oracle = self.ledger.author, self.ledger.oracle
        self.random = np.random.default_rng(0)
        # Questions that are asked again and again: the same vector with several filters.
        queries = [self.author.query(self.random) for _ in range(2)]
        filters = [None, *some(self.random, 2)]
        self.questions = [(query, condition) for query in queries for condition in filters]
        self.searches = Searches(client, self.name, self.oracle)
        self.shards, self.replicas = 2, 2
        # As the catalogue should have them.
        self.versions: dict[int, KindName] = {}
        self.last_version = 0
        self.promoted, self.previous = 0, None
        self.changed: Sequence[str] = ()
        # Whether something has expired since the last check: no table version says so.
        self.has_expired = False

    async def begin(self) -> None:
        """Make the index, with the documents that are there from the start."""
        await self.client.create_index(self.name, dimension=DIMENSION, fields=FIELDS)
        await self.upsert([f"b{at}" for at in range(BASE)], seed=0)

    async def end(self) -> None:
        """Drop it."""
        await self.client.drop_index(self.name)

    # Documents.

    async def upsert(self, ids: Sequence[str], seed: int) -> None:
        """Write documents in one stream; an id that stands in it twice is replaced at once."""
        random = np.random.default_rng(seed)
        documents = [self.author.document(each, random) for each in ids]
        await self.ledger.upsert(documents)
        self.changed = ids

    async def upsert_one_by_one(self, ids: Sequence[str], seed: int) -> None:
        """Write documents in a commit each: many small fragments."""
        for at, each in enumerate(ids):
            await self.upsert([each], seed + at)
        self.changed = ids

    async def delete(self, ids: Sequence[str]) -> None:
        """Delete documents, whether they are there or not."""
        await self.ledger.delete(ids)

    # Versions.

    async def build(self, kind: KindName, *, promote: bool) -> None:
        """Build a version, and wait for it."""
        begun = await self.client.build_index_version(
            self.name, promote=promote, kind=number_of(kind)
        )
        self.last_version += 1
        assert begun.number == self.last_version
        version = await ended(self.client, self.name, begun.number)
        assert version.state == IndexVersionState.INDEX_VERSION_STATE_READY, version.message
        assert version.shard_count == self.shards
        self.versions[begun.number] = kind
        if promote:
            self._promoted(begun.number)
            await until(self._serves)

    async def _serves(self) -> bool:
        listed = await self.client.index_versions(self.name)
        return bool(listed.serving_version == self.promoted)

    async def promote(self, number: int) -> None:
        """Promote a version, and wait until it serves."""
        assert await self.client.promote_index_version(self.name, number) == number
        self._promoted(number)

    def _promoted(self, number: int) -> None:
        if number != self.promoted:
            self.promoted, self.previous = number, self.promoted

    async def roll_back(self) -> None:
        """Roll back, if there is something to go back to."""
        if self.previous is None:
            with pytest.raises(FailedPreconditionError) as refused:
                await self.client.rollback_index(self.name)
            assert refused.value.reason == "NO_PREVIOUS_VERSION"
            return
        back = await self.client.rollback_index(self.name)
        assert back.promoted_version == back.serving_version == self.previous
        self._promoted(self.previous)

    async def drop_version(self, number: int) -> None:
        """Drop a version; the one that serves stays."""
        if number == self.promoted:
            with pytest.raises(FailedPreconditionError) as refused:
                await self.client.drop_index_version(self.name, number)
            assert refused.value.reason == "VERSION_SERVES"
            return
        await self.client.drop_index_version(self.name, number)
        del self.versions[number]
        self.previous = None if self.previous == number else self.previous

    # The cluster.

    async def divide(self, shards: int, replicas: int) -> None:
        """Divide the index otherwise, and wait until it is."""
        await self.client.scale(index=self.name, shards=shards, replicas=replicas)
        self.shards, self.replicas = shards, replicas
        await self._is_divided()

    async def _is_divided(self) -> None:
        async def look() -> bool:
            described = await self.client.describe_index(self.name)
            return (
                described.index.shard_count == self.shards
                and len(described.shards) == self.shards * self.replicas
            )

        await until(look)

    async def restart(self, instance_id: str, number: signal.Signals) -> None:
        """End an instance, and wait until the cluster is whole again."""
        if instance_id == "controller":
            await self.cluster.kill_controller()
            await self.cluster.start_controller()
        elif instance_id in self.platform.processes:
            await self.platform.restart_process(instance_id, number)
        else:
            await self.platform.restart_host(instance_id)
        await until(self._is_whole)

    async def _is_whole(self) -> bool:
        try:
            status = await self.client.cluster_status(timeout_s=1.0)
            described = await self.client.describe_index(self.name, timeout_s=1.0)
        except Exception:  # noqa: BLE001  # a broker that is starting
            return False
        return status.whole and all(each.ready for each in described.shards)

    async def step(self, operation: Operation, seed: int | None) -> None:
        """Do an operation, beside others if there is a seed for what they do; then check."""
        if seed is None:
            await operation.do(self)
        else:
            traffic = Traffic(self.ledger, seed, may_fail=operation.disturbs)
            async with traffic.going():
                await operation.do(self)
            self.changed = [each for each in self.ledger.history.writes if each.startswith("t")]
            assert self.ledger.history.violations() == []
            self.ledger.history.reads.clear()
        await self.outlive()
        await self.check()

    async def outlive(self) -> None:
        """Wait until what expires soon has expired."""
        self.has_expired |= bool(await self.ledger.outlive())

    def check_recall(self) -> None:
        """Searches by codes have found about what builds promise."""
        self.searches.whole.check("without a filter")
        self.searches.filtered.check("with filters")

    # What must hold after every operation.

    async def check(self) -> None:
        """Compare all that can be seen with what should be."""
        assert self.platform.hung == [], self.platform.log_of(self.platform.hung[0].split()[0])
        await self._check_documents()
        await self._check_searches()
        await self._check_counts()
        await self._check_versions()
        await self._check_cached()
        self.changed, self.has_expired = (), False

    @property
    def shape(self) -> Shape:
        """What of it is no document."""
        return Shape(self.promoted, self.shards)

    async def _check_documents(self) -> None:
        wanted = sorted({*WATCHED, *self.oracle.unread})
        found = await self.client.get(
            self.name, wanted, min_table_version=self.oracle.table_version
        )
        read = {each.id for each in found.documents}
        assert read | set(found.missing_ids) == set(wanted)
        lost = {each for each in found.missing_ids if each in self.oracle.present}
        risen = {each for each in read if each not in self.oracle.present}
        assert (lost, risen) == (set(), set()), "lost, risen"
        for each in found.documents:
            self.oracle.check_document(each)

    async def _check_searches(self) -> None:
        ask, query = self.searches.ask, self.author.query(self.random)
        await self.searches.near_and_far(query, self.shape)
        await self.searches.with_filters(query, self.random, self.shape)
        changed = [self.oracle.present.get(each) for each in self.random.permutation(self.changed)]
        for stored in [each for each in changed if each and each.vector is not None][:8]:
            (condition,) = some(self.random, 1)
            for each in (None, condition):
                hits = await ask(stored.vector, TOP_K, self.shape, each)
                if each is None or each.matches(stored.metadata):
                    assert stored.id in hits, (
                        f"{stored.id} was written, and not found by its vector"
                    )

    async def _described(self) -> DescribeIndexResponse:
        """The index, once the broker has heard of the last operation from every replica.

        And of what has expired since: that has no table version, so that the count says it.
        """

        async def look() -> DescribeIndexResponse | None:
            described = await self.client.describe_index(self.name)
            up = all(
                each.ready and each.table_version >= self.oracle.table_version
                for each in described.shards
            )
            if self.has_expired:
                up = up and described.index.document_count == len(self.oracle.present)
            return described if up else None

        described: DescribeIndexResponse = await until(look)
        return described

    async def _check_counts(self) -> None:
        described = await self._described()
        index = described.index
        assert index.index_version == self.promoted
        exact = SearchKind.SEARCH_KIND_EXACT
        assert index.kind == (number_of(self.versions[self.promoted]) if self.promoted else exact)
        assert (index.shard_count, len(described.shards)) == (
            self.shards,
            self.shards * self.replicas,
        )
        assert index.document_count == len(self.oracle.present)
        assert index.passage_count == self.oracle.passage_count

    async def _check_versions(self) -> None:
        listed = await self.client.index_versions(self.name)
        assert [each.number for each in listed.versions] == list(self.versions)
        assert (listed.promoted_version, listed.serving_version) == (self.promoted,) * 2
        previous = listed.previous_version if listed.HasField("previous_version") else None
        assert previous == self.previous

    async def _check_cached(self) -> None:
        """The same few questions, which the cache may answer: never from an older version.

        Nor for another filter.
        """
        for query, condition in self.questions:
            await self.searches.ask(query, FEW_HITS, self.shape, condition, cached=True)
