"""The command about drift: measure it, show it, and say that it is as it should be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from shoal.cli.options import AsJson, Endpoint, IndexName, Timeout, connected
from shoal.cli.output import note, print_json, print_message, print_table, printable, say

if TYPE_CHECKING:
    from shoal.v1.drift_pb2 import DriftMeasure, MeasureDriftResponse

COLUMNS: Final = ("", "what", "before", "now", "index", "by chance", "")


def drift(
    name: IndexName,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write report.html and its pictures there (extra: plots).",
            show_default=False,
        ),
    ] = None,
    set_reference: Annotated[
        bool,
        typer.Option(
            "--set-reference", help="What is asked and held now is what is to be expected."
        ),
    ] = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 30.0,
) -> None:
    """Compare what an index is asked, holds and answers with its reference.

    The exit code is 1 if something has drifted.
    """
    if set_reference:
        _set_reference(name, endpoint, as_json=as_json, timeout_s=timeout)
        return
    with connected(endpoint) as client:
        found = client.measure_drift(name, timeout_s=timeout)
    written = None
    if report is not None:
        # Imports what draws: slow, and an extra.
        from shoal.cli.drift_plots import write_report

        written = write_report(name, found, report)
    if as_json:
        print_message(found)
    else:
        _print(found)
        if written is not None:
            note(f"The report is {written}.")
    if found.alert:
        raise typer.Exit(1)


def _set_reference(name: str, endpoint: str | None, *, as_json: bool, timeout_s: float) -> None:
    with connected(endpoint) as client:
        taken = client.set_drift_reference(name, timeout_s=timeout_s)
    if as_json:
        print_json({"index": name, "queries": taken.queries, "passages": taken.passages})
    else:
        say(
            f"{taken.queries:,} questions and {taken.passages:,} passages of {name} are the "
            "reference now."
        )


def _print(found: MeasureDriftResponse) -> None:
    say(f"{found.status}.")
    if found.measures:
        rows = [row_of(each) for each in found.measures]
        print_table(COLUMNS, rows, numbers=COLUMNS[2:6])
    if found.alert:
        say(printable(found.alert), "red")
    elif found.measures:
        say("Nothing has moved far, and beyond chance.", "green")


def row_of(measure: DriftMeasure) -> tuple[str, ...]:
    """A measure as a row of `COLUMNS`."""
    verdict = "drifted" if measure.alarming else ""
    if measure.HasField("p_value"):
        squared = f"{measure.discrepancy:.4f}"
        return (measure.subject, measure.name, "", squared, f"p {measure.p_value:.2g}", "", verdict)
    return (
        measure.subject,
        measure.name,
        f"{measure.before:.3f}",
        f"{measure.now:.3f}",
        f"{measure.stability_index:.3f}",
        f"{measure.chance_index:.3f}",
        verdict,
    )
