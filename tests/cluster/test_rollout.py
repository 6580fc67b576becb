"""Is another model rolled out on Ray, with its own encoders, while callers ask?"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from shoal.client import Client

from loadtest.other_bundles import same_model, scrambled
from tests.cluster.conftest import RunningCluster, read_jsonl, xquad_file

pytestmark = pytest.mark.cluster

SHOAL = str(Path(sys.executable).with_name("shoal"))
PARAGRAPHS = 24


class Caller(threading.Thread):
    """Asks until it is stopped."""

    def __init__(self, endpoint: str, questions: list[str]) -> None:
        super().__init__(daemon=True)
        self._endpoint, self._questions = endpoint, questions
        self._stopped = threading.Event()
        self.answers: list[tuple[int, str]] = []
        self.failures: list[object] = []

    def run(self) -> None:
        with Client(self._endpoint, caller="caller") as client:
            while not self._stopped.wait(0.05):
                question = self._questions[len(self.answers) % len(self._questions)]
                try:
                    found = client.search("rolled", question, rerank=False, bypass_cache=True)
                    if not found.coverage.complete:
                        self.failures.append(found.coverage)
                    self.answers.append((found.index_version, found.encoder_model))
                except Exception as error:  # noqa: BLE001  # told when it has ended
                    self.failures.append(error)

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _roll_out(cluster: RunningCluster, bundle: Path) -> tuple[int, dict[str, object], str]:
    command = [SHOAL, "rollout", "rolled", "--encoder", str(bundle), "--yes", "--json"]
    command += ["--queries", str(xquad_file("queries")), "--limit", "30", "--min-queries", "5"]
    command += ["--qrels", str(xquad_file("qrels") / "test.tsv"), "--shadow-share", "1"]
    command += ["--endpoint", cluster.info.endpoint]
    # In int8 the same model, encoded in other batches, ranks a little otherwise; and how busy the
    # machine is decides nothing here.
    gate = bundle.with_suffix(".yaml")
    gate.write_text("max_ndcg_loss: 0.03\nmax_latency_ratio: 1000\n")
    command += ["--gate", str(gate)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def test_a_worse_model_is_stopped_and_another_promoted_and_rolled_back(
    cluster: RunningCluster, questions: list[str], tmp_path: Path
) -> None:
    paragraphs = read_jsonl(xquad_file("corpus"))[:PARAGRAPHS]
    with cluster.client() as client:
        client.create_index("rolled")
        client.upsert(
            "rolled",
            (
                {"id": each["_id"], "title": each["title"], "text": each["text"]}
                for each in paragraphs
            ),
        )
        caller = Caller(cluster.info.endpoint, questions[:30])
        caller.start()
        try:
            worse = scrambled(tmp_path / "worse", "worse", noise=6.0)
            code, said, errors = _roll_out(cluster, worse)
            assert (code, said["passed"]) == (1, False), errors
            assert "the gate stops version 1" in errors
            assert {version for version, _ in caller.answers} == {0}

            code, said, errors = _roll_out(cluster, same_model(tmp_path / "good", "good"))
            assert (code, said.get("promoted")) == (0, True), errors
            named = client.search("rolled", questions[0], bypass_cache=True)
            assert (named.index_version, named.encoder_model) == (2, said["model"])
            assert client.rollback_index("rolled").serving_version == 0
            asked = len(caller.answers)
            while len(caller.answers) < asked + 3:
                time.sleep(0.05)
        finally:
            caller.stop()
        assert caller.failures == []
        models: dict[int, set[str]] = {}
        for version, model in caller.answers:
            models.setdefault(version, set()).add(model)
        assert set(models) == {0, 2}
        assert all(len(each) == 1 for each in models.values())
        client.drop_index("rolled")
