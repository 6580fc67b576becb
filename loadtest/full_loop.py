"""From training to a promoted model, in one command, while callers ask: does a query notice?

    train ─> export ─> build ─> shadow ─> gate ─> canary ─> promote ─> roll back
                                          └──────────────── a worse model stops here

    python -m loadtest.full_loop [--train | --train 'COMMAND {out}' | --bundle FOLDER]

A cluster on this machine, with the 240 paragraphs of XQuAD English, is asked real questions by
several callers all the time, and written to. First a worse model is rolled out, made of the shipped
one by moving its vectors: the gate must stop it. Then the one that is given, or trained: it must be
promoted. `--train` alone fine-tunes the shipped one on this machine's package lists, by `shoal
train` and `shoal export`; a command is to leave a bundle in the folder {out}. Without either it is
the shipped one under another name, which shows the machinery and no gain. Questions of XQuAD judge;
nothing is trained on them.

Exits with 1 if a query fails or is answered incompletely, if an answer names another model than its
version's, if a write is not found, or if the gate decides otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shoal.client import Client, ShoalError
from shoal.cluster.lifecycle import down, up

from loadtest import machine
from loadtest.measures import percentile
from loadtest.other_bundles import SHIPPED, same_model, scrambled

INDEX: Final = "loop"
CORPUS: Final = Path(__file__).parents[1] / "deploy" / "corpora" / "xquad-en"
SHOAL: Final = str(Path(sys.executable).with_name("shoal"))
# Of what the worse model's vectors are moved by: see `scrambled`.
NOISE: Final = 6.0
# Most that nDCG@10 may fall: the same model, encoded in other batches, may differ by 0.005.
MAX_LOSS: Final = 0.02
# Callers, shadows, judging and the cluster share the machine's cores.
MAX_LATENCY_RATIO: Final = 3.0
# A rollback is to take less than this, from the call to its answer.
ROLLBACK_S: Final = 1.0
# Between two documents that are written, and two questions of a caller.
_WRITE_EVERY_S: Final = 1.0
_ASK_EVERY_S: Final = 0.1
_TIMEOUT_S: Final = 20.0
_ROLLOUT_S: Final = 900.0
# A minute or two on two cores: enough to show in held-out packages.
_TRAINING: Final[dict[str, Any]] = {
    "steps": 24,
    "batch": 32,
    "freeze_layers": 3,
    "max_tokens": 32,
    "rate": 3e-5,
    "temperature.schedule": "cosine",
    "check_every": 24,
    "dev_queries": 200,
    "dev_passages": 400,
}
_TOPOLOGY: Final = """
cluster: loop
broker_port: {port}
scale: {{shards: 2, encoders: 1, rerankers: 0}}
encoder: {{threads: 1}}
"""


@dataclass
class Tally:
    """What callers and the writer saw."""

    answers: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Answers by version and model."""
    latencies_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    written: int = 0

    def __post_init__(self) -> None:
        self._guard = threading.Lock()

    def answered(self, version: int, model: str, seconds: float) -> None:
        """Note an answer."""
        with self._guard:
            self.answers[version, model] += 1
            self.latencies_s.append(seconds)

    def failed(self, what: str) -> None:
        """Note what must not be."""
        with self._guard:
            self.failures.append(what)


class Callers:
    """Threads that ask and write until they are stopped."""

    def __init__(self, endpoint: str, questions: list[str], count: int) -> None:
        """count: of those that ask; one more writes."""
        self.tally = Tally()
        self._endpoint, self._questions = endpoint, questions
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,), daemon=True)
            for number in range(count)
        ]
        self._threads.append(threading.Thread(target=self._write, daemon=True))

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        chance = random.Random(number)
        with Client(self._endpoint, caller=f"caller-{number}") as client:
            while not self._stop.wait(_ASK_EVERY_S):
                question = chance.choice(self._questions)
                begun_s = time.monotonic()
                try:
                    found = client.search(
                        INDEX, question, bypass_cache=True, explain=True, timeout_s=_TIMEOUT_S
                    )
                except ShoalError as error:
                    self.tally.failed(f"a query failed: {error}")
                    continue
                seconds = time.monotonic() - begun_s
                self.tally.answered(found.index_version, found.encoder_model, seconds)
                if not found.coverage.complete:
                    self.tally.failed(f"an answer was incomplete: {found.coverage}")
                named = {
                    (hit.provenance.index_version, hit.provenance.encoder_model)
                    for hit in found.hits
                }
                if named - {(found.index_version, found.encoder_model)}:
                    self.tally.failed(f"an answer mixes versions or models: {named}")

    def _write(self) -> None:
        with Client(self._endpoint, caller="the-writer") as client:
            for number in itertools.count():
                if self._stop.wait(_WRITE_EVERY_S):
                    return
                word = f"zyxomor{number}"
                document = {"id": f"live-{number}", "text": f"The {word} lives in the {word} sea."}
                try:
                    summary = client.upsert(INDEX, [document])
                    found = client.search(
                        INDEX,
                        f"where does the {word} live",
                        min_table_version=summary.table_version,
                        timeout_s=_TIMEOUT_S,
                    )
                except ShoalError as error:
                    self.tally.failed(f"a write, or the search for it, failed: {error}")
                    continue
                self.tally.written += 1
                if document["id"] not in [hit.document_id for hit in found.hits]:
                    self.tally.failed(
                        f"{document['id']} was not found by version {found.index_version}"
                    )


class Loop:
    """The whole loop, over one cluster."""

    def __init__(self, chosen: argparse.Namespace, home: Path) -> None:
        """chosen: the command line. home: of the cluster, and for bundles."""
        self._chosen, self._home = chosen, home
        self.result: dict[str, Any] = {"machine": machine.facts()}

    def run(self) -> list[str]:
        """Run everything; returns what went wrong."""
        topology = self._home / "topology.yaml"
        topology.write_text(_TOPOLOGY.format(port=_free_port()), encoding="utf-8")
        bundle = self._bundle()
        worse = scrambled(self._home / "worse", "worse", noise=NOISE)
        info = up(topology, self._home, report=_say)
        questions = [each["text"] for each in _read_jsonl(CORPUS / "queries.jsonl")]
        with Client(info.endpoint) as client:
            client.create_index(INDEX)
            client.upsert(INDEX, _documents())
            with Callers(info.endpoint, questions, self._chosen.callers) as callers:
                problems = self._roll_out_both(info.endpoint, client, worse, bundle)
        return problems + self._told(callers.tally)

    def _bundle(self) -> Path:
        out = self._home / "bundle"
        if self._chosen.bundle is not None:
            shutil.copytree(self._chosen.bundle, out)
        elif self._chosen.train is not None:
            begun_s = time.monotonic()
            if self._chosen.train:
                _run([part.format(out=out) for part in shlex.split(self._chosen.train)])
            else:
                self.result["trained"] = self._trained(out)
            self.result["training_s"] = round(time.monotonic() - begun_s, 1)
        else:
            same_model(out, f"{SHIPPED.name}-again")
        return out

    def _trained(self, out: Path) -> dict[str, Any]:
        """Fine-tune the shipped encoder and export it; what the training came to."""
        weights = str(self._home / "weights")
        command = [SHOAL, "train", "encoder", weights, "--pairs", "debian", "--json"]
        for name, value in _TRAINING.items():
            command += ["--set", f"{name}={value}"]
        said = _run(command)
        _run([SHOAL, "export", "encoder", weights, str(out), "--name", "all-minilm-l6-v2-debian"])
        # Before the document, the command says how many records there are.
        found = json.loads(said[said.index("{") :])
        return {name: found[name] for name in ("steps", "loss", "before", "after")}

    def _roll_out_both(self, endpoint: str, client: Client, worse: Path, bundle: Path) -> list[str]:
        problems = []
        stopped = self._roll_out(endpoint, worse)
        self.result["worse"] = stopped
        if stopped["exit"] != 1 or stopped["said"]["promoted"]:
            problems.append(f"the worse model was not stopped: {stopped}")
        if client.describe_index(INDEX).index.index_version != 0:
            problems.append("the version that serves changed although the gate said no")
        promoted = self._roll_out(endpoint, bundle, "--canary", "0.3", "--canary-time", "5")
        self.result["better"] = promoted
        if promoted["exit"] != 0 or not promoted["said"].get("promoted"):
            problems.append(f"the model was not promoted: {promoted}")
            return problems
        for deed in ("rollback_s", "forward_s"):
            begun_s = time.monotonic()
            client.rollback_index(INDEX)
            self.result[deed] = round(time.monotonic() - begun_s, 3)
            if self.result[deed] > ROLLBACK_S:
                problems.append(f"a rollback took {self.result[deed]} s")
            time.sleep(1.0)
        return problems

    def _roll_out(self, endpoint: str, bundle: Path, *options: str) -> dict[str, Any]:
        """Run `shoal rollout` as an operator would; how it ended, and what it printed."""
        command = [SHOAL, "rollout", INDEX, "--encoder", str(bundle), "--endpoint", endpoint]
        command += ["--queries", str(CORPUS / "queries.jsonl"), "--limit", "300"]
        command += ["--qrels", str(CORPUS / "qrels" / "test.tsv"), "--shadow-share", "0.5"]
        command += ["--min-queries", str(self._chosen.min_queries), "--yes", "--json", *options]
        gate = self._home / "gate.yaml"
        thresholds = {"max_ndcg_loss": MAX_LOSS, "max_latency_ratio": MAX_LATENCY_RATIO}
        gate.write_text(json.dumps(thresholds), encoding="utf-8")  # JSON is YAML.
        command += ["--gate", str(gate)]
        _say(shlex.join(command))
        begun_s = time.monotonic()
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_ROLLOUT_S, check=False
        )
        _say(done.stderr)
        said = json.loads(done.stdout) if done.stdout else {}
        seconds = round(time.monotonic() - begun_s, 1)
        return {"exit": done.returncode, "seconds": seconds, "said": said}

    def _told(self, tally: Tally) -> list[str]:
        """What callers say; problems of theirs."""
        latencies = sorted(tally.latencies_s)
        self.result["queries"] = {
            "answered": len(latencies),
            "failed": len(tally.failures),
            "median_ms": round(1000 * percentile(latencies, 0.5), 1),
            "p99_ms": round(1000 * percentile(latencies, 0.99), 1),
            "by_version_and_model": {
                f"{version} {model}": count
                for (version, model), count in sorted(tally.answers.items())
            },
            "written_and_found": tally.written,
        }
        models: dict[int, set[str]] = {}
        for version, model in tally.answers:
            models.setdefault(version, set()).add(model)
        mixed = [f"version {each} answered by {of}" for each, of in models.items() if len(of) > 1]
        return tally.failures[:10] + mixed


def _run(command: list[str]) -> str:
    """Run a command that must succeed, and return what it printed."""
    _say(shlex.join(command))
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _documents() -> list[dict[str, str]]:
    return [
        {"id": each["_id"], "title": each["title"], "text": each["text"]}
        for each in _read_jsonl(CORPUS / "corpus.jsonl")
    ]


def _read_jsonl(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _say(text: str) -> None:
    print(text.rstrip(), file=sys.stderr, flush=True)


def main() -> int:
    """Run the loop; 0 if all went as it must."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--bundle", type=Path, help="folder of the bundle to roll out")
    model.add_argument(
        "--train",
        nargs="?",
        const="",
        metavar="COMMAND",
        help="fine-tune on package lists, or by a command that leaves a bundle in the folder {out}",
    )
    parser.add_argument("--callers", type=int, default=3)
    parser.add_argument("--min-queries", type=int, default=50)
    parser.add_argument("--out", type=Path, help="file for the results, JSON")
    chosen = parser.parse_args()
    # Not in a longer path: Ray keeps sockets in its home.
    home = Path(tempfile.mkdtemp(prefix="shoal-loop-"))
    loop = Loop(chosen, home)
    try:
        problems = loop.run()
    finally:
        down(home)
        shutil.rmtree(home, ignore_errors=True)
    loop.result["problems"] = problems
    text = json.dumps(loop.result, indent=1)
    if chosen.out is not None:
        chosen.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
