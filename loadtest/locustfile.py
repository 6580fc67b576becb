"""How does a cluster bear the questions of many callers?

Real questions, zipfian, over gRPC, some of them as vectors. In one command, from the repository's
root:

    locust -f loadtest/locustfile.py --headless -u 20 -r 20 -t 30s --host 127.0.0.1:7600 \
        --index xquad --max-p99-ms 500 --max-failures 0.001 --min-coverage 0.999

Exits with 1 if a threshold is missed.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, ClassVar, Final

from grpc.experimental import gevent as grpc_gevent
from locust import User, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest.thresholds import Observed, Thresholds, misses
from loadtest.zipf import ZipfianChoice, read_questions

# Locust has patched the standard library; gRPC's own threads must learn of it before a channel
# opens.
grpc_gevent.init_gevent()

from shoal.client import Client, ShoalError  # noqa: E402

_log = logging.getLogger(__name__)

QUESTIONS: Final = Path(__file__).parents[1] / "deploy/corpora/xquad-en/queries.jsonl"
TIMEOUT_S: Final = 10.0


class Answers:
    """Counts what Locust itself does not know: whether answers were complete."""

    complete: ClassVar[int] = 0


class Caller(User):  # type: ignore[misc]  # Locust is untyped.
    """Asks the broker question after question."""

    _numbers: ClassVar[itertools.count[int]] = itertools.count()
    _client: ClassVar[Client | None] = None
    _dimension: ClassVar[int] = 0

    def wait_time(self) -> float:
        """Seconds until the next question: none, unless --per-caller bounds the pace."""
        pace: float = self.environment.parsed_options.per_caller
        return constant_throughput(pace)(self) if pace else 0.0

    def on_start(self) -> None:
        """Get questions of its own order, and the connection that all callers share."""
        options = self.environment.parsed_options
        seed = options.seed + next(Caller._numbers)
        # All callers find the same questions popular, and ask them in orders of their own.
        self._questions = ZipfianChoice(
            _questions(options), exponent=options.zipf, seed=options.seed
        )
        self._questions.reseed(seed)
        self._random = random.Random(seed)
        if Caller._client is None:
            client = Client(_endpoint(self.environment))
            if options.vector_share > 0:
                described = client.describe_index(options.index, timeout_s=TIMEOUT_S)
                Caller._dimension = described.index.dimension
            # Last: while the index was being described, other callers had their turn.
            Caller._client = client

    @task  # type: ignore[untyped-decorator]
    def search(self) -> None:
        """Ask one question, as text or as a vector."""
        options = self.environment.parsed_options
        by_vector = self._random.random() < options.vector_share
        query = self._vector() if by_vector else self._questions.next()
        assert Caller._client is not None
        started_s, error, size = time.perf_counter(), None, 0
        try:
            answer = Caller._client.search(
                options.index,
                query,
                top_k=options.top_k,
                rerank=not options.no_rerank,
                bypass_cache=options.no_cache,
                timeout_s=TIMEOUT_S,
            )
        except ShoalError as failure:
            error = failure
        else:
            size = answer.ByteSize()
            Answers.complete += answer.coverage.complete
        self.environment.events.request.fire(
            request_type="gRPC",
            name="Search by vector" if by_vector else "Search by text",
            response_time=(time.perf_counter() - started_s) * 1e3,
            response_length=size,
            exception=error,
        )

    def _vector(self) -> list[float]:
        values = [self._random.gauss(0.0, 1.0) for _ in range(Caller._dimension)]
        length = math.hypot(*values)
        return [value / length for value in values]


def _questions(options: Namespace) -> list[str]:
    return read_questions(Path(options.questions))


def _endpoint(environment: Environment) -> str:
    return (environment.host or "127.0.0.1:7600").removeprefix("http://").rstrip("/")


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: LocustArgumentParser, **_: Any) -> None:
    """Add Shoal's options to Locust's."""
    add = parser.add_argument_group("Shoal").add_argument
    add("--index", default="xquad", help="index to search")
    add("--questions", default=str(QUESTIONS), help="queries.jsonl, BEIR style")
    add(
        "--zipf",
        type=float,
        default=1.0,
        help="of the questions' popularity; 0: all alike",
    )
    add(
        "--vector-share",
        type=float,
        default=0.0,
        help="share of queries by random vector, 0 to 1",
    )
    add("--top-k", type=int, default=10, help="hits wanted")
    add("--no-rerank", action="store_true", help="rank by the vectors alone")
    add("--no-cache", action="store_true", help="have every query computed")
    add(
        "--per-caller",
        type=float,
        default=0.0,
        help="queries a second of a caller; 0: no bound",
    )
    add("--seed", type=int, default=1, help="of all choices")
    add("--max-p99-ms", type=float, help="fail above this p99, in milliseconds")
    add("--max-failures", type=float, help="fail above this share of failed calls, 0 to 1")
    add("--min-coverage", type=float, help="fail below this share of complete answers, 0 to 1")


@events.report_to_master.add_listener  # type: ignore[untyped-decorator]
def report(data: dict[str, Any], **_: Any) -> None:
    """Tell the master, where there is one, what a worker counted since the last report."""
    data["complete"], Answers.complete = Answers.complete, 0


@events.worker_report.add_listener  # type: ignore[untyped-decorator]
def take_report(data: dict[str, Any], **_: Any) -> None:
    """Add what a worker counted."""
    Answers.complete += data.get("complete", 0)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def judge(environment: Environment, **_: Any) -> None:
    """Set the exit code by the thresholds."""
    options, total = environment.parsed_options, environment.stats.total
    thresholds = Thresholds(options.max_p99_ms, options.max_failures, options.min_coverage)
    observed = Observed(
        calls=total.num_requests,
        failures=total.num_failures,
        complete=Answers.complete,
        p99_ms=total.get_response_time_percentile(0.99) or 0.0,
    )
    missed = misses(thresholds, observed)
    for sentence in missed:
        _log.error("threshold missed: %s", sentence)
    environment.process_exit_code = 1 if missed else 0
