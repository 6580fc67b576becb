"""Command `shoal index plan`: what would an index cost, of each kind? Needs no cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer
from shoal.cli.options import AsJson
from shoal.cli.output import note, print_json, print_table, say

if TYPE_CHECKING:
    from shoal.cluster.index_costs import Calibration, Costs, Demand
    from shoal.shard.choose import Choice

COLUMNS: Final = (
    "kind",
    "machines",
    "memory",
    "touched by searches",
    "disk",
    "build core-hours",
    "lone query",
    "queries/s a core",
    "recall@10",
    "",
)
NUMBERS: Final = COLUMNS[1:-1]
_HOUR_S: Final = 3600.0


def _count(text: str) -> int:
    """A count, also as 1e9. Raises typer.BadParameter."""
    try:
        value = float(text.replace(",", "").replace("_", ""))
    except ValueError:
        value = 0.0
    if not 1 <= value <= 1e13:
        raise typer.BadParameter(f"{text!r} is not a count of 1 to 1e13, such as 1e9")
    return int(value)


def _size(text: str) -> int:
    """Bytes, with a unit. Raises typer.BadParameter."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = 0
    if size < 1:
        raise typer.BadParameter(f"{text!r} is not a size, such as 64GiB")
    return size


def plan(
    vectors: Annotated[
        int, typer.Option(parser=_count, metavar="COUNT", help="Passages, such as 1e9.")
    ],
    dimension: Annotated[
        int, typer.Option("--dim", min=8, max=4_096, help="Numbers in a vector.")
    ] = 384,
    memory: Annotated[
        int,
        typer.Option(parser=_size, metavar="SIZE", help="Of each machine, for the index."),
    ] = "64GiB",  # type: ignore[assignment]  # typer parses it
    recall: Annotated[
        float, typer.Option(min=0.5, max=0.999, help="Recall at 10 to be built for.")
    ] = 0.95,
    replicas: Annotated[int, typer.Option(min=1, max=16, help="Copies of every shard.")] = 1,
    shards: Annotated[
        int, typer.Option(min=1, max=1024, help="Most machines that a copy can be spread over.")
    ] = 1024,
    machines: Annotated[
        int,
        typer.Option(
            min=0,
            help="How many there are for one copy: automatic choice is bounded by their memory. "
            "0: as many as it takes.",
        ),
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Say what an index would cost of each kind, and which would be chosen.

    From a model of builds that were measured; it says how far it is off.
    """
    from dataclasses import asdict

    from shoal.cluster.index_costs import Demand, calibration, planned
    from shoal.shard.choose import choose_kind

    measured = calibration()
    demand = Demand(
        vectors=vectors,
        dimension=dimension,
        memory_bytes=memory,
        recall=recall,
        replicas=replicas,
        shards=shards,
    )
    found = planned(demand, measured)
    choice = choose_kind(vectors, dimension, machines * memory if machines else None)
    if as_json:
        print_json(
            {
                "demand": asdict(demand),
                "kinds": [asdict(each) for each in found],
                "choice": asdict(choice),
                "calibrated_on": measured.machine,
            }
        )
        return
    _print(found, choice, demand, measured)


def _print(found: list[Costs], choice: Choice, demand: Demand, measured: Calibration) -> None:
    print_table(COLUMNS, [_row(each, choice, demand) for each in found], numbers=NUMBERS)
    say("")
    say(f"Automatic choice: {choice.kind}, as {choice.reason}.")
    if demand.vectors < _TRAIN_AT_PASSAGES:
        say(f"Below {_TRAIN_AT_PASSAGES:,} passages an index stays with exact search by itself.")
    for line in [*_remarks(found, measured), _words(demand)]:
        note(line)


# As ClusterConfig.train_at_passages has it.
_TRAIN_AT_PASSAGES: Final = 20_000


def _remarks(found: list[Costs], measured: Calibration) -> list[str]:
    sizes = sorted({point.vectors for point in measured.points})
    dimensions = sorted({point.dimension for point in measured.points})
    machine = measured.machine
    remarks = [
        f"Times come from builds of {sizes[0]:,} to {sizes[-1]:,} vectors of {dimensions[0]} to "
        f"{dimensions[-1]} numbers, one thread, on {machine.get('processor', 'an unknown machine')}"
        f", at a recall target of 0.95; ± is the largest error of predicting one of them from the "
        "others. Yours differ with the processor, and with how hard your neighbours are to tell "
        "apart.",
        "Memory and disk are arithmetic; the table is reckoned with 800 bytes of text a passage. "
        "A lone query's time is its search alone: the hops around it add a millisecond or two.",
    ]
    if any(each.extrapolated for each in found):
        remarks.append(
            "* is beyond what was measured, in size, dimension or recall: the law that fits there "
            "is drawn on (and a higher recall costs more than it says), so take these times for "
            "orders of magnitude."
        )
    return remarks


# Different words of a passage: of a line, and of the two kilobytes that are the most.
_FEW_WORDS: Final = 10
_MANY_WORDS: Final = 200


def _words(demand: Demand) -> str:
    from shoal.shard.footprint import postings_bytes

    few, many = (postings_bytes(count) for count in (_FEW_WORDS, _MANY_WORDS))
    copies = demand.vectors * demand.replicas
    return (
        "Where passages have text, memory also holds their words, five bytes for each different "
        f"one of a passage: {_bytes(few * copies)} with {_FEW_WORDS} a passage, "
        f"{_bytes(many * copies)} with {_MANY_WORDS}, and as much of disk."
    )


def _row(costs: Costs, choice: Choice, demand: Demand) -> tuple[object, ...]:
    mark = "*" if costs.extrapolated else ""
    most = demand.shards * demand.replicas
    remark = "chosen" if costs.kind == choice.kind else ""
    if costs.machines > most:
        remark = f"needs more than {demand.shards} shards"
    return (
        costs.kind,
        f"{costs.machines:,}",
        _bytes(costs.memory_bytes),
        _bytes(costs.hot_bytes),
        _bytes(costs.disk_bytes),
        "none"
        if costs.kind == "exact"
        else f"{costs.build_core_s / _HOUR_S:,.2f}{_error(costs.build_error)}{mark}",
        f"{_time(costs.lone_us)}{_error(costs.lone_error)}{mark}",
        f"{costs.queries_per_core_s:,.3g}{_error(costs.batch_error)}{mark}",
        f"{costs.recall:g}",
        remark,
    )


def _error(error: float) -> str:
    return f" ±{error:.0%}"


def _time(microseconds: float) -> str:
    if microseconds >= 1e6:
        return f"{microseconds / 1e6:,.1f} s"
    return f"{microseconds / 1e3:.2f} ms"


def _bytes(count: float) -> str:
    from pydantic import ByteSize

    return ByteSize(int(count)).human_readable(separator=" ")
