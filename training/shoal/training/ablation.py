"""What does each ingredient of contrastive training bring by itself?

`python -m shoal.training.ablation OUT`, on a Debian machine: plain InfoNCE, and each ingredient
added to it alone, over several seeds, on the same records, small enough for two cores. A run is a
file in OUT; what is there is not run again, and the table is made of what there is. The figures are
of held-out packages: nothing is decided on a judged set.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from matplotlib.figure import Figure
from rich.console import Console
from sentence_transformers import SentenceTransformer
from shoal.training.debian_study import debian_sides, recall_at_ten
from shoal.training.dual_encoder import load_model, train_encoder
from shoal.training.mining import MiningSettings, mine
from shoal.training.pair_files import read_pairs, write_pairs
from shoal.training.pairs import Pair
from shoal.training.settings import EncoderSettings, read_settings

# Name and what differs from plain InfoNCE at a fixed temperature of 0.05.
CONFIGURATIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "InfoNCE": {},
    "+ hard negatives": {"negatives": 1},
    "+ temperature 0.02": {"temperature.start": 0.02},
    "+ learnable temperature": {"temperature.schedule": "learnable"},
    "+ queue of 1,024": {"queue.size": 1024, "queue.momentum": 0.9},
    "+ augmentation": {
        "augmentation.word_dropout": 0.1,
        "augmentation.first_sentences": 0.25,
        "augmentation.inverse_cloze": 0.25,
    },
}
UNTRAINED: Final = "before training"
BASE: Final = "InfoNCE"
SCALE_FILE: Final = "scale.json"
MINED_FILE: Final = "mined.jsonl"
TABLE_FILE: Final = "ablation.md"
PICTURE: Final = "ablation.png"


@dataclass(frozen=True)
class Scale:
    """How large a run is. All runs of a table have one."""

    records: int = 3_200
    """To learn from: those for which a hard negative is found, so that all have the same."""
    steps: int = 100
    batch: int = 32
    tokens: int = 32
    layers: int = 2
    """Of the six: a third of the time a step."""
    rate: float = 5e-5
    pool: int = 8_000
    """Records that are mined for those: some find no wrong passage within the margin."""
    queries: int = 2_000
    """Held-out questions that are judged."""
    passages: int = 5_000
    """That they are looked for in."""
    threads: int = 2

    def settings(self, changes: Mapping[str, Any], seed: int) -> EncoderSettings:
        """Settings of a run."""
        common = {
            "steps": self.steps,
            "batch": self.batch,
            "max_tokens": self.tokens,
            "layers": self.layers,
            "rate": self.rate,
            "threads": self.threads,
            # The course is not looked at: a run is judged at its end, on more.
            "check_every": self.steps,
            "dev_queries": 20,
            "dev_passages": 20,
            "seed": seed,
        }
        return read_settings(None, common | dict(changes))


class ScaleError(Exception):
    """A folder whose runs do not compare; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """What a run came to."""

    configuration: str
    seed: int
    recall: float
    """Recall@10 of the held-out questions."""
    loss: float
    temperature: float
    scale: dict[str, Any]


def mined_records(out: Path, train: Sequence[Pair], scale: Scale) -> list[Pair]:
    """Give the records that runs learn from, each with a hard negative: mined once, then read."""
    path = out / MINED_FILE
    if not path.is_file():
        settings = scale.settings({}, seed=0)
        torch.set_num_threads(scale.threads)
        model, _ = load_model(settings)
        found = mine(train[: scale.pool], model, MiningSettings(negatives=1, last_rank=30))
        part = path.with_suffix(".part")
        write_pairs(found[: scale.records], part)
        part.replace(path)
    return read_pairs(path)


def run(
    out: Path, configuration: str, seed: int, sides: tuple[list[Pair], list[Pair]], scale: Scale
) -> Run:
    """Train and judge once; or read what was found before."""
    kept = out / f"{_file_name(configuration)}-{seed}.json"
    if kept.is_file():
        return Run(**json.loads(kept.read_text(encoding="utf-8")))
    train, dev = sides
    folder = out / f"{_file_name(configuration)}-{seed}"
    settings = scale.settings(CONFIGURATIONS.get(configuration, {}), seed)
    loss, temperature = 0.0, settings.temperature.start
    if configuration != UNTRAINED:
        shutil.rmtree(folder, ignore_errors=True)
        loss = train_encoder(mined_records(out, train, scale), dev, folder, settings).loss
        curves = json.loads((folder / "curves.json").read_text(encoding="utf-8"))
        temperature = curves["temperature"][-1][1]
        settings = settings.model_copy(update={"weights": str(folder)})
    model, _ = load_model(settings)
    recall = judged(model, dev, train[-scale.passages :], scale)
    found = Run(configuration, seed, recall, loss, temperature, asdict(scale))
    kept.write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    return found


def judged(
    model: SentenceTransformer, dev: Sequence[Pair], others: Sequence[Pair], scale: Scale
) -> float:
    """Recall@10 of held-out questions among their passages and others', `scale.passages` in all."""
    asked = dev[: scale.queries]
    passages = [pair.positive for pair in [*dev, *others]][: scale.passages]
    queries = model.encode([pair.query for pair in asked], batch_size=64)
    return recall_at_ten(queries, model.encode(passages, batch_size=64), range(len(asked)))


def table_of(runs: Sequence[Run]) -> str:
    """Make a Markdown table: mean and standard deviation over seeds, and the gain over BASE.

    The gain is of the same seed each, so that what a seed does to both falls out.
    """
    lines = [
        "| | Recall@10 | gain over InfoNCE | seeds |",
        "| --- | --- | --- | --- |",
    ]
    base = {each.seed: each.recall for each in runs if each.configuration == BASE}
    for name in (UNTRAINED, *CONFIGURATIONS):
        recalls = {each.seed: each.recall for each in runs if each.configuration == name}
        if not recalls:
            continue
        gains = [value - base[seed] for seed, value in recalls.items() if seed in base]
        gain = spread(gains, "+.4f") if gains and name not in (BASE, UNTRAINED) else ""
        lines.append(f"| {name} | {spread(list(recalls.values()))} | {gain} | {len(recalls)} |")
    return "\n".join(lines)


def spread(values: Sequence[float], form: str = ".4f") -> str:
    """Say mean and standard deviation; of one value, that alone."""
    mean = f"{statistics.mean(values):{form}}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draw every run as a dot, and the mean of each configuration as a bar."""
    names = [
        name
        for name in (UNTRAINED, *CONFIGURATIONS)
        if any(each.configuration == name for each in runs)
    ]
    figure = Figure(figsize=(8, 0.5 * len(names) + 1.2), layout="constrained")
    axes = figure.subplots()
    for at, name in enumerate(names):
        values = [each.recall for each in runs if each.configuration == name]
        axes.barh(at, statistics.mean(values), color="lightsteelblue")
        axes.plot(values, [at] * len(values), "k.", markersize=5)
    lowest = min(each.recall for each in runs)
    axes.set(xlabel="held-out Recall@10", xlim=(max(0.0, lowest - 0.02), None))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)


def begin(out: Path, scale: Scale) -> None:
    """Make the folder, or refuse one whose runs are not comparable with `scale`'s.

    Threads may differ: they change how long a run takes. Raises ScaleError.
    """
    path = out / SCALE_FILE
    wanted = asdict(scale)
    del wanted["threads"]
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise ScaleError(f"{out} holds something else: take an empty folder")
        path.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    elif json.loads(path.read_text(encoding="utf-8")) != wanted:
        raise ScaleError(f"the runs in {out} are of another scale: take an empty folder")


def _file_name(configuration: str) -> str:
    return "".join(each if each.isalnum() else "-" for each in configuration).strip("-")


def _finished(out: Path, seeds: Sequence[int], names: Sequence[str]) -> list[Run]:
    paths = [out / f"{_file_name(name)}-{seed}.json" for seed in seeds for name in names]
    return [Run(**json.loads(path.read_text())) for path in paths if path.is_file()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what has not been run, and write the table and its picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("out", type=Path, help="Folder for results, the table and its picture.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=int, help="Stop after so many. None: run them all.")
    parser.add_argument("--threads", type=int, default=Scale.threads)
    options = parser.parse_args(arguments)
    console = Console()
    scale = Scale(threads=options.threads)
    try:
        begin(options.out, scale)
    except ScaleError as error:
        parser.error(str(error))
    names = [UNTRAINED, *CONFIGURATIONS]
    # Seed by seed, so that the table is whole, if wide, when a seed is done. Nothing is trained
    # before training: one seed is all there is.
    planned = [
        (name, seed)
        for seed in options.seeds
        for name in (names if seed == options.seeds[0] else names[1:])
    ]
    done = {
        (each.configuration, each.seed) for each in _finished(options.out, options.seeds, names)
    }
    missing = [each for each in planned if each not in done][: options.runs]
    sides = debian_sides() if missing else ([], [])
    for name, seed in missing:
        found = run(options.out, name, seed, sides, scale)
        console.print(f"{name}, seed {seed}: Recall@10 {found.recall:.4f}")
    runs = _finished(options.out, options.seeds, names)
    table = table_of(runs)
    (options.out / TABLE_FILE).write_text(table + "\n", encoding="utf-8")
    draw(runs, options.out / PICTURE)
    console.print(table, markup=False)


if __name__ == "__main__":
    main()
