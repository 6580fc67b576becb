"""Commands about feedback: export it, and make training pairs of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Final

import typer
from shoal.cli.options import AsJson, Endpoint, IndexName, Timeout, connected
from shoal.cli.output import CliError, note, print_json, say

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.training.feedback_pairs import Impression, Passage, Propensities, Weighed
    from shoal.v1.documents_pb2 import Document
    from shoal.v1.feedback_pb2 import FeedbackRecord

app = typer.Typer(
    help="What callers said of answers: export it, and make training pairs of it.",
    no_args_is_help=True,
)

# Documents that are read at once.
_READ: Final = 64
# Ranks whose propensities are shown.
_SHOWN_RANKS: Final = 10

Since = Annotated[
    datetime | None,
    typer.Option(help="Only what was recorded then or later, in UTC.", show_default=False),
]


@app.command()
def export(
    name: IndexName,
    out: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="JSON Lines to write. None: standard output."),
    ] = None,
    since: Since = None,
    endpoint: Endpoint = None,
    timeout: Timeout = 600.0,
) -> None:
    """Write the feedback on an index as JSON Lines: a record an answer, with the protos' names.

    By the answers' times; of several pieces of feedback on one answer the last.
    """
    from shoal.cli.plain import as_plain

    count = 0
    with connected(endpoint) as client, _writing(out) as file:
        for record in client.export_feedback(name, since=since, timeout_s=timeout):
            file.write(json.dumps(as_plain(record), ensure_ascii=False) + "\n")
            count += 1
    note(f"{count:,} records.")


@app.command()
def pairs(
    name: IndexName,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines to write.")],
    since: Since = None,
    clip: Annotated[
        float,
        typer.Option(
            min=0.001, max=1.0, help="The least that a choice is divided by: bounds its weight."
        ),
    ] = 0.05,
    min_dwell: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0.0,
            help="A choice that was looked at for less does not count; one that nobody timed does.",
        ),
    ] = 0.0,
    min_callers: Annotated[
        int,
        typer.Option(
            min=1,
            help="Principals that must have chosen a pair for it to be written. Counted within the "
            "time of one salt of their hashes, and never added up over two: one that comes back "
            "under another salt would count twice.",
        ),
    ] = 1,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 600.0,
) -> None:
    """Make training pairs of the choices, each weighed by how seldom its rank is seen.

    A line has `query`, `positive` and `weight`, as the loaders of sentence-transformers read them,
    and where it comes from. Passages that have changed since they were chosen are left out.
    """
    from shoal.training.feedback_pairs import as_record, deserving, estimate_propensities, weigh

    with connected(endpoint) as client:
        records = list(client.export_feedback(name, since=since, timeout_s=timeout))
        impressions = deserving(impressions_of(records), min_dwell_s=min_dwell)
        found = estimate_propensities(impressions)
        weighed = weigh(impressions, found, clip=clip, min_callers=min_callers)
        if not weighed:
            raise CliError(
                f"no pair to write: {len(records)} records of feedback, of which no choice is left"
            )
        texts = _texts(client, name, weighed, timeout)
    written = 0
    with _writing(out) as file:
        for each in weighed:
            text = texts.get(each.passage)
            if text is not None:
                file.write(json.dumps(as_record(each, text), ensure_ascii=False) + "\n")
                written += 1
    _report(out, written, len(weighed), found, as_json=as_json)


def impressions_of(records: Iterable[FeedbackRecord]) -> list[Impression]:
    """Answers that somebody saw, by their times; of several records of one the latest.

    records: those of one answer and record time in the order of recording, as they are exported.
    """
    from shoal.training.feedback_pairs import Impression, Passage

    latest: dict[bytes, FeedbackRecord] = {}
    for record in records:
        known = latest.get(record.answer_id)
        if known is None or record.record_time.ToNanoseconds() >= known.record_time.ToNanoseconds():
            latest[record.answer_id] = record
    return [
        Impression(
            record.query,
            tuple(
                Passage(each.document_id, each.passage, each.content_prefix)
                for each in record.shown
            ),
            {
                each.rank: each.dwell.ToMilliseconds() / 1e3 if each.HasField("dwell") else None
                for each in record.choices
            },
            record.principal_hash,
            " ".join(
                filter(
                    None,
                    (f"v{record.index_version}", record.encoder_model, record.reranker_model),
                )
            ),
        )
        # Of one time the order of the export stays: sorting is stable.
        for record in sorted(latest.values(), key=lambda each: each.answer_time.ToNanoseconds())
    ]


def _texts(
    client: Client, name: str, weighed: Sequence[Weighed], timeout_s: float
) -> dict[Passage, str]:
    """Texts of the passages that are still what they were, as the reranker reads them."""
    wanted: dict[str, set[Passage]] = {}
    for each in weighed:
        wanted.setdefault(each.passage.document_id, set()).add(each.passage)
    ids, texts = list(wanted), {}
    for start in range(0, len(ids), _READ):
        found = client.get(name, ids[start : start + _READ], timeout_s=timeout_s)
        for document in found.documents:
            for passage in wanted[document.id]:
                text = passage_text(document, passage)
                if text is not None:
                    texts[passage] = text
    return texts


def passage_text(document: Document, passage: Passage) -> str | None:
    """Title and text of a passage; None if the document is another one than it was."""
    same = document.content_hash.startswith(passage.content_hash)
    if not same or passage.passage >= len(document.passages):
        return None
    span = document.passages[passage.passage]
    text = document.text[span.start : span.end]
    return f"{document.title}. {text}" if document.title else text


def _report(
    out: Path, written: int, found: int, propensities: Propensities, *, as_json: bool
) -> None:
    values = [round(float(each), 3) for each in propensities.values[:_SHOWN_RANKS]]
    if as_json:
        print_json(
            {
                "file": str(out),
                "pairs": written,
                "changed_since": found - written,
                "propensities": values,
                "learnt": propensities.learnt[:_SHOWN_RANKS].tolist(),
            }
        )
        return
    changed = f"; {found - written:,} have changed since, and were left out" * (found > written)
    say(f"{written:,} pairs in {out}{changed}.")
    shown = ", ".join(f"{each:g}" for each in values)
    say(f"Chance that a rank is seen, beside the first: {shown}.", "dim")
    learnt = propensities.learnt[:_SHOWN_RANKS].tolist()
    assumed = ", ".join(str(rank) for rank, known in enumerate(learnt, 1) if not known)
    if assumed:
        note(
            f"At rank {assumed} that is one over the rank, and an assumption: "
            "too few passages were shown to a question both there and at the first to learn it.",
            "yellow",
        )


@contextmanager
def _writing(out: Path | None) -> Iterator[IO[str]]:
    if out is None:
        yield sys.stdout
        return
    try:
        with out.open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise CliError(f"cannot write {out}: {error.strerror or error}") from error
