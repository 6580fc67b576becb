"""Are negatives mined from a serving index, through its broker, encoder and shards?"""

import asyncio
import itertools
import json
from pathlib import Path

from shoal.cli.main import app
from typer.testing import CliRunner

from loadtest.other_bundles import same_model
from tests.harness.controlled import controlled

XQUAD = Path(__file__).parents[2] / "deploy" / "corpora" / "xquad-en"
PARAGRAPHS, QUESTIONS = 40, 60


def lines(path, count):
    with path.open() as file:
        return [json.loads(line) for line in itertools.islice(file, count)]


async def test_negatives_come_from_the_version_that_serves(tmp_path):
    documents = lines(XQUAD / "corpus.jsonl", PARAGRAPHS)
    texts = {each["_id"]: each["text"] for each in documents}
    answers = dict(
        row.split("\t")[:2] for row in (XQUAD / "qrels" / "test.tsv").read_text().splitlines()[1:]
    )
    pairs = [
        {"query": each["text"], "positive": texts[answers[each["_id"]]]}
        for each in lines(XQUAD / "queries.jsonl", 400)
        if answers[each["_id"]] in texts
    ][:QUESTIONS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in pairs))
    base = same_model(tmp_path / "base", "base")
    declared = {"encoder": {"bundle": str(base), "threads": 1}}
    async with controlled(tmp_path / "home", **declared) as (cluster, client):
        await client.create_index("docs")
        await client.upsert(
            "docs", [{"id": each["_id"], "text": each["text"]} for each in documents]
        )
        out = tmp_path / "out.jsonl"
        arguments = ["mine", "docs", "--pairs", str(tmp_path / "pairs.jsonl"), "--out", str(out)]
        arguments += ["--margin", "0.2", "--top-k", "30", "--count", "3", "--json"]
        arguments += ["--endpoint", f"127.0.0.1:{cluster.config.broker_port}"]
        done = await asyncio.to_thread(CliRunner().invoke, app, arguments)
        assert done.exit_code == 0, done.stderr
        mined = [json.loads(line) for line in out.read_text().splitlines()]
        model = (await client.describe_index("docs")).index.encoder_model

        said = json.loads(done.stdout)
        assert said["written"] == len(mined)
        distinct = {(each["query"], each["positive"]) for each in pairs}
        assert said["pairs"] == len(distinct)
        assert said["written"] + said["unfound"] + said["without"] == said["pairs"]
        assert len(mined) > QUESTIONS // 2
        for each in mined:
            found = await client.search("docs", each["query"], top_k=30, hybrid=False, rerank=False)
            scores = {(hit.document_id, hit.passage): hit.dense_score for hit in found.hits}
            right = [key for key in scores if texts[key[0]] == each["positive"]]
            assert right
            assert 1 <= len(each["negatives"]) <= 3
            assert (each["index"], each["index_version"], each["model"]) == ("docs", 0, model)
            for negative in each["negatives"]:
                key = (negative["document"], negative["passage"])
                assert key not in right
                # In int8 a vector depends a little on what is encoded beside it.
                assert negative["score"] <= max(scores[each] for each in right) - 0.2 + 0.1
                assert abs(negative["score"] - scores.get(key, negative["score"])) < 0.1
