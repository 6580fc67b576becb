"""The command mine: which wrong passages does the serving index rank near a question?"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Final

import typer
from shoal.cli.asking import ask
from shoal.cli.hard_negatives import Candidate, Pair, Rules, choose, flat
from shoal.cli.options import AsJson, Endpoint, IndexName, Timeout, connected
from shoal.cli.output import CliError, print_json, say
from shoal.cli.progress import progress

if TYPE_CHECKING:
    from shoal.client import Client
    from shoal.v1.search_pb2 import SearchResponse

# Searches in a call, and calls at a time: enough to fill the encoder's batches.
BATCH: Final = 16
CALLS: Final = 4
# Of every line of the output: what is left of one that a kill cut short begins with it too.
_BEGINNING: Final = b'{"query": '


@dataclass
class Mined:
    """What came of it."""

    pairs: int = 0
    written: int = 0
    """Lines that were written now."""
    before: int = 0
    """Pairs that a run before this one had done."""
    unfound: int = 0
    """Pairs whose positive was not found."""
    without: int = 0
    """Pairs for which every candidate was ruled out."""
    index_version: int = 0
    model: str = ""


def mine(
    index: IndexName,
    pairs: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Pairs, JSONL: query, positive, [document], [source], [weight].",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="JSONL to write; one that is there is gone on with."),
    ],
    count: Annotated[int, typer.Option(min=1, max=100, help="Negatives of each pair.")] = 8,
    top_k: Annotated[int, typer.Option(min=2, max=1_000, help="Candidates to look at.")] = 50,
    skip: Annotated[int, typer.Option(min=0, help="Ranks at the top to leave out.")] = 0,
    margin: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="Least distance to the positive's score.")
    ] = 0.05,
    max_score: Annotated[
        float, typer.Option(min=-1.0, max=1.0, help="Highest score of a negative.")
    ] = 1.0,
    keep_unfound: Annotated[
        bool, typer.Option("--keep-unfound", help="Take pairs too whose positive is not found.")
    ] = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
    timeout: Timeout = 120.0,
) -> None:
    """Mine hard negatives: passages that the index ranks near a question, and that are wrong.

    Candidates are ranked by vectors alone, in the version that serves. A candidate that scores
    within --margin of the right passage is left out, as it may well be right too. A line of the
    output is an object with query, positive, source (else document, if the pair names one),
    negatives (text, document, passage, rank, score), index, index_version and model. --timeout is
    for each call, which asks 16 questions.
    """
    rules = Rules(count, skip, margin, max_score, keep_unfound)
    with connected(endpoint) as client:
        mined = mine_file(client, index, pairs, out, rules, top_k=top_k, timeout_s=timeout)
    if as_json:
        print_json({"index": index, "out": str(out)} | asdict(mined))
        return
    say(
        f"{mined.before + mined.written:,} of {mined.pairs:,} pairs have negatives in {out}, by "
        f"version {mined.index_version} of {index} ({mined.model or 'callers’ own vectors'})."
    )
    if mined.unfound or mined.without:
        say(
            f"{mined.unfound:,} positives were not among the first {top_k}, and of "
            f"{mined.without:,} pairs every candidate was ruled out."
        )


def mine_file(
    client: Client,
    index: str,
    pairs: Path,
    out: Path,
    rules: Rules,
    *,
    top_k: int,
    timeout_s: float = 120.0,
) -> Mined:
    """Mine for every pair of a file that the output does not have yet. Raises CliError.

    All of an output comes from one version: one that was begun at another version is refused.
    """
    asked = read_pairs(pairs)
    mined = Mined(pairs=len(asked))
    described = client.describe_index(index).index
    mined.index_version, mined.model = described.index_version, described.encoder_model
    done = _resumed(out, mined)
    by_question: dict[str, list[Pair]] = {}
    for each in asked:
        by_question.setdefault(flat(each.query), []).append(each)
    open_ = [each for each in asked if _key(each.query, each.positive) not in done]
    mined.before = len(asked) - len(open_)

    def search(batch: Sequence[Pair]) -> list[SearchResponse]:
        from shoal.client import search_request

        requests = [
            search_request(
                index,
                each.query,
                top_k=top_k,
                rerank=False,
                hybrid=False,
                index_version=mined.index_version,
                # Training questions are not what the index is asked.
                no_feedback=True,
            )
            for each in batch
        ]
        return ask(client, requests, timeout_s)

    with (
        out.open("a", encoding="utf-8") as file,
        ThreadPoolExecutor(CALLS) as pool,
        progress("mining", len(asked), "pairs") as advance,
    ):
        for round_ in _chunks(open_, BATCH * CALLS):
            batches = list(_chunks(round_, BATCH))
            for batch, answers in zip(batches, pool.map(search, batches), strict=True):
                for pair, answer in zip(batch, answers, strict=True):
                    same = by_question[flat(pair.query)]
                    negatives = choose(pair, _candidates(answer), rules, same)
                    _write(file, pair, negatives, answer, index, mined)
            # What was asked for stands on disk before more is asked.
            file.flush()
            os.fsync(file.fileno())
            advance(mined.before + mined.written + mined.unfound + mined.without, "")
    return mined


def read_pairs(path: Path) -> list[Pair]:
    """Read pairs: objects with `query` and `positive`, perhaps `document`, `source`, `weight`."""
    from shoal.cli.corpus_file import LineError, opened, parse_line

    pairs: dict[tuple[str, str], Pair] = {}
    with opened(str(path)) as lines:
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            try:
                fields = parse_line(raw)
            except LineError as error:
                raise CliError(f"{path}:{number}: {error}") from None
            query, positive = fields.get("query"), fields.get("positive")
            document, source = fields.get("document", ""), fields.get("source", "")
            if not (
                isinstance(query, str)
                and isinstance(positive, str)
                and query.strip()
                and positive.strip()
            ):
                raise CliError(f"{path}:{number}: needs `query` and `positive`, both strings")
            if not (isinstance(document, str) and isinstance(source, str)):
                raise CliError(f"{path}:{number}: `document` and `source` must be strings")
            weight = fields.get("weight")
            if weight is not None and not _is_weight(weight):
                raise CliError(f"{path}:{number}: `weight` must be a number above 0")
            pair = Pair(query, positive, document, source, weight)
            pairs.setdefault(_key(pair.query, pair.positive), pair)
    if not pairs:
        raise CliError(f"{path} holds no pairs")
    return list(pairs.values())


def _is_weight(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value < math.inf


def _write(
    file: IO[str],
    pair: Pair,
    negatives: list[Candidate] | None,
    answer: SearchResponse,
    index: str,
    mined: Mined,
) -> None:
    if negatives is None:
        mined.unfound += 1
    elif not negatives:
        mined.without += 1
    else:
        line = {
            "query": pair.query,
            "positive": pair.positive,
            # Without it training could not keep what one document made on one side.
            **({"source": source} if (source := pair.source or pair.document) else {}),
            **({} if pair.weight is None else {"weight": pair.weight}),
            "negatives": [_shown(each) for each in negatives],
            "index": index,
            "index_version": answer.index_version,
            "model": answer.encoder_model,
        }
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        mined.written += 1


def _shown(negative: Candidate) -> dict[str, Any]:
    """Say it with the title in front of the text, as the encoder and all positives have it."""
    fields = asdict(negative) | {"text": negative.titled}
    del fields["title"]
    return fields


def _candidates(answer: SearchResponse) -> list[Candidate]:
    return [
        Candidate(
            hit.text, hit.document_id, hit.passage, rank, round(hit.dense_score, 6), hit.title
        )
        for rank, hit in enumerate(answer.hits, start=1)
    ]


def _resumed(out: Path, mined: Mined) -> set[tuple[str, str]]:
    """The pairs that an output has; a line that a kill cut short is taken off. Raises CliError."""
    if not out.exists():
        return set()
    done: set[tuple[str, str]] = set()
    good_bytes = 0
    with out.open("rb") as file:
        for raw in file:
            try:
                line: dict[str, Any] = json.loads(raw)
                key, version = _key(line["query"], line["positive"]), line["index_version"]
                model = line["model"]
            except (ValueError, KeyError, TypeError):
                if file.read(1) or not raw.startswith(_BEGINNING):
                    raise CliError(f"{out} was not made by this command: name another") from None
                break
            if (version, model) != (mined.index_version, mined.model):
                raise CliError(
                    f"{out} was mined at version {version} ({model}), and version "
                    f"{mined.index_version} ({mined.model}) serves now: name another file"
                )
            if not raw.endswith(b"\n"):
                break
            done.add(key)
            good_bytes += len(raw)
    os.truncate(out, good_bytes)
    return done


def _key(query: str, positive: str) -> tuple[str, str]:
    return query, positive


def _chunks(pairs: Sequence[Pair], size: int) -> Iterator[list[Pair]]:
    rest = iter(pairs)
    while chunk := list(islice(rest, size)):
        yield chunk
