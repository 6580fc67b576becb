"""Which records do files hold, in the formats that people have, and what is wrong with a line?

BEIR (a folder: corpus.jsonl, queries.jsonl, qrels/train.tsv), MS MARCO (tab-separated triples, or
collection, queries and qrels), sentence-transformers' pairs (JSONL or CSV with the columns anchor,
positive and perhaps negative, negative_1, ...), and what `shoal mine` writes.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from shoal.training.pairs import Pair

# The columns of a question, by what they may be called.
_QUERIES: Final = ("anchor", "query", "question", "sentence1")
_POSITIVES: Final = ("positive", "passage", "answer", "sentence2")
_BEIR_QRELS: Final = ("query-id", "corpus-id", "score")
# A text of a million characters is no passage but a mistake.
MAX_FIELD_CHARACTERS: Final = 1_000_000


class PairFileError(ValueError):
    """A file that cannot be read; the message is `FILE:LINE: what is wrong`."""


@dataclass(frozen=True, slots=True)
class _Row:
    path: Path
    line: int
    fields: Mapping[str, Any]

    def wrong(self, problem: str) -> PairFileError:
        """Say where it stands."""
        return PairFileError(f"{self.path}:{self.line}: {problem}")

    def text(self, *names: str) -> str:
        """The text under the first of the names that is there."""
        for name in names:
            if name in self.fields:
                value = self.fields[name]
                if not isinstance(value, str) or not value.strip():
                    raise self.wrong(f"`{name}` must be a text that is not empty")
                return value
        raise self.wrong(f"`{names[0]}` is missing; there is {', '.join(self.fields) or 'nothing'}")


def read_pairs(path: Path) -> list[Pair]:
    """Read records, in the format that the name and the first line tell. Raises PairFileError.

    path: a folder in BEIR's layout, `.jsonl`, `.csv`, or `.tsv` of three columns (MS MARCO's
    triples: question, right passage, wrong passage); plain or gzipped.
    """
    if path.is_dir():
        return read_beir(path)
    match path.name.removesuffix(".gz").rpartition(".")[2]:
        case "jsonl" | "json":
            return _gathered(path, _jsonl(path))
        case "csv":
            return _gathered(path, _csv(path))
        case "tsv":
            return read_triples(path)
        case _:
            raise PairFileError(
                f"{path}: neither a folder in BEIR's layout nor .jsonl, .csv or .tsv"
            )


def read_beir(folder: Path, part: str = "train") -> list[Pair]:
    """Read a set in BEIR's layout: judged pairs with a score above 0 are right, those with 0 wrong.

    Titles stand in front of texts, as a broker sends them. A document is the source of its records.
    https://github.com/beir-cellar/beir/wiki/Load-your-custom-dataset
    """
    corpus = {row.text("_id"): _titled(row) for row in _jsonl(_present(folder, "corpus.jsonl"))}
    queries = {
        row.text("_id"): row.text("text") for row in _jsonl(_present(folder, "queries.jsonl"))
    }
    judged = _present(folder, f"qrels/{part}.tsv")
    return _judged_pairs(_tsv(judged, _BEIR_QRELS, skip_first=True), queries, corpus)


def read_beir_judged(
    folder: Path, part: str = "test"
) -> tuple[dict[str, str], dict[str, str], list[tuple[str, str, int]]]:
    """Read a judged set in BEIR's layout: questions and passages by id, and judgments.

    Only judged questions. Titles stand in front of texts, as a broker sends them.
    """
    corpus = {row.text("_id"): _titled(row) for row in _jsonl(_present(folder, "corpus.jsonl"))}
    queries = {
        row.text("_id"): row.text("text") for row in _jsonl(_present(folder, "queries.jsonl"))
    }
    rows = _tsv(_present(folder, f"qrels/{part}.tsv"), _BEIR_QRELS, skip_first=True)
    judged = [(row.text("query-id"), row.text("corpus-id"), _score(row)) for row in rows]
    asked = {query for query, _, _ in judged}
    return {name: text for name, text in queries.items() if name in asked}, corpus, judged


def read_marco(collection: Path, queries: Path, qrels: Path) -> list[Pair]:
    """Read MS MARCO's passages, questions and judgments (question, 0, passage, 1), tab-separated.

    https://microsoft.github.io/msmarco/Datasets
    """
    texts = {row.text("id"): row.text("text") for row in _tsv(collection, ("id", "text"))}
    asked = {row.text("id"): row.text("text") for row in _tsv(queries, ("id", "text"))}
    header = ("query-id", "iteration", "corpus-id", "score")
    return _judged_pairs(_tsv(qrels, header), asked, texts)


def read_triples(path: Path) -> list[Pair]:
    """Read MS MARCO's triples: question, right passage, wrong passage, tab-separated.

    Triples of one question and passage become one record with all their wrong passages.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for row in _tsv(path, ("anchor", "positive", "negative")):
        key = (row.text("anchor"), row.text("positive"))
        found.setdefault(key, []).append(row.text("negative"))
    _require_some(path, found)
    return [
        Pair(query, positive, source=positive, negatives=tuple(dict.fromkeys(negatives)))
        for (query, positive), negatives in found.items()
    ]


def write_pairs(pairs: Iterable[Pair], path: Path) -> int:
    """Write records as JSONL that read_pairs takes. Returns how many."""
    count = 0
    with _opened(path, "wt") as file:
        for pair in pairs:
            line: dict[str, Any] = {"anchor": pair.query, "positive": pair.positive}
            line["source"] = pair.source
            if pair.weight != 1.0:
                line["weight"] = pair.weight
            line |= {f"negative_{at}": text for at, text in enumerate(pair.negatives)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    return count


def _gathered(path: Path, rows: Iterable[_Row]) -> list[Pair]:
    pairs = [_record(row) for row in rows]
    _require_some(path, pairs)
    return pairs


def _record(row: _Row) -> Pair:
    query, positive = row.text(*_QUERIES), row.text(*_POSITIVES)
    # Where a file says nothing of sources, a passage is its own: it is never on both sides.
    source = row.text("source") if "source" in row.fields else positive
    return Pair(query, positive, source, _negatives(row), _weight(row))


def _weight(row: _Row) -> float:
    """Of feedback; 1 where a file says nothing of it. In CSV it is a text."""
    try:
        weight = float(row.fields.get("weight", 1.0))
    except (TypeError, ValueError):
        weight = math.nan
    if not 0.0 < weight < math.inf:
        raise row.wrong("`weight` must be a number above 0")
    return weight


def _negatives(row: _Row) -> tuple[str, ...]:
    """Of `negatives`, a list of texts or of what `shoal mine` knows of each; else of columns."""
    listed = row.fields.get("negatives")
    if listed is None:
        names = [name for name in row.fields if re.fullmatch(r"negative(_\d+)?", name)]
        return tuple(row.text(name) for name in names)
    if not isinstance(listed, list):
        raise row.wrong("`negatives` must be a list")
    texts: list[str] = []
    for each in listed:
        text = each.get("text") if isinstance(each, dict) else each
        if not isinstance(text, str) or not text.strip():
            raise row.wrong("each of `negatives` must be a text, or an object with a `text`")
        texts.append(text)
    return tuple(texts)


def _judged_pairs(
    judgments: Iterable[_Row], queries: Mapping[str, str], corpus: Mapping[str, str]
) -> list[Pair]:
    right: dict[str, list[str]] = {}
    wrong: dict[str, list[str]] = {}
    path = Path()
    for row in judgments:
        path = row.path
        query, document = row.text("query-id"), row.text("corpus-id")
        if query not in queries:
            raise row.wrong(f"there is no question {query}")
        if document not in corpus:
            raise row.wrong(f"there is no passage {document}")
        (right if _score(row) > 0 else wrong).setdefault(query, []).append(document)
    pairs = [
        Pair(
            queries[query],
            corpus[document],
            source=document,
            negatives=tuple(corpus[each] for each in wrong.get(query, ())),
        )
        for query, documents in right.items()
        for document in documents
    ]
    _require_some(path, pairs)
    return pairs


def _score(row: _Row) -> int:
    try:
        return int(row.text("score"))
    except ValueError:
        raise row.wrong(f"the score must be a whole number, not {row.fields['score']}") from None


def _titled(row: _Row) -> str:
    title = row.fields.get("title")
    return f"{title}. {row.text('text')}" if title else row.text("text")


def _jsonl(path: Path) -> Iterator[_Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise PairFileError(f"{path}:{number}: no JSON: {error.msg}") from error
        if not isinstance(fields, dict):
            raise PairFileError(f"{path}:{number}: an object was expected")
        yield _Row(path, number, fields)


def _csv(path: Path) -> Iterator[_Row]:
    csv.field_size_limit(min(MAX_FIELD_CHARACTERS, sys.maxsize))
    with _opened(path) as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for fields in reader:
                row = _Row(path, reader.line_num, fields)
                if None in fields or None in fields.values():
                    raise row.wrong(f"{len(reader.fieldnames or ())} columns were expected")
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise PairFileError(f"{path}:{reader.line_num}: {error}") from error


def _tsv(path: Path, names: tuple[str, ...], *, skip_first: bool = False) -> Iterator[_Row]:
    for number, line in _lines(path):
        cells = line.rstrip("\r\n").split("\t")
        if (skip_first and number == 1) or cells == [""]:
            continue
        if len(cells) != len(names):
            raise PairFileError(
                f"{path}:{number}: {len(names)} columns were expected ({', '.join(names)}), "
                f"there are {len(cells)}"
            )
        yield _Row(path, number, dict(zip(names, cells, strict=True)))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    with _opened(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, line
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
            raise PairFileError(f"{path}:{number + 1}: {error}") from error


def _opened(path: Path, mode: str = "rt") -> TextIO:
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        # Newlines are left to the CSV reader, which knows those inside quotes.
        stream: TextIO = opener(path, mode, encoding="utf-8", newline="")
    except OSError as error:
        raise PairFileError(f"{path}: {error.strerror}") from error
    return stream


def _present(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise PairFileError(f"{folder}: there is no {name}")


def _require_some(path: Path, found: Sized) -> None:
    if not len(found):
        raise PairFileError(f"{path}: there is no record in it")
