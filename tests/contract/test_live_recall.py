"""Is a recall that falls below its target noticed, mended and said, while queries run?"""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from shoal.shard.codebook import train_codebook
from shoal.v1.indexes_pb2 import IndexVersionState

from tests.contract.test_shard import Server, serving
from tests.harness.controlled import DIMENSION, controlled, ended, fill, until
from tests.harness.shard_corpus import Corpus, Stored, layout, unit

TARGET = 0.95
READY = IndexVersionState.INDEX_VERSION_STATE_READY
# Check as often as there is something new, and keep every query.
EAGER = {
    "fold_at_passages": 100,
    "recall_interval_s": 0,
    "recall_core_share": 1.0,
    "recall_sample_share": 1.0,
}


def elsewhere(count: int, dimension: int, seed: int = 9) -> NDArray[np.float32]:
    """Vectors in all directions, unlike those that an index of clusters was trained on."""
    return unit(np.random.default_rng(seed).standard_normal((count, dimension)))


class Watched:
    """A shard server, and what it says of the recall of its shards."""

    def __init__(self, server: Server, corpus: Corpus) -> None:
        self.server, self.corpus = server, corpus

    async def ask(self, queries: NDArray[np.float32]) -> float:
        """Search, and return the recall of the answers."""
        hits = 0
        for block in np.split(queries, len(queries) // 32):
            response = await self.server.search(block, version=1)
            for query, result in zip(block, response.results, strict=True):
                found = {(each.document_id, each.passage) for each in result.hits}
                hits += len(found & {each[:2] for each in self.corpus.best(query, 10)})
        return hits / (10 * len(queries))

    async def folded(self) -> None:
        """Wait until what was written is searched by codes."""
        version = self.corpus.table.version
        await self.server.until(
            lambda states: all(
                each.table_version >= version and each.tail_count < 100 for each in states
            )
        )


async def test_drift_is_noticed_mended_and_said_and_forgotten_when_it_is_over(
    tmp_path: Path,
) -> None:
    corpus = Corpus(tmp_path, dimension=32)
    corpus.fill(600)
    train_codebook(corpus.uri, tmp_path / "codebook", recall_target=TARGET, threads=1)
    async with serving(corpus, **EAGER) as server:
        await server.publish(layout(2, codebook=tmp_path / "codebook"))
        await server.ready(2)
        watched = Watched(server, corpus)
        assert not any(each.HasField("recall") for each in await server.states())
        await watched.ask(corpus.vectors(256))
        await server.until(lambda states: all(each.HasField("recall") for each in states))
        for state in await server.states():
            assert (state.search_effort, state.message) == (1.0, "")
            assert state.recall > TARGET
            assert 50 <= state.recall_query_count <= 256
            assert state.recall_neighbour_count >= state.recall_query_count

        strangers = {
            f"x-{at}": Stored("", [f"x-{at}"], {}, row[None])
            for at, row in enumerate(elsewhere(1500, corpus.dimension))
        }
        corpus.write(strangers)
        await watched.folded()
        seeds = count(10)

        async def ask_of_strangers() -> float:
            return await watched.ask(elsewhere(256, corpus.dimension, seed=next(seeds)))

        assert await ask_of_strangers() < TARGET - 0.05  # Or nothing would be shown here.
        await server.until(
            lambda states: all(each.search_effort >= 4 and each.recall > TARGET for each in states)
        )
        for state in await server.states():
            assert "below its target 0.95: it is searched" in state.message
            assert f"{state.search_effort:g} times as hard since 2" in state.message
            assert "`shoal index build INDEX --promote`" in state.message

        # Of queries that were not measured with, too. The first check may have seen some strangers
        # among queries of before, and have chosen less effort than strangers alone need.
        async def is_mended() -> bool:
            return await ask_of_strangers() > TARGET

        await until(is_mended)

        corpus.write({}, tuple(strangers))
        await watched.folded()

        async def is_over() -> bool:
            await watched.ask(corpus.vectors(32))
            return all(
                (each.search_effort, each.message) == (1.0, "") for each in await server.states()
            )

        await until(is_over)
        assert all(each.recall > TARGET for each in await server.states())


async def test_a_target_out_of_reach_is_said_and_effort_stays_bounded(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, dimension=32)
    corpus.fill(1500)
    train_codebook(corpus.uri, tmp_path / "codebook", recall_target=TARGET, threads=1)
    async with serving(corpus, **EAGER, max_search_effort=3.0) as server:
        await server.publish(layout(2, codebook=tmp_path / "codebook"))
        await server.ready(2)
        watched = Watched(server, corpus)
        rows = elsewhere(3000, corpus.dimension)
        corpus.write(
            {f"x-{at}": Stored("", [f"x-{at}"], {}, row[None]) for at, row in enumerate(rows)}
        )
        await watched.folded()
        await watched.ask(elsewhere(256, corpus.dimension, seed=10))
        await server.until(lambda states: all(each.HasField("recall") for each in states))
        for state in await server.states():
            assert state.search_effort == 3.0
            assert state.recall < TARGET
            assert "although it is searched 3 times as hard since 2" in state.message
        # Another division of the version goes on with what was learnt.
        codebook = tmp_path / "codebook"
        await server.publish(layout(2, codebook=codebook), layout(4, codebook=codebook))
        await server.ready(6)
        assert {state.search_effort for state in await server.states()} == {3.0}


async def test_an_index_says_its_live_recall_and_the_cluster_its_drift(tmp_path: Path) -> None:
    shard = {"threads": 1, "follow_interval_s": 0.05, "snapshot_interval_s": 0} | EAGER
    random = np.random.default_rng(2)
    centres = random.standard_normal((40, DIMENSION))

    def at_home(count: int) -> NDArray[np.float32]:
        rows = centres[random.integers(0, 40, count)]
        return unit(rows + 0.5 * random.standard_normal(rows.shape))

    async with controlled(tmp_path, shard=shard) as (_cluster, client):
        await client.create_index("docs", dimension=DIMENSION)
        await fill(client, "docs", at_home(900))

        async def ask(queries: NDArray[np.float32]) -> None:
            for row in queries:
                await client.search("docs", row, top_k=10, bypass_cache=True)

        async def described() -> object:
            found = await client.describe_index("docs")
            return found if found.index.HasField("live_recall") else None

        await ask(at_home(80))
        exact = await client.describe_index("docs")
        assert not exact.index.HasField("live_recall")
        assert exact.index.search_effort == 0
        assert not any(each.HasField("recall") for each in exact.shards)
        await client.build_index_version("docs", promote=True)
        assert (await ended(client, "docs", 1)).state == READY

        async def serves_codes() -> bool:
            return (await client.describe_index("docs")).index.index_version == 1

        await until(serves_codes)
        await ask(at_home(80))
        found = await until(described)
        assert found.index.search_effort == 1
        known = [each for each in found.shards if each.HasField("recall")]
        assert len(known) == 2
        low, high = sorted(each.recall for each in known)
        assert low - 1e-9 <= found.index.live_recall <= high + 1e-9

        await fill(client, "docs", elsewhere(2500, DIMENSION), first=900)
        strange = elsewhere(4000, DIMENSION, seed=10)

        async def is_said() -> str | None:
            nonlocal strange
            await ask(strange[:40])
            strange = np.roll(strange, -40, axis=0)
            status = await client.cluster_status()
            said = [each for each in status.problems if "recall of live queries" in each]
            assert len(said) <= 1  # Once for both shards.
            return said[0] if said else None

        problem = await until(is_said)
        assert problem.startswith("index docs, shard-server-")
        assert "`shoal index build INDEX --promote`" in problem
        assert (await client.describe_index("docs")).index.search_effort > 1
