"""Is a shift of what is asked noticed, said and forgotten again, and no question's text kept?"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from shoal.cli.main import app
from shoal.client import (
    AsyncClient,
    FailedPreconditionError,
    IndexNotFoundError,
    feedback_on,
    search_request,
)
from shoal.drift.comparison import MIN_SAMPLE
from shoal.internal.v1.drift_pb2 import StoreQuerySampleRequest
from shoal.internal.v1.writer_pb2 import ListTablesRequest
from shoal.internal.v1.writer_pb2_grpc import WriterServiceStub
from shoal.v1.drift_pb2 import DriftMeasure, MeasureDriftResponse
from shoal.writer.cleaning import Cleaner, Purged
from shoal.writer.drift_files import DriftFiles
from typer.testing import CliRunner

from tests.harness.cluster import Cluster
from tests.harness.real import ENCODER, client_of, real_cluster

CORPUS = Path(__file__).parents[2] / "deploy" / "corpora" / "xquad-en"
GREEK = [
    "ποιο",
    "είναι",
    "το",
    "μεγαλύτερο",
    "ζώο",
    "που",
    "έζησε",
    "ποτέ",
    "στη",
    "θάλασσα",
    "και",
    "γιατί",
    "πότε",
    "ποιος",
]
# Every question is sent, at once; a window is full as soon as it holds enough.
EAGER = {"drift_flush_s": 0.05, "drift_sample_count": 1024}
SECRET = "the-secret-question-4711"


def english(count: int, seed: int) -> list[str]:
    lines = (CORPUS / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    return Random(seed).sample([json.loads(line)["text"] for line in lines], count)


def greek(count: int, seed: int) -> list[str]:
    random = Random(seed)
    return [" ".join(random.sample(GREEK, 6)) for _ in range(count)]


async def ask(client: AsyncClient, questions: Sequence[str], **fields: Any) -> None:
    for start in range(0, len(questions), 64):
        searches = [
            search_request("docs", each, top_k=3, rerank=False, bypass_cache=True, **fields)
            for each in questions[start : start + 64]
        ]
        answers = await client.batch_search(searches)
        assert all(each.HasField("response") for each in answers.results)


async def measured(
    client: AsyncClient, holds: Callable[[MeasureDriftResponse], bool]
) -> MeasureDriftResponse:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(IndexNotFoundError):  # After a restart, for a moment.
                found = await client.measure_drift("docs")
                if holds(found):
                    return found
            await asyncio.sleep(0.2)


def by_name(found: MeasureDriftResponse, subject: str = "query") -> dict[str, DriftMeasure]:
    return {each.name: each for each in found.measures if each.subject == subject}


async def alert_of(cluster: Cluster) -> str:
    writer = WriterServiceStub(cluster.channel("writer-0"))
    (entry,) = (await writer.ListTables(ListTablesRequest(), timeout=30)).entries
    return entry.drift_alert


async def send_sample_of(cluster: Cluster, *, index_version: int) -> None:
    """Send a question as a broker does that follows another version."""
    writer = WriterServiceStub(cluster.channel("writer-0"))
    (entry,) = (await writer.ListTables(ListTablesRequest(), timeout=30)).entries
    sample = StoreQuerySampleRequest(
        index_uid=entry.uid,
        index_version=index_version,
        encoder_model=entry.encoder_model,
        asked_count=1,
        vectors=np.ones(entry.dimension, "<f4").tobytes(),
        texts=["whale"],
        best_scores=[0.5],
    )
    await writer.StoreQuerySample(sample, timeout=30)


async def shoal(cluster: Cluster, *arguments: object) -> Result:
    """Run a command against the broker."""
    environment = {"SHOAL_ENDPOINT": cluster.instances["broker-0"].address, "COLUMNS": "200"}
    return await asyncio.to_thread(
        CliRunner().invoke, app, [str(each) for each in arguments], env=environment
    )


async def fill(client: AsyncClient) -> None:
    await client.create_index("docs")
    lines = (CORPUS / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    passages = [json.loads(line)["text"][:200] for line in lines[:MIN_SAMPLE]]
    documents = [{"id": f"d{at}", "text": text} for at, text in enumerate(passages)]
    await client.upsert("docs", [*documents, {"id": "purged", "text": "To be purged."}])


async def test_a_shift_of_questions_is_noticed_said_and_forgotten_when_it_is_the_reference(
    tmp_path: Path,
) -> None:
    writer = {"tokenizer": ENCODER, "drift_interval_s": 1.0}
    async with (
        real_cluster(tmp_path, writer=writer, broker=EAGER) as cluster,
        client_of(cluster) as client,
    ):
        await fill(client)
        with pytest.raises(IndexNotFoundError):
            await client.measure_drift("nothing")
        with pytest.raises(FailedPreconditionError, match=f"needs {MIN_SAMPLE}") as few:
            await client.set_drift_reference("docs")
        assert few.value.reason == "TOO_FEW_QUERIES"

        await ask(client, [*english(219, 0), SECRET])
        await ask(client, greek(30, 0), no_feedback=True)
        await measured(client, lambda found: found.window_queries == 220)
        taken = await client.set_drift_reference("docs")
        assert (taken.queries, taken.passages) == (220, MIN_SAMPLE + 1)

        # What is asked of a certain version, or was of another one, is not what the index is asked.
        await ask(client, greek(30, 5), index_version=0)
        await send_sample_of(cluster, index_version=9)

        await ask(client, english(210, 1))
        same = await measured(client, lambda found: found.window_queries == 210)
        assert same.reference_queries == 220
        assert same.alert == ""
        assert not any(each.alarming for each in same.measures)
        names = by_name(same)
        assert {"vectors", "component 8", "best score", "script", "unknown words"} <= set(names)
        assert list(names["script"].bins) == ["latin"]
        assert by_name(same, "passage")["vectors"].p_value > 0.01
        assert {(each.subject, each.reference) for each in same.points} == {
            (subject, reference) for subject in ("query", "passage") for reference in (True, False)
        }

        await ask(client, greek(210, 1))
        shifted = await measured(client, lambda found: found.window_queries == 420)
        assert "questions (vectors: discrepancy" in shifted.alert
        assert "--set-reference" in shifted.alert
        names = by_name(shifted)
        # What is said is said of one moment, whatever comes while it is measured.
        assert sum(names["component 1"].window_counts) == shifted.window_queries
        for name in ("vectors", "component 1", "script", "unknown words"):
            assert names[name].alarming, name
        assert names["unknown words"].now > names["unknown words"].before
        assert not any(each.alarming for each in by_name(shifted, "passage").values())
        pages = tmp_path / "report"
        done = await shoal(cluster, "drift", "docs", "--report", pages)
        assert done.exit_code == 1, done.output
        assert "drifted" in done.stdout
        assert "420 questions, drawn from 420" in done.stdout
        page = (pages / "report.html").read_text(encoding="utf-8")
        assert page.count("data:image/png;base64,") == 6
        pictures = sorted(each.name for each in pages.glob("*.png"))
        assert pictures == [
            f"{subject}-{what}.png"
            for subject in ("passage", "query")
            for what in ("components", "map", "measures")
        ]
        printed = json.loads((await shoal(cluster, "drift", "docs", "--json")).stdout)
        assert printed["alert"] == shifted.alert
        # The writer says so by itself, to whoever reads the catalogue.
        async with asyncio.timeout(30):
            while "drift since" not in await alert_of(cluster):
                await asyncio.sleep(0.05)

        done = await shoal(cluster, "drift", "docs", "--set-reference")
        assert "420 questions and 201 passages of docs" in done.stdout
        assert await alert_of(cluster) == ""
        await ask(client, [*english(105, 2), *greek(105, 2)])
        again = await measured(client, lambda found: found.window_queries == 210)
        assert again.alert == ""

        # Beside them is what is being written, for a moment.
        stored = {each.name for each in (tmp_path / "indexes").glob("*/drift/[!.]*")}
        assert stored == {"reference.npz", "window.npz"}
        await client.purge("docs", ["purged"])
        after = await client.measure_drift("docs")
        passages = by_name(after, "passage")["component 1"]
        assert sum(passages.reference_counts) == MIN_SAMPLE
    # No question's text was kept, and what was is there again after a restart.
    everything = [each for each in tmp_path.rglob("*") if each.is_file()]  # noqa: ASYNC240
    assert not any(SECRET.encode() in each.read_bytes() for each in everything)
    async with (
        real_cluster(tmp_path, writer=writer, broker=EAGER) as cluster,
        client_of(cluster) as client,
    ):
        kept = await measured(client, lambda found: found.window_queries == 210)
        assert kept.reference_queries == 420
        await client.update_index("docs", feedback_disabled=True)
        await client.clean_index("docs")
        gone = await client.measure_drift("docs")
        assert (gone.reference_queries, gone.window_queries) == (0, 0)
        assert "no reference yet" in gone.status


async def test_a_full_window_becomes_the_reference_and_choices_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        real_cluster(tmp_path, writer={"drift_window_s": 2.0}, broker=EAGER) as cluster,
        client_of(cluster) as client,
    ):
        await client.create_index("docs")
        written = await client.upsert("docs", [{"id": "a", "text": "whale"}])
        async with asyncio.timeout(30):
            while True:
                answer = await client.search(
                    "docs", "whale", min_table_version=written.table_version
                )
                if answer.answer_token:
                    break
                await asyncio.sleep(0.05)

        async def feedback(chosen: int, of: int) -> None:
            # Of a certain version, so that they are not among the questions.
            whale = search_request("docs", "whale", index_version=0)
            answers = [
                each.response
                for _ in range(2)
                for each in (await client.batch_search([whale] * (of // 2))).results
            ]
            pieces = [
                feedback_on(each, [1] if at < chosen else []) for at, each in enumerate(answers)
            ]
            await client.record_feedback("docs", pieces)

        await measured(client, lambda found: found.window_queries > 0)
        await feedback(60, 80)
        async with asyncio.timeout(60):
            while True:
                await ask(client, english(210, 3))
                if (await client.measure_drift("docs")).reference_queries:
                    break
        await feedback(5, 80)
        await ask(client, english(210, 4))
        # The window that began when the reference was taken, and not the one it was made of.
        found = await measured(
            client,
            lambda found: (
                "choices" in by_name(found)
                and found.window_time.ToSeconds() >= found.reference_time.ToSeconds() - 1
            ),
        )
        choices = by_name(found)["choices"]
        assert choices.alarming
        assert (choices.before, choices.now) == (0.75, 0.0625)

        purge = Cleaner.purge

        async def with_reference(self: Cleaner, document_ids: Sequence[str]) -> Purged:
            taken = await client.set_drift_reference("docs")
            assert taken.passages == 1
            return await purge(self, document_ids)

        # A reference that is taken while a document is purged does not keep it either.
        monkeypatch.setattr(Cleaner, "purge", with_reference)
        await client.purge("docs", ["a"])
        (folder,) = (tmp_path / "indexes").iterdir()
        reference = DriftFiles(folder).reference()
        assert reference is not None
        assert len(reference.passages) == 0
