"""How do files get into an index?

To abort on a bad line means to read everything once before anything is sent, so that nothing is
ingested. Otherwise the files are read once, good lines are ingested and the others are reported.
Either takes memory for the ids alone. A document that the cluster refuses after all is reported as
a bad line too.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from shoal.cli.corpus_file import STDIN, CorpusReader, Line, opened
from shoal.cli.output import CliError
from shoal.cli.progress import Advance, progress

if TYPE_CHECKING:
    from shoal.client import Client, UpsertSummary
    from shoal.v1.documents_pb2 import Document

POLL_S: Final = 0.1
# Bad lines that the JSON lists; all of them are reported on standard error, and counted.
MAX_LISTED: Final = 1_000


@dataclass(frozen=True)
class BadLine:
    """A line that was not ingested."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass
class Ingested:
    """What has become of the files."""

    index: str
    documents: int = 0
    passages: int = 0
    seconds: float = 0.0
    table_version: int = 0
    searchable: bool = False
    bad_count: int = 0
    bad_lines: list[BadLine] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """What `shoal ingest --json` prints."""
        listed = [
            {"file": each.file, "line": each.line, "reason": each.reason} for each in self.bad_lines
        ]
        return {
            "index": self.index,
            "documents": self.documents,
            "passages": self.passages,
            "seconds": round(self.seconds, 3),
            "table_version": self.table_version,
            "searchable": self.searchable,
            "bad_lines": self.bad_count,
            "bad": listed,
        }


OnBadLine = Callable[[BadLine], None]


class Ingestion:
    """Brings files into one index."""

    def __init__(self, client: Client, index: str, on_bad_line: OnBadLine) -> None:
        """on_bad_line: told of each at once."""
        self._client = client
        self._on_bad_line = on_bad_line
        self._files: Sequence[str] = ()
        # Where the document of each message stands: its file's place in the list, and its line.
        self._sent_files, self._sent_lines = array("I"), array("Q")
        self._refused = 0
        self.result = Ingested(index)

    def run(self, files: Sequence[str], *, abort: bool, create: bool = False) -> Ingested:
        """Ingest the files. Raises CliError; ShoalError if the cluster fails.

        abort: a bad line anywhere means that nothing is ingested. create: make the index if it is
        not there.
        """
        self._files = files
        with ExitStack() as stack:
            sources = stack.enter_context(_sources(files, reread=abort))
            dimension = self._dimension(create=create)
            absent, total = dimension is None, None
            if abort:
                total, dimension = self._validate(sources, dimension)
                if self.result.bad_count:
                    return self.result
            if absent:
                dimension = self._create(dimension)
            self._upsert(sources, dimension, total)
        return self.result

    def _dimension(self, *, create: bool) -> int | None:
        """That of the index; None if it is yet to be made."""
        from shoal.client import IndexNotFoundError

        try:
            return self._client.describe_index(self.result.index).index.dimension
        except IndexNotFoundError:
            if create:
                return None
            raise

    def _create(self, dimension: int | None) -> int:
        from shoal.client import IndexExistsError

        try:
            made = self._client.create_index(self.result.index).dimension
        except IndexExistsError:
            made = self._client.describe_index(self.result.index).index.dimension
        if dimension is not None and dimension != made:
            raise CliError(
                f"the files bring vectors of {dimension} numbers, and the index has {made}: make "
                f"them with its model, or leave them out"
            )
        return made

    def _validate(self, sources: Sources, dimension: int | None) -> tuple[int, int | None]:
        """Read everything; return how many documents there are, and their vectors' dimension."""
        reader, good = CorpusReader(dimension), 0
        with progress("checking", unit="documents") as advance:
            for line in sources.lines(reader):
                if line.document is None:
                    self._bad(line.file, line.number, line.problem)
                else:
                    good += 1
                advance(good, "")
        return good, reader.dimension

    def _upsert(self, sources: Sources, dimension: int | None, total: int | None) -> None:
        started_s = time.monotonic()
        reader = CorpusReader(dimension)
        with progress("ingesting", total, "documents") as advance:
            summary = self._client.upsert(
                self.result.index,
                self._documents(sources.lines(reader)),
                on_acknowledge=lambda so_far: self._acknowledged(so_far, advance),
            )
            self._acknowledged(summary, advance)
        self.result.documents = summary.acknowledged
        self.result.passages = summary.passage_count
        self.result.table_version = summary.table_version
        self.result.seconds = time.monotonic() - started_s

    def _documents(self, lines: Iterator[Line]) -> Iterator[Document]:
        places = {file: place for place, file in enumerate(self._files)}
        for line in lines:
            if line.document is None:
                self._bad(line.file, line.number, line.problem)
                continue
            self._sent_files.append(places[line.file])
            self._sent_lines.append(line.number)
            yield line.document

    def _acknowledged(self, summary: UpsertSummary, advance: Advance) -> None:
        for failure in summary.failures[self._refused :]:
            at = failure.number - 1
            file = self._files[self._sent_files[at]]
            self._bad(file, self._sent_lines[at], f"{failure.message} [{failure.reason}]")
        self._refused = len(summary.failures)
        advance(summary.processed, f"{summary.passage_count:,} passages")

    def _bad(self, file: str, number: int, reason: str) -> None:
        bad = BadLine(file, number, reason)
        self.result.bad_count += 1
        if len(self.result.bad_lines) < MAX_LISTED:
            self.result.bad_lines.append(bad)
        self._on_bad_line(bad)


def await_searchable(client: Client, index: str, table_version: int, timeout_s: float) -> bool:
    """Wait until every shard has applied a table version; False if that takes too long."""
    deadline_s = time.monotonic() + timeout_s
    with progress("waiting for the shards to follow") as advance:
        while client.describe_index(index).index.table_version < table_version:
            if time.monotonic() > deadline_s:
                return False
            advance(0, "")
            time.sleep(POLL_S)
    return True


class Sources:
    """Files, in the order that they were named in; can be read again if they were opened so."""

    def __init__(self, files: Sequence[str], stdin: BinaryIO | None) -> None:
        """stdin: what standard input held, if it is to be read again."""
        self._files, self._stdin = files, stdin

    def lines(self, reader: CorpusReader) -> Iterator[Line]:
        """Read all of them."""
        for file in self._files:
            if file == STDIN and self._stdin is not None:
                self._stdin.seek(0)
                yield from reader.read(file, self._stdin)
            else:
                with opened(file) as stream:
                    yield from reader.read(file, stream)


@contextmanager
def _sources(files: Sequence[str], *, reread: bool) -> Iterator[Sources]:
    twice = {file for file in files if files.count(file) > 1}
    if twice:
        raise CliError(f"{', '.join(sorted(twice))} is named twice")
    for file in files:
        if file != STDIN:
            with opened(file):
                pass  # A file that is not there is noticed before anything is sent.
    if STDIN not in files or not reread:
        yield Sources(files, None)
        return
    # Standard input can be read only once: it is kept in a file without a name meanwhile.
    with tempfile.TemporaryFile() as kept, opened(STDIN) as stdin:
        shutil.copyfileobj(stdin, kept)
        yield Sources(files, kept)
