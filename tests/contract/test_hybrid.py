"""Do words and vectors rank alike however an index is divided, through writes, deletions and folds?

Three clusters get the same writes: one shard, two shards on a server, and four on two servers.
Writer, shard servers and brokers are real; the encoder is a stand-in, whose vectors follow from
words.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from shoal.broker.config import BrokerSettings
from shoal.broker.server import BrokerService
from shoal.lexical.analysis import DEFAULT_ANALYZER, analyzer_of
from shoal.rpc.errors import ServiceError
from shoal.shard.bm25 import K1, B
from shoal.shard.config import ShardSettings
from shoal.shard.server import ShardService
from shoal.v1.documents_pb2 import DeleteDocumentsRequest, Document
from shoal.v1.errors_pb2 import Reason
from shoal.v1.indexes_pb2 import CreateIndexRequest, FieldType, MetadataField
from shoal.v1.search_pb2 import Fusion, Group, Hybrid, SearchResponse, Vectors, VectorType
from shoal.writer.config import WriterSettings
from shoal.writer.server import WriterService

from tests.harness.cluster import Caller, Cluster, Groups, controlled, ids_of
from tests.harness.stand_ins import StandInEncoder, vector_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

DIVISIONS: dict[str, Groups] = {
    "one shard": [((0,), ("shard-server-0",))],
    "two shards": [((0, 1), ("shard-server-0",))],
    "four shards": [((0, 1), ("shard-server-0",)), ((2, 3), ("shard-server-1",))],
}
WORDS = [f"{first}{last}" for first in ("ba", "ke", "lo", "mu", "ri") for last in "bdfgklmnprst"]
SIZE = MetadataField(name="size", type=FieldType.FIELD_TYPE_INTEGER)
QUESTIONS = [
    "bab",
    "bab ked lof",
    "rit rit mun",
    "What is the kek of lop and mug?",
    "bab bad baf bag bak bal bam ban kef keg lok lol mut rib rid",
]
WORDS_ALONE = Hybrid(lexical_weight=1.0)
analyzer = analyzer_of(DEFAULT_ANALYZER)


class Library:
    """What was written, and clusters that it was written to."""

    def __init__(self, clusters: dict[str, Cluster]) -> None:
        self.callers = {name: Caller(each.channel("broker-0")) for name, each in clusters.items()}
        self.texts: dict[str, str] = {}
        self.versions = dict.fromkeys(clusters, 0)
        self._random = random.Random(7)

    def text(self) -> str:
        """Some words: few are frequent, most are not."""
        count = self._random.randint(3, 40)
        picks = [min(int(self._random.paretovariate(0.6)), len(WORDS)) - 1 for _ in range(count)]
        return " ".join(WORDS[at] for at in picks)

    async def write(self, ids: list[str]) -> None:
        """Write documents of new texts."""
        new = {id_: self.text() for id_ in ids}
        self.texts |= new
        documents = [Document(id=id_, text=text, title="Mut") for id_, text in new.items()]
        for document in documents:
            document.metadata.update({"size": len(document.text.split())})
        for name, caller in self.callers.items():
            self.versions[name] = (await caller.upsert("books", documents)).table_version

    async def delete(self, ids: list[str]) -> None:
        """Delete documents."""
        for id_ in ids:
            del self.texts[id_]
        for name, caller in self.callers.items():
            request = DeleteDocumentsRequest(index="books", document_ids=ids)
            answer = await caller.call(caller.documents.DeleteDocuments, request)
            self.versions[name] = answer.table_version

    async def ask(self, question: str, **fields: object) -> dict[str, SearchResponse]:
        """Ask all clusters, for what was written last."""
        answers = {}
        for name, caller in self.callers.items():
            answers[name] = await caller.search(
                question,
                min_table_version=self.versions[name],
                bypass_cache=True,
                omit_text=True,
                **fields,
            )
            assert answers[name].coverage.complete, answers[name].coverage
        return answers

    def bm25(self, question: str) -> dict[str, float]:
        """The textbook's scores of all documents that have a word of the question."""
        assert analyzer is not None
        every = {id_: analyzer.terms(f"Mut\n{text}") for id_, text in self.texts.items()}
        average = sum(map(len, every.values())) / len(every)
        scores: dict[str, float] = {}
        for term, count in Counter(analyzer.terms(question)).items():
            having = [id_ for id_, terms in every.items() if term in terms]
            rarity = math.log(1 + (len(every) - len(having) + 0.5) / (len(having) + 0.5))
            for id_ in having:
                f, norm = every[id_].count(term), K1 * (1 - B + B * len(every[id_]) / average)
                scores[id_] = scores.get(id_, 0.0) + count * rarity * f / (f + norm)
        return scores


@contextlib.asynccontextmanager
async def running(data: Path, groups: Groups, fold_at: int) -> AsyncIterator[Cluster]:
    cluster = Cluster()
    try:
        await cluster.add(StandInEncoder(), model="tiny@1")
        for id_ in sorted({id_ for _, ids in groups for id_ in ids}):
            settings = ShardSettings(
                follow_interval_s=0.02, threads=2, fold_at_passages=fold_at, snapshot_dir=data / id_
            )
            await cluster.add(ShardService(settings, id_))
        await cluster.add(WriterService(WriterSettings(data=data), "writer-0"))
        await cluster.add(BrokerService(BrokerSettings(probe_interval_s=0.02), "broker-0"))
        await cluster.publish()
        async with controlled(cluster, groups):
            yield cluster
    finally:
        await cluster.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def library(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Library]:
    async with contextlib.AsyncExitStack() as stack:
        clusters = {
            # The more shards, the more often they are folded.
            name: await stack.enter_async_context(
                running(tmp_path_factory.mktemp("data"), groups, 200 // len(name))
            )
            for name, groups in DIVISIONS.items()
        }
        library = Library(clusters)
        for caller in library.callers.values():
            request = CreateIndexRequest(name="books", fields=[SIZE])
            await caller.call(caller.indexes.CreateIndex, request)
        await library.write([f"doc-{at}" for at in range(150)])
        yield library


def assert_the_same(answers: dict[str, SearchResponse]) -> None:
    first, *others = answers.values()
    for other in others:
        assert ids_of(other) == ids_of(first)
        for mine, theirs in zip(first.hits, other.hits, strict=True):
            # To the last bit: what they rest on is the whole index.
            assert mine.lexical_score == theirs.lexical_score
            assert mine.score == pytest.approx(theirs.score, abs=1e-6)


async def assert_right(library: Library) -> None:
    for question in QUESTIONS:
        alone = await library.ask(question, top_k=20, hybrid=WORDS_ALONE)
        assert_the_same(alone)
        expected = library.bm25(question)
        hits = alone["four shards"].hits
        best = sorted(expected.values(), reverse=True)[:20]
        assert [hit.lexical_score for hit in hits] == pytest.approx(best, rel=1e-5)
        for hit in hits:
            assert hit.lexical_score == pytest.approx(expected[hit.document_id], rel=1e-5)
        for fusion in (Fusion.FUSION_CONVEX, Fusion.FUSION_RECIPROCAL_RANK):
            both = await library.ask(question, top_k=20, hybrid=Hybrid(fusion=fusion))
            assert_the_same(both)
            for hit in both["two shards"].hits:
                assert hit.document_id in library.texts
                expected_score = expected.get(hit.document_id, 0.0)
                assert hit.lexical_score == pytest.approx(expected_score, rel=1e-5, abs=1e-6)
        assert_the_same(await library.ask(question, group=Group(per_document=1)))


async def test_every_division_ranks_alike_through_writes_and_deletions(library: Library) -> None:
    await assert_right(library)
    await library.delete([f"doc-{at}" for at in range(0, 150, 4)])
    await assert_right(library)
    await library.write([f"doc-{at}" for at in range(1, 150, 3)] + ["new-1", "new-2"])
    await assert_right(library)
    for at in range(6):
        await library.delete([f"doc-{at * 12 + 2}"])
        await library.write([f"more-{at}-{each}" for each in range(12)])
    await assert_right(library)


async def test_a_filter_leaves_scores_as_they_are(library: Library) -> None:
    """What it leaves out is not found, and counts for the weights of the terms all the same."""
    for at_most in (5, 12, 30):
        for hybrid in (WORDS_ALONE, Hybrid()):
            answers = await library.ask(
                "bab ked lof", top_k=200, hybrid=hybrid, filter=f"size <= {at_most}"
            )
            assert_the_same(answers)
            expected = library.bm25("bab ked lof")
            small = {id_ for id_, text in library.texts.items() if len(text.split()) <= at_most}
            hits = answers["two shards"].hits
            wanted = small & set(expected) if hybrid is WORDS_ALONE else small
            assert {hit.document_id for hit in hits} == wanted
            for hit in hits:
                score = expected.get(hit.document_id, 0.0)
                assert hit.lexical_score == pytest.approx(score, rel=1e-5, abs=1e-6)


async def test_both_scores_of_a_hit_are_its_own(library: Library) -> None:
    answers = await library.ask("bab ked", explain=True, top_k=50)
    for hit in answers["four shards"].hits:
        vector = vector_of(f"Mut. {library.texts[hit.document_id]}")
        assert hit.dense_score == pytest.approx(float(vector @ vector_of("bab ked")), abs=1e-4)
        assert hit.provenance.dense_rank or hit.provenance.lexical_rank
        assert (hit.lexical_score > 0) >= (hit.provenance.lexical_rank > 0)


async def test_without_words_the_vectors_rank(library: Library) -> None:
    for question, hybrid in (
        ("bab ked", Hybrid(disabled=True)),
        ("bab ked", Hybrid(lexical_weight=0.0)),
    ):
        for answer in (await library.ask(question, hybrid=hybrid)).values():
            assert all(hit.score == hit.dense_score for hit in answer.hits)
            assert not any(hit.HasField("lexical_score") for hit in answer.hits)
    for answer in (await library.ask("of the and")).values():
        scores = [hit.dense_score for hit in answer.hits]
        assert scores == sorted(scores, reverse=True)
    none = await library.ask("of the and", hybrid=WORDS_ALONE)
    assert not any(answer.hits for answer in none.values())


async def test_a_query_by_vector_has_no_words(library: Library) -> None:
    vector = Vectors(
        values=vector_of("bab").tobytes(),
        count=1,
        dimension=8,
        type=VectorType.VECTOR_TYPE_FLOAT32,
    )
    answer = await library.callers["one shard"].search(vector)
    assert not any(hit.HasField("lexical_score") for hit in answer.hits)


@pytest.mark.parametrize(
    "hybrid",
    [
        Hybrid(lexical_weight=1.5),
        Hybrid(lexical_weight=float("nan")),
        Hybrid(candidate_count=1001),
        Hybrid(fusion=7),
    ],
)
async def test_a_wrong_request_is_refused(library: Library, hybrid: Hybrid) -> None:
    with pytest.raises(ServiceError) as caught:
        await library.callers["one shard"].search("bab", hybrid=hybrid)
    assert caught.value.reason == Reason.REASON_INVALID_FIELD
    assert any(path.startswith("hybrid") for path in caught.value.failure.fields)


async def test_rankings_hold_while_everything_is_written(library: Library) -> None:
    """No search fails, and none gives what was deleted before it began."""
    gone: set[str] = set()

    async def change() -> None:
        for at in range(8):
            await library.write([f"brief-{at}", f"brief-{at}b"])
            await library.delete([f"brief-{at}"])
            gone.add(f"brief-{at}")

    changing = asyncio.create_task(change())
    while not changing.done():
        before = set(gone)
        for answer in (await library.ask("bab ked lof", top_k=200)).values():
            assert not before & set(ids_of(answer))
    await changing
    await assert_right(library)
