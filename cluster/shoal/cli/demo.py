"""What does a newcomer see first? What `make demo` runs once the cluster is up."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from shoal.cli.corpora import xquad
from shoal.cli.documents import print_ingested
from shoal.cli.options import Endpoint, Home, connected, home_folder
from shoal.cli.output import CliError, note, say
from shoal.cli.progress import progress
from shoal.cli.search import print_answer

if TYPE_CHECKING:
    from shoal.cli.evaluation import Ranking
    from shoal.client import Client

INGEST_TIMEOUT_S: Final = 120.0
# From 20,000 passages on the writer trains a codebook, which takes a minute or two on two cores.
CODEBOOK_TIMEOUT_S: Final = 900.0
POLL_S: Final = 0.5
# An estimate for two cores that have nothing else to do, to say what to expect: the int8 encoder
# does about a hundred texts of this length a second.
PACKAGES_PER_MINUTE: Final = 6_000
HITS: Final = 3


class Corpus(StrEnum):
    """What the demo is about."""

    XQUAD = "xquad"
    DEBIAN = "debian"


@dataclass(frozen=True)
class Story:
    """What is asked of a corpus."""

    about: str
    questions: tuple[str, ...]


STORIES: Final = {
    Corpus.XQUAD: Story(
        "240 paragraphs of Wikipedia (XQuAD, English)",
        (
            "How old was Peyton Manning when he played in Super Bowl 50?",
            "How many times did plague occur in Venice?",
            "What are pharmacists forbidden to do?",
            'How many nations contain "Amazonas" in their names?',
            "In what year did Harvard end its early admission program?",
        ),
    ),
    Corpus.DEBIAN: Story(
        "the package descriptions of this machine's package lists",
        (
            "play chess against the computer",
            "recover deleted photos from a memory card",
            "which process is using my network bandwidth",
            "turn a scanned PDF into searchable text",
            "keep passwords encrypted, from the command line",
        ),
    ),
}


def demo(
    corpus: Annotated[Corpus, typer.Argument(help="What to ask about.")] = Corpus.XQUAD,
    endpoint: Endpoint = None,
    home: Home = None,
) -> None:
    """Make an index, ask it real questions, and judge it. Wants a cluster that is up."""
    story = STORIES[corpus]
    file = xquad().documents if corpus is Corpus.XQUAD else _debian_file(home_folder(home))
    with connected(endpoint, home) as client:
        _ingest(client, corpus.value, file, story.about)
        if corpus is Corpus.DEBIAN:
            _await_codebook(client, corpus.value)
        for question in story.questions:
            _heading(f"“{question}”")
            answer = client.search(corpus.value, question, top_k=HITS, explain=True)
            print_answer(answer, brief=True)
        if corpus is Corpus.XQUAD:
            _judge(client, corpus.value)
    _say_next(corpus, story)


def _heading(text: str) -> None:
    say("")
    say(f"── {text}", "bold blue")


def _debian_file(home: Path) -> Path:
    """Write the machine's package descriptions to a file, once a demo."""
    from shoal.cli.debian import write_corpus

    file = home / "corpora" / "debian.jsonl.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    with progress("reading the package lists", unit="packages") as advance:
        count = write_corpus(file, lambda done: advance(done, ""))
    say(
        f"{count:,} packages read from this machine's lists. Encoding them takes a while: about "
        f"{count // PACKAGES_PER_MINUTE} minutes on two cores."
    )
    return file


def _ingest(client: Client, index: str, file: Path, about: str) -> None:
    from shoal.cli.ingestion import Ingestion, await_searchable
    from shoal.client import IndexNotFoundError

    _heading(f"Index {index}: {about}")
    try:
        client.describe_index(index)
        say(f"There is an index {index} from an earlier demo: it is dropped and made again.")
        client.drop_index(index, timeout_s=60.0)
    except IndexNotFoundError:
        pass
    ingestion = Ingestion(client, index, lambda bad: note(str(bad), "red"))
    # To abort on a bad line is to count first, so that the progress bar knows the end.
    result = ingestion.run([str(file)], abort=True, create=True)
    if result.bad_count:
        raise CliError(f"{file} has {result.bad_count:,} bad lines: nothing was ingested")
    if not await_searchable(client, index, result.table_version, INGEST_TIMEOUT_S):
        raise CliError(f"not every shard has the documents: see `shoal index describe {index}`")
    print_ingested(result)


def _await_codebook(client: Client, index: str) -> None:
    """Wait until the index is large enough, and trained, to be searched by IVF-PQ."""
    from shoal.v1.search_pb2 import SearchKind

    started_s = time.monotonic()
    with progress("training the codebook; queries are answered exactly meanwhile") as advance:
        while True:
            found = client.describe_index(index).index
            waited_s = time.monotonic() - started_s
            if found.kind == SearchKind.SEARCH_KIND_IVF_PQ:
                break
            if waited_s > CODEBOOK_TIMEOUT_S:
                raise CliError(
                    f"{index} is still searched exactly after {waited_s:.0f} s: indexes get a "
                    f"codebook from 20,000 passages on, and this one has {found.passage_count:,}"
                )
            advance(0, "")
            time.sleep(POLL_S)
    say(
        f"{found.passage_count:,} passages in {found.shard_count} shards are now searched by "
        f"IVF-PQ with refinement (index version {found.index_version}, {waited_s:.0f} s after "
        "the last document)."
    )


def _judge(client: Client, index: str) -> dict[str, Ranking]:
    from shoal.cli.evaluation import compare, print_rankings
    from shoal.cli.judging import judged, read_qrels, read_queries

    corpus = xquad()
    judgments = read_qrels(corpus.qrels)
    queries = judged(read_queries(corpus.queries), judgments, None)
    _heading(f"How well does it rank, over all {len(queries):,} questions?")
    rankings = compare(client, index, queries, judgments)
    print_rankings(rankings, len(queries))
    return rankings


def _say_next(corpus: Corpus, story: Story) -> None:
    _heading("The cluster stays up. Next")
    commands = [
        "source .venv/bin/activate",
        f'shoal search {corpus.value} "{story.questions[0]}" --explain --json',
        "shoal status",
        "shoal scale --shards 4 --encoders 2 --wait",
        "shoal index create notes && shoal ingest notes notes.jsonl",
        *(["make demo CORPUS=debian"] if corpus is Corpus.XQUAD else []),
        "shoal down",
    ]
    for command in commands:
        say(f"  {command}")
