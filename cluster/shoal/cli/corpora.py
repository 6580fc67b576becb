"""Which corpora come with Shoal or with the machine, and where are they?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from shoal.cli.options import AsJson
from shoal.cli.output import CliError, print_json, say
from shoal.cli.progress import progress

app = typer.Typer(help="Make a corpus of what this machine has.", no_args_is_help=True)

# Of the checkout that this is installed from; an installed wheel has none.
CORPORA: Final = Path(__file__).resolve().parents[3] / "deploy" / "corpora"


@dataclass(frozen=True)
class BundledCorpus:
    """A corpus in BEIR's layout."""

    folder: Path

    @property
    def documents(self) -> Path:
        """The documents."""
        return self.folder / "corpus.jsonl"

    @property
    def queries(self) -> Path:
        """Questions about them."""
        return self.folder / "queries.jsonl"

    @property
    def qrels(self) -> Path:
        """Which document answers which question."""
        return self.folder / "qrels" / "test.tsv"


def xquad() -> BundledCorpus:
    """The corpus that the repository carries: 240 paragraphs, 1,190 questions, in English."""
    folder = CORPORA / "xquad-en"
    if not folder.is_dir():
        raise CliError(f"{folder} is not there: this needs a checkout of the repository")
    return BundledCorpus(folder)


@app.command()
def debian(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="File to write: .jsonl, or .jsonl.gz.")
    ],
    as_json: AsJson = False,
) -> None:
    """Write the package descriptions of this Debian machine as a corpus to ingest."""
    from shoal.cli.debian import write_corpus

    with progress("reading the package lists", unit="packages") as advance:
        count = write_corpus(out, lambda done: advance(done, ""))
    if as_json:
        print_json({"file": str(out), "documents": count})
    else:
        say(f"{count:,} packages are in {out}: shoal ingest --create debian {out}")
