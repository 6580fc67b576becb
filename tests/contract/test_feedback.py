"""Is feedback kept once it is acknowledged, refused where it says nothing, and gone in time?"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from shoal.cli.main import app
from shoal.client import (
    AsyncClient,
    Client,
    FailedPreconditionError,
    IndexNotFoundError,
    InvalidArgumentError,
    OverloadedError,
    UnavailableError,
    feedback_on,
)
from shoal.internal.v1.feedback_pb2 import AnswerFeedback, ShownAnswer, StoreFeedbackRequest
from shoal.internal.v1.writer_pb2_grpc import WriterServiceStub
from shoal.rpc.errors import ServiceError, service_error_of
from shoal.v1.errors_pb2 import Reason
from shoal.v1.feedback_pb2 import Choice, FeedbackRecord, ShownHit
from shoal.v1.search_pb2 import SearchResponse
from typer.testing import CliRunner

from tests.harness.cluster import Cluster
from tests.harness.real import client_of, real_cluster

DOCUMENTS = [
    {"id": "whale", "text": "The blue whale is the largest animal that ever lived."},
    {"id": "ship", "text": "A ship sails across the sea, laden with tea and silk."},
    {"id": "storm", "text": "In the storm the captain held the wheel all night."},
    {"id": "gull", "text": "Gulls follow the fishing boats back to the harbour."},
]
QUESTION = "Which animal is the largest?"


async def answered(client: AsyncClient, question: str = QUESTION, **fields: Any) -> SearchResponse:
    """An answer with a token, once the broker has its keys, and the shards the documents."""
    async with asyncio.timeout(30):
        while True:
            # After a restart the index is not known at once, nor loaded.
            with contextlib.suppress(IndexNotFoundError, UnavailableError):
                answer = await client.search("docs", question, bypass_cache=True, **fields)
                if answer.answer_token and len(answer.hits) == fields.get("top_k", len(DOCUMENTS)):
                    return answer
            await asyncio.sleep(0.05)


async def exported(client: AsyncClient, **fields: Any) -> list[FeedbackRecord]:
    return [each async for each in client.export_feedback("docs", **fields)]


def files_with(root: Path, text: bytes) -> list[Path]:
    return [each for each in root.rglob("*") if each.is_file() and text in each.read_bytes()]


@pytest.fixture
async def filled(tmp_path: Path) -> AsyncIterator[tuple[Cluster, AsyncClient]]:
    async with real_cluster(tmp_path) as cluster, client_of(cluster) as client:
        await client.create_index("docs")
        await client.upsert("docs", DOCUMENTS)
        yield cluster, client


async def test_what_is_recorded_says_what_was_shown_and_chosen_and_outlives_the_writer(
    tmp_path: Path,
) -> None:
    async with real_cluster(tmp_path) as cluster, client_of(cluster) as client:
        await client.create_index("docs")
        await client.upsert("docs", DOCUMENTS)
        answer = await answered(client, explain=True)
        again = await client.search("docs", QUESTION)
        third = await client.search("docs", QUESTION)
        assert len({each.answer_token for each in (answer, again, third)}) == 3
        before = datetime.now(UTC)
        feedback = feedback_on(
            answer, {1: 12.5, 3: 0.25}, seen_count=3, principal="ann@example.org"
        )
        recorded = await client.record_feedback("docs", [feedback])
        assert (recorded.recorded_count, recorded.outdated_count) == (1, 0)
        # Of one index two pieces by the same principal can be told; the name is nowhere.
        await client.record_feedback(
            "docs",
            [
                feedback_on(again, principal="ann@example.org"),
                feedback_on(third, [4], principal="bob@example.org"),
                # Of one answer the last counts, also of one request.
                feedback_on(third.answer_token, [2], principal="bob@example.org"),
            ],
        )
        kept = await exported(client)
        times = [each.answer_time.ToNanoseconds() for each in kept]
        assert times == sorted(times)
        assert [[choice.rank for choice in each.choices] for each in kept] == [[1, 3], [], [2]]
        named = [each for each in kept if each.choices and each.choices[0].rank == 1]
        (record,) = named
        assert record.query == QUESTION
        hits = answer.hits[:3]
        assert [(each.document_id, each.passage, each.score) for each in record.shown] == [
            (each.document_id, each.passage, each.score) for each in hits
        ]
        assert [(each.rank, each.dwell.ToMilliseconds()) for each in record.choices] == [
            (1, 12_500),
            (3, 250),
        ]
        assert record.encoder_model == answer.explanation.encoder_model
        assert record.table_version == answer.table_version
        assert record.index_version == answer.explanation.index_version
        assert before <= record.record_time.ToDatetime(UTC) <= datetime.now(UTC)
        hashes = [each.principal_hash for each in kept]
        assert {len(each) for each in hashes} == {16}
        assert len(set(hashes)) == 2
        assert hashlib.sha256(b"ann@example.org").digest()[:16] not in hashes
        nothing_chosen = [each for each in kept if not each.choices]
        assert len(nothing_chosen) == 1
        assert len(nothing_chosen[0].shown) == len(again.hits)
        later = datetime.now(UTC) + timedelta(hours=1)
        assert await exported(client, since=later) == []
        token = again.answer_token

    keys = tmp_path / "feedback_keys.json"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert files_with(tmp_path, b"ann@example.org") == []

    # Another writer, another broker: the same keys, salt and records.
    async with real_cluster(tmp_path) as cluster, client_of(cluster) as client:
        await answered(client)
        assert len(await exported(client)) == 3
        await client.record_feedback("docs", [feedback_on(token, [1], principal="ann@example.org")])
        kept = await exported(client)
        assert len(kept) == 3
        assert [[choice.rank for choice in each.choices] for each in kept] == [[1, 3], [1], [2]]
        assert len({each.principal_hash for each in kept}) == 2


async def test_a_token_that_was_altered_or_belongs_elsewhere_is_refused_with_what_to_do(
    filled: tuple[Cluster, AsyncClient],
) -> None:
    _, client = filled
    token = (await answered(client)).answer_token
    await client.create_index("other")
    bad = {
        b"": "send the `answer_token`",
        b"nonsense": "no token of this release",
        token[:-1] + bytes([token[-1] ^ 1]): "was altered",
        token[:1] + b"\0\0\0\0" + token[5:]: "not known any more",
        b"\x02" + token[1:]: "no token of this release",
    }
    for each, why in bad.items():
        with pytest.raises(InvalidArgumentError, match=why) as refused:
            await client.record_feedback("docs", [feedback_on(token, [1]), feedback_on(each, [1])])
        assert list(refused.value.fields) == ["feedback[1].answer_token"]
    with pytest.raises(InvalidArgumentError, match="another index"):
        await client.record_feedback("other", [feedback_on(token)])
    with pytest.raises(IndexNotFoundError):
        await client.record_feedback("nothing", [feedback_on(token)])
    with pytest.raises(InvalidArgumentError, match="4 hits were seen"):
        await client.record_feedback("docs", [feedback_on(token, [5])])
    with pytest.raises(InvalidArgumentError, match="2 hits were seen"):
        await client.record_feedback("docs", [feedback_on(token, [3], seen_count=2)])
    with pytest.raises(InvalidArgumentError, match="twice"):
        await client.record_feedback("docs", [feedback_on(token, [1, 1])])
    with pytest.raises(InvalidArgumentError, match="dwell"):
        await client.record_feedback("docs", [feedback_on(token, {1: 1e9})])
    with pytest.raises(InvalidArgumentError, match="principal"):
        await client.record_feedback("docs", [feedback_on(token, principal="x" * 257)])
    with pytest.raises(InvalidArgumentError, match="1 to 256"):
        await client.record_feedback("docs", [])
    # All or nothing.
    assert await exported(client) == []


async def test_nothing_is_kept_of_whom_or_what_opts_out(
    filled: tuple[Cluster, AsyncClient],
) -> None:
    _, client = filled
    answer = await answered(client)
    assert not (await client.search("docs", QUESTION, no_feedback=True)).answer_token
    vector = [1.0] * 384
    assert not (await client.search("docs", vector)).answer_token
    await client.record_feedback("docs", [feedback_on(answer, [1])])
    assert len(await exported(client)) == 1

    updated = await client.update_index("docs", feedback_disabled=True)
    assert updated.feedback_disabled
    with pytest.raises(FailedPreconditionError, match="takes no feedback") as refused:
        await client.record_feedback("docs", [feedback_on(answer, [1])])
    assert refused.value.reason == "FEEDBACK_DISABLED"
    async with asyncio.timeout(30):
        while (await client.search("docs", QUESTION)).answer_token:
            await asyncio.sleep(0.05)
    await client.clean_index("docs")
    assert await exported(client) == []

    await client.update_index("docs", feedback_disabled=False)
    await client.record_feedback("docs", [feedback_on(await answered(client), [1])])
    assert len(await exported(client)) == 1


async def test_feedback_goes_with_the_documents_that_are_purged_and_with_age(
    tmp_path: Path,
) -> None:
    async with (
        real_cluster(tmp_path, writer={"feedback_keep_days": 1 / 86_400}) as cluster,
        client_of(cluster) as client,
    ):
        await client.create_index("docs")
        await client.upsert("docs", DOCUMENTS)
        answer = await answered(client)
        few = await answered(client, "storm captain wheel", top_k=1)
        assert [each.document_id for each in few.hits] == ["storm"]
        await client.record_feedback("docs", [feedback_on(answer, [1]), feedback_on(few, [1])])
        await client.purge("docs", ["gull"])
        (left,) = await exported(client)
        assert [each.document_id for each in left.shown] == ["storm"]
        # An answer of before may speak of it: that is not an error of the caller's.
        late = await client.record_feedback("docs", [feedback_on(answer, [1])])
        assert (late.recorded_count, late.outdated_count) == (0, 1)
        assert len(await exported(client)) == 1
        assert not [each for each in files_with(tmp_path, b"gull") if "feedback" in each.parts]
        async with asyncio.timeout(30):
            while await exported(client):
                await client.clean_index("docs")


def piece(index_uid: str, hits: int = 1) -> AnswerFeedback:
    answer = ShownAnswer(
        answer_id=os.urandom(16),
        answered_at_us=int(datetime.now(UTC).timestamp() * 1e6),
        index_uid=index_uid,
        query="q",
        hits=[ShownHit(document_id="a", score=0.5)] * hits,
    )
    return AnswerFeedback(answer=answer, choices=[Choice(rank=1)], seen_count=1)


@pytest.mark.parametrize(
    "writer",
    # A piece of a hundred hits has about 900 bytes.
    [{"feedback_waiting": 20}, {"feedback_waiting_bytes": 20 * 900}],
    ids=["pieces", "bytes"],
)
async def test_more_than_the_disk_can_take_is_refused_with_a_delay_and_nothing_told_is_lost(
    tmp_path: Path, writer: dict[str, int]
) -> None:
    async with (
        real_cluster(tmp_path, writer=writer) as cluster,
        client_of(cluster) as client,
    ):
        uid = (await client.create_index("docs")).uid
        stub = WriterServiceStub(cluster.channel("writer-0"))

        async def store(count: int) -> int | ServiceError:
            pieces = [piece(uid, hits=100) for _ in range(count)]
            request = StoreFeedbackRequest(index="docs", feedback=pieces)
            try:
                return (await stub.StoreFeedback(request, timeout=30)).recorded.recorded_count
            except Exception as error:  # noqa: BLE001  # looked at below
                return service_error_of(error)

        results = await asyncio.gather(*(store(7) for _ in range(40)))
        refused = [each for each in results if isinstance(each, ServiceError)]
        assert refused
        assert {each.reason for each in refused} == {Reason.REASON_OVERLOADED}
        assert {each.failure.message.count("bytes") for each in refused} == {2}
        assert all(each.failure.retry_delay_s for each in refused)
        taken = sum(each for each in results if not isinstance(each, ServiceError))
        assert len(await exported(client)) == taken > 0
        # A request that is larger than the queue is taken when nothing waits.
        assert await store(100) == 100


async def test_the_synchronous_client_says_the_same(
    filled: tuple[Cluster, AsyncClient],
) -> None:
    cluster, client = filled
    answer = await answered(client)

    def calls() -> list[FeedbackRecord]:
        with Client(cluster.instances["broker-0"].address) as caller:
            caller.record_feedback("docs", [feedback_on(answer, [2])])
            with pytest.raises(InvalidArgumentError):
                caller.record_feedback("docs", [feedback_on(b"x")])
            with pytest.raises(IndexNotFoundError):
                list(caller.export_feedback("nothing"))
            return list(caller.export_feedback("docs"))

    (record,) = await asyncio.to_thread(calls)
    assert [each.rank for each in record.choices] == [2]
    assert OverloadedError.__doc__


async def shoal(cluster: Cluster, *arguments: object) -> Result:
    """Run a command against the broker."""
    environment = {"SHOAL_ENDPOINT": cluster.instances["broker-0"].address, "COLUMNS": "200"}
    return await asyncio.to_thread(
        CliRunner().invoke, app, [str(each) for each in arguments], env=environment
    )


async def test_choices_become_weighed_pairs_of_what_is_still_the_same(
    filled: tuple[Cluster, AsyncClient], tmp_path: Path
) -> None:
    cluster, client = filled
    out = tmp_path / "pairs.jsonl"
    done = await shoal(cluster, "feedback", "pairs", "docs", out)
    assert done.exit_code == 1
    assert "no pair to write: 0 records" in done.stderr

    answer = await answered(client)
    ids = [each.document_id for each in answer.hits]
    assert ids[0] == "whale"
    await client.record_feedback("docs", [feedback_on(answer, {1: 20.0, 3: 0.1}, principal="eve")])
    # Of one answer the latest counts.
    await client.record_feedback(
        "docs", [feedback_on(answer, {1: 20.0, 2: 9.0, 4: 0.1}, principal="eve")]
    )
    again = await answered(client)
    await client.record_feedback("docs", [feedback_on(again, [1], principal="ann")])

    exported_to = tmp_path / "feedback.jsonl"
    done = await shoal(cluster, "feedback", "export", "docs", exported_to)
    assert (done.exit_code, "2 records." in done.stderr) == (0, True)
    records = [json.loads(line) for line in exported_to.read_text().splitlines()]
    assert {each["query"] for each in records} == {QUESTION}
    assert [len(each["choices"]) for each in records] == [3, 1]

    done = await shoal(cluster, "feedback", "pairs", "docs", out, "--min-dwell", 1, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["pairs"], report["changed_since"], any(report["learnt"][1:])) == (2, 0, False)
    assert report["propensities"] == [1, 0.5, 0.333, 0.25]
    texts = {each["id"]: each["text"] for each in DOCUMENTS}
    pairs = [json.loads(line) for line in out.read_text().splitlines()]
    # Chosen twice at the first rank, and once at the second, which half as many look at.
    assert [each["weight"] for each in pairs] == [1.0, 1.0]
    by_source = {each["source"]: each for each in pairs}
    assert set(by_source) == {"whale", ids[1]}
    assert by_source["whale"]["choices"] == 2
    for source, pair in by_source.items():
        assert (pair["query"], pair["positive"]) == (QUESTION, texts[source])
        assert pair["made_by"] == [
            f"v0 {(await client.describe_index('docs')).index.encoder_model}"
        ]

    written = await client.upsert("docs", [{"id": "whale", "text": "Something else."}])
    await client.search("docs", "x", min_table_version=written.table_version)
    done = await shoal(cluster, "feedback", "pairs", "docs", out, "--min-dwell", 1)
    assert done.exit_code == 0, done.output
    assert "1 pairs in" in done.stdout
    assert "1 have changed since" in done.stdout
    assert "an assumption" in done.stderr
    # The one that a second caller chose is the one that has changed.
    done = await shoal(cluster, "feedback", "pairs", "docs", out, "--min-callers", 2)
    assert done.stdout.startswith("0 pairs in")
    done = await shoal(cluster, "index", "update", "docs", "--no-feedback")
    assert "Nothing of the searches of docs is kept" in done.stdout
    done = await shoal(cluster, "index", "update", "docs", "--feedback")
    assert "Feedback of the searches of docs is kept" in done.stdout
