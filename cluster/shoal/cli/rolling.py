"""How does a new encoder come to serve, step by step?

    build ──> load ──> shadow ──> judge ──> gate ──> canary ──> promote
                                             │         │
                                             └─ no ────┴──> the rollout ends; what serves stays

All state is the cluster's: a version that was built is found again, and so is a rollout that is
under way, so that a command that was cut off goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from shoal.cli.asking import ask
from shoal.cli.evaluation import best_passages
from shoal.cli.judging import Judgments, Run, measure
from shoal.cli.output import CliError, note
from shoal.cli.progress import progress
from shoal.cli.versions import wait_for_build
from shoal.cluster.gate import (
    CanarySeen,
    GateThresholds,
    Judged,
    RolloutReport,
    Verdict,
    decide,
    decide_canary,
    latency_ratio_of,
    mean_of,
    paired_latency_ratio,
)

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.v1.indexes_pb2 import DescribeRolloutResponse, IndexVersion

# Between two looks at a rollout.
POLL_S: Final = 0.5
# For shards that are made from the table, and encoders that start.
LOAD_S: Final = 3600.0
# Times that a build is begun again which the controller's restart has interrupted. What it had
# encoded is kept.
BUILD_ATTEMPTS: Final = 3
_INTERRUPTED: Final = "the controller was restarted"
# Judged queries in a call, and calls at a time: few, as callers are being served meanwhile.
BATCH: Final = 16
CALLS: Final = 2
# Queries of either side whose times are compared at least: they are not the same queries.
TIMED_QUERIES: Final = 20
# Documents that nDCG@10 looks at, with room for several passages of one.
_JUDGED_DEPTH: Final = 30


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    index: str
    bundle: str
    """Folder of the encoder's bundle, as the cluster's machines see it."""
    model: str
    """`name@fingerprint` of it."""
    thresholds: GateThresholds
    queries: Mapping[str, str] = field(default_factory=dict)
    """Judged queries, by id. Empty: nothing is judged."""
    judgments: Judgments = field(default_factory=dict)
    shadow_share: float = 0.2
    shadow_s: float = 600.0
    """Most to wait for queries of callers."""
    canary_share: float = 0.0
    canary_s: float = 60.0
    build_s: float = 7 * 86_400.0


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    candidate: int
    serving: int
    """Version that served before."""
    report: RolloutReport
    verdict: Verdict


class Rolling:
    """One rollout, driven by a client."""

    def __init__(self, client: Client, plan: Plan) -> None:
        """Nothing is done before the methods are called, in their order."""
        self._client, self._plan = client, plan
        self._candidate: int | None = None
        self._judged: tuple[Judged, ...] = ()
        # What ended the canary early.
        self._failing: CanarySeen | None = None

    def serves_already(self) -> bool:
        """True if the model answers searches now."""
        described = self._client.describe_index(self._plan.index).index
        return bool(described.encoder_model == self._plan.model)

    def build(self) -> IndexVersion:
        """Have a version of the model: one that is there, or is being built, or another one."""
        from shoal.v1.indexes_pb2 import IndexVersionState

        client, plan = self._client, self._plan
        for _ in range(BUILD_ATTEMPTS):
            version = self._known_version()
            if version is None:
                version = client.build_index_version(
                    plan.index, encoder_bundle=plan.bundle, timeout_s=120.0
                )
            if version.state == IndexVersionState.INDEX_VERSION_STATE_READY:
                return version
            try:
                return wait_for_build(client, plan.index, version.number, plan.build_s)
            except CliError as error:
                if _INTERRUPTED not in str(error):
                    raise
                note(f"{error}; it goes on with what is encoded")
        raise CliError(f"the build was interrupted {BUILD_ATTEMPTS} times: see `shoal status`")

    def _known_version(self) -> IndexVersion | None:
        from shoal.v1.indexes_pb2 import IndexVersionState

        usable = (
            IndexVersionState.INDEX_VERSION_STATE_READY,
            IndexVersionState.INDEX_VERSION_STATE_BUILDING,
        )
        model, found = self._plan.model, self._client.index_versions(self._plan.index).versions
        mine = [
            each
            for each in found
            if each.encoder_model == model and each.state in usable and not each.space
        ]
        return mine[-1] if mine else None

    def load(self, candidate: int, canary_share: float = 0.0) -> None:
        """Have the candidate loaded and shadowed. Returns once it can be searched."""
        plan, self._candidate = self._plan, candidate
        self._client.set_rollout(
            plan.index, candidate, shadow_share=plan.shadow_share, canary_share=canary_share
        )
        with progress(f"loading version {candidate}") as advance:
            until_s = time.monotonic() + LOAD_S
            while not ((seen := self._seen()) and seen.loaded):
                if time.monotonic() < until_s:
                    advance(0, "")
                    time.sleep(POLL_S)
                    continue
                raise CliError(
                    f"version {candidate} was not loaded after {LOAD_S:.0f} s: `shoal status` says "
                    "what keeps it"
                )

    def shadow(self) -> None:
        """Wait until enough queries of callers were compared, or for as long as may be."""
        wanted = self._plan.thresholds.min_queries
        if wanted == 0:
            return
        with progress("comparing live queries", wanted, "queries") as advance:
            self._wait(
                lambda seen: seen.shadow.compared >= wanted,
                self._plan.shadow_s,
                lambda seen: advance(min(wanted, seen.shadow.compared), ""),
            )

    def watch_canary(self) -> None:
        """Let a part of the callers be served by the candidate for a while.

        No longer, once it fails or is slow: the verdict is of that moment then.
        """
        seconds, thresholds = self._plan.canary_s, self._plan.thresholds
        until_s = time.monotonic() + seconds
        with progress(f"canary for {self._plan.canary_share:.0%} of callers") as advance:
            while time.monotonic() < until_s:
                canary = canary_of(self._describe())  # Ends if somebody has ended the rollout.
                if canary is not None and has_failed(canary, thresholds):
                    self._failing = canary
                    return
                advance(0, f"{until_s - time.monotonic():.0f} s left")
                time.sleep(min(POLL_S, seconds))

    def outcome(self, version: IndexVersion, serving: int) -> Outcome:
        """Judge the candidate, and decide."""
        report = self.report(version, serving)
        verdict = decide(report, self._plan.thresholds)
        return Outcome(version.number, serving, report, verdict)

    def report(self, version: IndexVersion, serving: int) -> RolloutReport:
        """What is known of the candidate by now."""
        seen = self._describe()
        canary = self._failing or canary_of(seen)
        if canary is None or not has_failed(canary, self._plan.thresholds):
            # Else its callers wait for the end: what was judged before it must do.
            self._judged = tuple(self._judge(serving, version.number))
            # That took a while, in which the canary's callers were served.
            seen = self._describe()
            canary = canary_of(seen)
        shadow = seen.shadow
        return RolloutReport(
            compared=shadow.compared,
            failed=shadow.failed,
            dropped=shadow.dropped,
            overlap=mean_of(shadow.overlap),
            rank_biased_overlap=mean_of(shadow.rank_biased_overlap),
            kendall_tau=mean_of(shadow.kendall_tau),
            latency_ratio=paired_latency_ratio(shadow.serving_ms, shadow.candidate_ms),
            recall=version.recall,
            recall_target=version.recall_target,
            canary=canary,
            judged=self._judged,
        )

    def promote(self, candidate: int, serving: int) -> None:
        """Make the candidate serve, unless another version has come into force meanwhile."""
        now = self._client.promote_index_version(
            self._plan.index, candidate, expected_serving_version=serving, timeout_s=120.0
        )
        if now != candidate:
            raise CliError(
                f"version {candidate} is promoted and still being loaded; version {now} answers: "
                "`shoal index versions` says when it serves"
            )

    def end(self) -> None:
        """End the rollout; the version stays, and what serves is not touched."""
        if self._candidate is None or self._seen() is not None:
            self._client.set_rollout(self._plan.index, None)

    def _seen(self) -> DescribeRolloutResponse | None:
        """The rollout of this candidate; None if a broker knows of none, or of another's."""
        seen = self._client.describe_rollout(self._plan.index)
        named = seen.rollout.candidate_version if seen.HasField("rollout") else None
        return seen if named is not None and self._candidate in (None, named) else None

    def _describe(self) -> DescribeRolloutResponse:
        if (seen := self._seen()) is None:
            raise CliError(
                "the rollout was ended meanwhile, or another begun: what serves was not touched"
            )
        return seen

    def _wait(
        self,
        holds: Callable[[DescribeRolloutResponse], bool],
        seconds: float,
        show: Callable[[DescribeRolloutResponse], None],
    ) -> bool:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            seen = self._describe()
            show(seen)
            if holds(seen):
                return True
            time.sleep(POLL_S)
        return False

    def _judge(self, serving: int, candidate: int) -> Iterator[Judged]:
        if not self._plan.queries:
            return
        for way, hybrid in (("by vectors", False), ("by vectors and words", True)):
            scores = [
                self._ndcg(number, hybrid=hybrid, title=f"judging version {number} {way}")
                for number in (serving, candidate)
            ]
            yield Judged(way, *scores)

    def _ndcg(self, version: int, *, hybrid: bool, title: str) -> float:
        from shoal.client import search_request

        plan, run = self._plan, Run()
        ids = list(plan.queries)

        def rank(batch: Sequence[str]) -> Run:
            requests = [
                search_request(
                    plan.index,
                    plan.queries[each],
                    top_k=_JUDGED_DEPTH,
                    rerank=False,
                    hybrid=hybrid,
                    omit_text=True,
                    bypass_cache=True,
                    no_feedback=True,
                    index_version=version,
                )
                for each in batch
            ]
            answers = ask(self._client, requests, timeout_s=60.0)
            return {key: best_passages(each) for key, each in zip(batch, answers, strict=True)}

        with progress(title, len(ids), "queries") as advance, ThreadPoolExecutor(CALLS) as pool:
            for ranked in pool.map(rank, _batches(ids)):
                run |= ranked
                advance(len(run), "")
        return measure(run, plan.judgments)["nDCG@10"]


def canary_of(seen: DescribeRolloutResponse) -> CanarySeen | None:
    """How the canary's callers have fared; None if there is no canary."""
    if seen.rollout.canary_share == 0:
        return None
    canary = seen.canary
    others = canary.serving_answered + canary.serving_failed
    enough = min(len(canary.serving_ms), len(canary.candidate_ms)) >= TIMED_QUERIES
    return CanarySeen(
        answered=canary.answered,
        failed=canary.failed,
        serving_failed_share=canary.serving_failed / max(1, others),
        latency_ratio=latency_ratio_of(canary.serving_ms, canary.candidate_ms) if enough else None,
    )


def has_failed(canary: CanarySeen, thresholds: GateThresholds) -> bool:
    """True if enough queries say that a canary is to be stopped."""
    enough = canary.answered + canary.failed >= max(1, thresholds.min_canary_queries)
    return enough and not decide_canary(canary, thresholds).passed


@contextmanager
def ending(rolling: Rolling) -> Iterator[None]:
    """End a rollout if something goes wrong in it: nothing of it is left loaded."""
    try:
        yield
    except BaseException:
        rolling.end()
        raise


def _batches(ids: Sequence[str]) -> Iterator[list[str]]:
    rest = iter(ids)
    while batch := list(islice(rest, BATCH)):
        yield batch
