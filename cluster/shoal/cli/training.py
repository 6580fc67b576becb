"""Commands that train models. They need the extra `training`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from shoal.cli.options import AsJson
from shoal.cli.output import CliError, print_json, say
from shoal.cli.progress import progress
from shoal.cli.train_reranker import reranker

if TYPE_CHECKING:
    from shoal.training.dual_encoder import Outcome
    from shoal.training.pairs import Pair
    from shoal.training.settings import EncoderSettings

app = typer.Typer(
    help="Train a model on pairs of question and passage (extra: training).",
    no_args_is_help=True,
)
app.command()(reranker)


@app.command()
def encoder(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder for the weights, settings and curves.")
    ],
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="What to learn from; may be repeated. `debian` (package lists), `manuals` or "
            "`documentation` of this machine; or a file (.jsonl, .csv, .tsv), what `shoal mine` "
            "wrote, or a folder in BEIR's layout.",
        ),
    ] = None,
    negatives: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What `shoal mine` wrote, to learn from one wrong passage a question, or as many "
            "as the setting `negatives` says.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Settings, as YAML. None: the defaults.", show_default=False
        ),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a setting, such as queue.size=1024; may be repeated.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the optimiser.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of everything random.", show_default=False)
    ] = None,
    judged: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="A judged set in BEIR's layout: records that share 13 words in a row with it are "
            "left out. May be repeated. None: the one that the repository carries.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="More than one: workers of Ray Train.")] = 1,
    gpus: Annotated[bool, typer.Option("--gpus", help="A GPU for each worker.")] = False,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Of a Ray cluster to train in; OUT must be shared by its machines. None: one on "
            "this machine alone.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in OUT.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a sentence encoder, to be exported by `shoal export encoder`."""
    training = _training()
    # Mined ones first: of a record that comes twice, the one with negatives is to stay.
    sources = [*([str(negatives)] if negatives else []), *(pairs or [])]
    if not sources:
        raise CliError("nothing to learn from: name a source by --pairs, such as `--pairs debian`")
    settings = _settings(config, change or [], steps, seed)
    if negatives and not settings.negatives:
        settings = settings.model_copy(update={"negatives": 1})
    records = [pair for source in sources for pair in _records(source)]
    sides, left_out = _sides(records, judged)
    say(
        f"{len(sides.train):,} records to learn from, {len(sides.dev):,} held out; left out: "
        f"{left_out:,} that share words with a judged set, {sides.dropped:,} that repeat "
        "one held out",
        "dim",
    )
    try:
        if workers > 1 or gpus:
            found = _on_ray(
                sides, out, settings, workers, gpus=gpus, address=address, resume=resume
            )
        else:
            with progress("training", settings.steps, "steps") as advance:
                found = training.train_encoder(
                    sides.train, sides.dev, out, settings, resume=resume, report=advance
                )
    except training.TrainingError as error:
        raise CliError(str(error)) from error
    _print_outcome(found, out, as_json=as_json)


def _training() -> Any:
    """The module that trains; torch and its kin come with it."""
    try:
        from shoal.training import dual_encoder
    except ModuleNotFoundError as error:
        raise CliError(
            f"training needs the package {error.name}: install the extra, "
            "`pip install -c constraints.txt -e '.[training]'`"
        ) from error
    return dual_encoder


def _settings(
    config: Path | None, changes: list[str], steps: int | None, seed: int | None
) -> EncoderSettings:
    from shoal.training.settings import SettingsError, read_settings

    named: dict[str, Any] = {}
    for each in changes:
        name, found, value = each.partition("=")
        if not found or not name:
            raise CliError(f"--set {each}: NAME=VALUE was expected")
        named[name] = yaml.safe_load(value)
    named |= {
        name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None
    }
    try:
        return read_settings(config, named)
    except SettingsError as error:
        raise CliError(str(error)) from error


def _records(source: str) -> list[Pair]:
    """Records of a source: of this machine by its name, or of a file."""
    from shoal.training.debian import PackageListsError, iter_packages
    from shoal.training.pair_files import PairFileError, read_pairs
    from shoal.training.title_bodies import documentation_pairs, manual_pairs, package_pairs

    try:
        match source:
            case "debian":
                return list(package_pairs(iter_packages()))
            case "manuals":
                return _there(list(manual_pairs()), "manual pages (package man-db, and pages)")
            case "documentation":
                return _there(list(documentation_pairs()), "HTML, Markdown or reStructuredText")
            case _:
                return read_pairs(Path(source))
    except (PackageListsError, PairFileError) as error:
        raise CliError(str(error)) from error


def _there(found: list[Pair], what: str) -> list[Pair]:
    if not found:
        raise CliError(f"this machine has no {what}: a slim image leaves them out")
    return found


def _sides(records: list[Pair], judged: list[Path] | None) -> tuple[Any, int]:
    """Divide the records, each text once. Returns both sides, and how many were judged texts."""
    import random

    from shoal.cli.corpora import xquad
    from shoal.training.leakage import JudgedTexts
    from shoal.training.pair_files import PairFileError, read_beir_judged
    from shoal.training.pairs import distinct, split

    texts: list[str] = []
    try:
        for folder in judged or [xquad().folder]:
            queries, corpus, _ = read_beir_judged(folder)
            texts += [*queries.values(), *corpus.values()]
    except PairFileError as error:
        raise CliError(str(error)) from error
    once = distinct(records)
    kept = JudgedTexts(texts).without(once)
    sides = split(kept)
    # The first held-out records are looked at while training: not all of one source.
    random.Random(0).shuffle(sides.dev)
    return sides, len(once) - len(kept)


def _on_ray(
    sides: Any, out: Path, settings: EncoderSettings, workers: int, *, gpus: bool, **options: Any
) -> Outcome:
    """Train in a Ray cluster, or in one of this machine's own that is gone afterwards.

    options: address of the cluster, None for one's own; resume.
    """
    from shoal.cluster.actors import StartError, connected
    from shoal.cluster.local import LocalRayError, start_local_ray, stop_local_ray
    from shoal.training.ray_workers import train_on_ray

    with tempfile.TemporaryDirectory(prefix="shoal-train-") as folder:
        home, address = Path(folder), options["address"]
        try:
            if address is None:
                cores = workers * settings.threads
                address = start_local_ray(home, num_cpus=cores).address
            with connected(address, home):
                return train_on_ray(
                    sides.train,
                    sides.dev,
                    out,
                    settings,
                    workers=workers,
                    use_gpu=gpus,
                    resume=options["resume"],
                )
        except (StartError, LocalRayError) as error:
            raise CliError(str(error)) from error
        finally:
            stop_local_ray(home)


def _print_outcome(found: Outcome, out: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "weights": str(out),
                "steps": found.steps,
                "loss": found.loss,
                "before": found.before,
                "after": found.after,
            }
        )
        return
    say(f"{out} holds the weights after {found.steps} steps; loss {found.loss:.3f}.", "bold")
    for name, value in found.after.items():
        say(f"held-out {name}: {found.before[name]:.4f} before, {value:.4f} after")
    say(f"To serve them: shoal export encoder {out} BUNDLE", "dim")
