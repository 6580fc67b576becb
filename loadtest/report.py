"""What did the benchmark find, for a person?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

_WIDTH: Final = 100


def print_table(results: dict[str, Any], console: Console | None = None) -> None:
    """Print the medians, the ratios, and which targets were met."""
    console = console or Console()
    # Into a file, or a narrow terminal, the table is printed whole.
    console.width = max(console.width, _WIDTH)
    plan = results["plan"]
    title = (
        f"{plan['vectors']['count']:,} x {plan['vectors']['dimension']} vectors, "
        f"{plan['shard_count']} shards, {plan['callers']} callers, best {plan['top_k']}; "
        f"medians of {plan['rounds']} rounds of {plan['seconds']:g} s"
    )
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
        caption="client, server: processor milliseconds a query",
        caption_justify="left",
    )
    table.add_column("composition", no_wrap=True)
    for heading in ("queries/s", "range", "p50 ms", "p99 ms", "recall", "client", "server", "bad"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, found in results["summaries"].items():
        table.add_row(
            name,
            f"{found['per_second']:,.0f}",
            f"{found['lowest_per_second']:,.0f}-{found['highest_per_second']:,.0f}",
            f"{found['p50_ms']:.1f}",
            f"{found['p99_ms']:.1f}",
            "-" if found["recall"] is None else f"{found['recall']:.3f}",
            f"{found['client_cpu_ms_per_call']:.2f}",
            f"{found['server_cpu_ms_per_call']:.2f}",
            str(found["failed"] + found["incomplete"]),
        )
    console.print(table)
    for name, ratio in results["ratios"].items():
        target = results["targets"].get(name)
        wanted = "" if target is None else f" (target {target:g}: {_word(ratio >= target)})"
        console.print(f"{name}: {ratio:.2f}{wanted}", highlight=False)
    for name, ratio in by_processor_time(results["summaries"]).items():
        console.print(f"{name} by processor time, client included: {ratio:.2f}", highlight=False)
    for name, met in results["met"].items():
        if not met:
            console.print(f"NOT MET: {name}", style="bold red")


def by_processor_time(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What the others' queries cost over what Shoal's cost.

    The ratio of throughputs where nothing else runs and every core is busy.
    """
    cost = {
        name: found["client_cpu_ms_per_call"] + found["server_cpu_ms_per_call"]
        for name, found in summaries.items()
    }
    mine = cost.pop("shoal", 0.0)
    return {f"shoal / {name}": other / mine for name, other in cost.items() if mine}


def _word(met: bool) -> str:
    return "met" if met else "missed"
