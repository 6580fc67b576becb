"""What did the living index do, for a person?"""

from __future__ import annotations

from typing import Any, Final

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

_WIDTH: Final = 130


def print_living(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the phases, the ratios, and which targets were met."""
    console = console or Console()
    console.width = max(console.width, _WIDTH)
    plan, writes = results["plan"], results["writes"]
    title = (
        f"{plan['vectors']['count']:,} x {plan['vectors']['dimension']} vectors, "
        f"{plan['queries_per_s']:g} queries/s, {plan['upserts_per_s']} upserts/s, "
        f"{plan['deletes_per_s']} deletes/s"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("phase", no_wrap=True)
    headings = ("s", "queries", "failed", "partial", "stale", "recall", "lowest")
    for heading in (*headings, "p50 ms", "p99 ms", "worst", "/ rest", "disturbed", "others"):
        table.add_column(heading, justify="right", no_wrap=True)
    for found in results["phases"]:
        ratio = results["ratios"].get(found["phase"])
        others = results["undisturbed_ratios"].get(found["phase"])
        table.add_row(
            found["phase"],
            f"{found['seconds']:.0f}",
            f"{found['queries']:,}",
            str(found["failed"]),
            str(found["incomplete"]),
            str(found["outdated"]),
            f"{found['recall']:.3f}",
            f"{found['lowest_recall']:.3f}",
            f"{found['p50_ms']:.1f}",
            f"{found['p99_ms']:.1f}",
            f"{found['worst_ms']:.0f}",
            "" if ratio is None else f"{ratio:.2f}",
            "" if found["disturbed"] is None else str(found["disturbed"]),
            "" if others is None else f"{others:.2f}",
        )
    console.print(table)
    for found in results["phases"]:
        for words in (found["note"], found["failure"]):
            if words:
                console.print(f"{found['phase']}: {words}", highlight=False)
    console.print(
        f"{writes['upserts']:,} upserts and {writes['deletes']:,} deletes acknowledged "
        f"({writes['per_s']:.0f}/s), {writes['failed']} failed, {writes['checked']:,} documents "
        f"read back: {writes['lost']} lost, {writes['resurrected']} came back",
        highlight=False,
    )
    for name, met in results["met"].items():
        console.print(f"{'met' if met else 'NOT MET'}: {name}", style="" if met else "bold red")
