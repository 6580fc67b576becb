"""The command rollout: a new encoder for an index, judged before it serves."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from shoal.cli.options import AsJson, Endpoint, IndexName, Timeout, connected
from shoal.cli.output import CliError, note, print_json, print_message, print_table, say

if TYPE_CHECKING:
    from shoal.cli.rolling import Outcome, Plan, Rolling
    from shoal.client import Client


def rollout(
    index: IndexName,
    encoder: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Folder of the encoder, which all machines reach."),
    ] = None,
    queries: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Judged queries, JSONL with _id and text.")
    ] = None,
    qrels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Their judgments, as `shoal eval` reads.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Judge by the first N queries only.")
    ] = None,
    gate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Thresholds, YAML. By default: defaults.")
    ] = None,
    min_queries: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Live queries to compare at least.")
    ] = None,
    shadow_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Part of the live queries to compare.")
    ] = 0.2,
    shadow_timeout: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help="Most to wait for them.")
    ] = 600.0,
    canary: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Part of the callers to serve by it first.")
    ] = 0.0,
    canary_time: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="How long that is watched.")
    ] = 60.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the gate says, and promote nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Promote without asking.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Say how far a rollout is.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End a rollout.")] = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 86_400.0,
) -> None:
    """Roll out a new encoder: build a version, shadow it, pass the gate, promote it.

    All passages are encoded anew in the background, while the version that serves goes on. Then a
    share of the live queries is run in both, and both are judged. Only if the gate is passed does
    the new version serve; else the command fails and says why, and what serves is not touched. Run
    again, it goes on where it was. --timeout is for the build.
    """
    from shoal.cli.rolling import Rolling

    with connected(endpoint) as client:
        if status or stop:
            _status(client, index, stop=stop, as_json=as_json)
            return
        if encoder is None:
            raise typer.BadParameter("name the bundle to roll out", param_hint="--encoder")
        plan = _plan(
            index,
            encoder,
            judged=(queries, qrels, limit),
            gate=gate,
            min_queries=min_queries,
            shadow_share=shadow_share,
            shadow_s=shadow_timeout,
            canary_share=canary,
            canary_s=canary_time,
            build_s=timeout,
        )
        rolling = Rolling(client, plan)
        if rolling.serves_already():
            _say_result(index, plan, None, promoted=True, as_json=as_json)
            return
        may = dry_run or yes or sys.stdin.isatty()
        if not may:
            raise CliError("there is nobody to ask before it is promoted: say --yes or --dry-run")
        _run(client, rolling, plan, dry_run=dry_run, yes=yes, as_json=as_json)


def _run(
    client: Client, rolling: Rolling, plan: Plan, *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    from shoal.cli.rolling import ending

    version = rolling.build()
    serving = client.describe_index(plan.index).index.index_version
    with ending(rolling):
        rolling.load(version.number)
        rolling.shadow()
        outcome = rolling.outcome(version, serving)
        if outcome.verdict.passed and plan.canary_share and not dry_run:
            rolling.load(version.number, plan.canary_share)
            rolling.watch_canary()
            outcome = rolling.outcome(version, serving)
        if not as_json:
            _print_checks(outcome)
        _stop_at_gate(plan, outcome, as_json=as_json)
        if not dry_run:
            _confirm(plan, outcome, yes=yes)
            rolling.promote(version.number, serving)
    if dry_run:
        rolling.end()
    _say_result(plan.index, plan, outcome, promoted=not dry_run, as_json=as_json)


def _plan(
    index: str,
    encoder: Path,
    *,
    judged: tuple[Path | None, Path | None, int | None],
    gate: Path | None,
    min_queries: int | None,
    **rest: float,
) -> Plan:
    from shoal.bundle import BundleError, load_bundle
    from shoal.cli.judging import judged as judged_queries
    from shoal.cli.judging import read_qrels, read_queries
    from shoal.cli.rolling import Plan
    from shoal.cluster.config import ConfigError
    from shoal.cluster.gate import read_thresholds

    queries, qrels, limit = judged
    if (queries is None) != (qrels is None):
        raise typer.BadParameter("--queries and --qrels belong together")
    try:
        bundle = load_bundle(encoder)
        thresholds = read_thresholds(gate)
    except (BundleError, ConfigError) as error:
        raise CliError(str(error)) from error
    if min_queries is not None:
        canary = min(min_queries, thresholds.min_canary_queries)
        update = {"min_queries": min_queries, "min_canary_queries": canary}
        thresholds = thresholds.model_copy(update=update)
    asked, judgments = {}, {}
    if queries is not None and qrels is not None:
        judgments = read_qrels(qrels)
        asked = judged_queries(read_queries(queries), judgments, limit)
    return Plan(
        index=index,
        bundle=str(encoder.resolve()),
        model=bundle.model,
        thresholds=thresholds,
        queries=asked,
        judgments=judgments,
        **rest,
    )


def _stop_at_gate(plan: Plan, outcome: Outcome, *, as_json: bool) -> None:
    if outcome.verdict.passed:
        return
    if as_json:
        print_json(_plain(plan.index, plan, outcome, promoted=False))
    reasons = "; ".join(outcome.verdict.reasons)
    raise CliError(
        f"the gate stops version {outcome.candidate} ({plan.model}): {reasons}. Version "
        f"{outcome.serving} serves on; `shoal index drop-version {plan.index} {outcome.candidate}` "
        "removes the other"
    )


def _confirm(plan: Plan, outcome: Outcome, *, yes: bool) -> None:
    if not yes:
        question = f"Promote version {outcome.candidate} ({plan.model}) of {plan.index}?"
        typer.confirm(question, abort=True, err=True)


def _print_checks(outcome: Outcome) -> None:
    rows = [
        (each.name, f"{each.value:.4g}", f"{each.bound:.4g}", "passed" if each.passed else "FAILED")
        for each in outcome.verdict.checks
    ]
    print_table(("check", "value", "bound", ""), rows, numbers=("value", "bound"))
    compared = outcome.report.compared
    if compared and outcome.report.latency_ratio is None:
        note(
            f"Latency was not compared: the brokers had the vectors of all {compared} queries in "
            "their caches. Shadow for longer to have it checked."
        )


def _say_result(
    index: str, plan: Plan, outcome: Outcome | None, *, promoted: bool, as_json: bool
) -> None:
    if as_json:
        print_json(_plain(index, plan, outcome, promoted=promoted))
    elif outcome is None:
        say(f"{plan.model} serves {index} already.")
    elif promoted:
        say(f"Version {outcome.candidate} of {index} serves: {plan.model}.")
        note(f"`shoal index rollback {index}` takes it back in well under a second.")
    else:
        say(f"Version {outcome.candidate} of {index} passes the gate; nothing was promoted.")


def _plain(index: str, plan: Plan, outcome: Outcome | None, *, promoted: bool) -> dict[str, Any]:
    plain: dict[str, Any] = {"index": index, "model": plan.model, "promoted": promoted}
    if outcome is not None:
        plain |= {
            "candidate_version": outcome.candidate,
            "served_before": outcome.serving,
            "passed": outcome.verdict.passed,
            "reasons": outcome.verdict.reasons,
            "checks": [asdict(each) for each in outcome.verdict.checks],
            "report": asdict(outcome.report),
        }
    return plain


def _status(client: Client, index: str, *, stop: bool, as_json: bool) -> None:
    if stop:
        client.set_rollout(index, None)
    seen = client.describe_rollout(index)
    if as_json:
        print_message(seen)
        return
    if not seen.HasField("rollout"):
        say(f"No version of {index} is being rolled out; version {seen.serving_version} serves.")
        return
    rollout_, shadow = seen.rollout, seen.shadow
    state = "loaded" if seen.loaded else "being loaded"
    say(
        f"Version {rollout_.candidate_version} of {index} is {state}; version "
        f"{seen.serving_version} serves. {rollout_.shadow_share:.0%} of the queries are compared, "
        f"{rollout_.canary_share:.0%} of the callers are answered by it."
    )
    say(f"{shadow.compared:,} compared, {shadow.dropped:,} dropped, {shadow.failed:,} failed.")
    if rollout_.canary_share:
        say(f"{seen.canary.answered:,} answered by it, {seen.canary.failed:,} failed.")
