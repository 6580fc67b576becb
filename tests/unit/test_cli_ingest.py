"""Does every bad line get its place and its reason, and every good one into the index?"""

import gzip
import io
import json
import random

import pytest
from shoal.cli.corpus_file import MAX_LINE_BYTES, CorpusReader
from shoal.cli.main import app
from typer.testing import CliRunner

from tests.harness.cli_broker import DIMENSION, serving

GOOD = {"_id": "good", "title": "T", "text": "a text"}


def lines_of(*lines):
    """Lines of a file: bytes as they are, everything else as JSON."""
    return b"".join(
        (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in lines
    )


def problems(*lines, dimension=DIMENSION):
    reader = CorpusReader(dimension)
    found = reader.read("f.jsonl", io.BytesIO(lines_of(*lines)))
    return [(each.number, each.problem) for each in found if each.document is None]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"_id": "a", "text": "b"', "malformed JSON: Expecting ',' delimiter at column 25"),
        (b"not json", "malformed JSON: Expecting value at column 1"),
        (b'{"_id": "a", "text": "b", "metadata": {"x": NaN}}', "NaN is no JSON"),
        (b'{"_id": "a", "text": "b", "vector": [Infinity]}', "Infinity is no JSON"),
        (b'{"_id": "a", "text": "b", "vector": [1e999, 1, 1, 1]}', "the number 1e999 is too large"),
        (
            b'{"_id": "a", "text": "b", "metadata": {"n": 12345678901234567890}}',
            "the number 12345678901234567890 would lose digits: make it a string",
        ),
        (b'{"_id": "a", "text": "caf\xe9"}', "is not UTF-8: byte 0xe9 at byte 26"),
        (b'{"_id": "a", "text": "\\ud800"}', "holds half of a surrogate pair"),
        (b"[" * 100_000, "malformed JSON: it is nested too deep"),
        ([GOOD], "must be a JSON object, not a list"),
        ({"text": "b"}, "`_id` (or `id`) is missing"),
        ({"_id": "a"}, "`text` is missing"),
        ({"_id": 7, "text": "b"}, "`_id` must be a string, not a number"),
        ({"_id": "a", "text": ["b"]}, "`text` must be a string, not a list"),
        ({"_id": "a", "text": "b", "title": 3}, "`title` must be a string, not a number"),
        ({"_id": "a", "text": "b", "metadata": "x"}, "`metadata` must be an object, not a string"),
        ({"_id": "a", "text": "b", "url": "x"}, "unknown key 'url': what is not text belongs in"),
        ({"_id": "a", "id": "b", "text": "b"}, "`_id` and `id` differ"),
        ({"_id": "", "text": "b"}, "id: is empty"),
        ({"_id": "x" * 513, "text": "b"}, "id: is 513 bytes; at most 512"),
        ({"_id": "a\nb", "text": "b"}, "id: holds a control character"),
        ({"_id": "a", "text": ""}, "text: is empty"),
        ({"_id": "a", "text": " \n\t "}, "text: is nothing but white space"),
        ({"_id": "a", "text": "ä" * 600_000}, "text: is 1,200,000 bytes; at most 1,048,576"),
        ({"_id": "a", "text": "b", "title": "t" * 5_000}, "title: is 5,000 bytes"),
        ({"_id": "a", "text": "b", "metadata": {"k": "v" * 70_000}}, "metadata: is 70,008 bytes"),
        ({"_id": "a", "text": "b", "vector": "x"}, "`vector` must be a list of numbers"),
        ({"_id": "a", "text": "b", "vector": [1, True]}, "one of them is a boolean"),
        ({"_id": "a", "text": "b", "vector": [1.0, 2.0]}, "vector"),
        ({"_id": "a", "text": "b", "vector": [0, 0, 0, 0]}, "vector"),
        ({"_id": "a", "text": "b", "vector": [1e39, 0, 0, 0]}, "vector"),
        ({"_id": "a", "text": "b", "vector": []}, "vector"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(line, problem):
    (found,) = problems(GOOD, line, {**GOOD, "_id": "better"})
    assert found[0] == 2
    assert problem in found[1]


def test_metadata_that_would_break_the_stream_is_refused():
    deep = {"_id": "a", "text": "b", "metadata": {}}
    inner = deep["metadata"]
    for _ in range(60):
        inner["x"] = inner = {}
    ((number, problem),) = problems(deep)
    assert (number, problem) == (1, "metadata: is nested too deep")


def test_a_repeated_id_is_named_with_the_place_of_the_first():
    reader = CorpusReader()
    first = list(reader.read("a.jsonl", io.BytesIO(lines_of(GOOD))))
    second = list(reader.read("b.jsonl", io.BytesIO(lines_of({"_id": "x", "text": "y"}, GOOD))))
    assert first[0].document is not None
    assert second[1].problem == "the id 'good' stands in a.jsonl:1 already"


def test_a_line_without_end_is_passed_over_and_the_rest_is_read():
    endless = b'{"_id": "' + b"x" * (2 * MAX_LINE_BYTES) + b'"}'
    assert problems(endless, GOOD) == [(1, f"is longer than {MAX_LINE_BYTES:,} bytes")]


def test_texts_of_every_script_and_control_characters_are_taken():
    texts = [
        "Ελληνικά",
        "русский",
        "العربية",
        "ไทย",
        "中文",
        "हिन्दी",
        "tiếng Việt",
        "a\x00b\x1b[1m",
        "🐟",
    ]
    documents = [{"id": f"d{at}", "text": text} for at, text in enumerate(texts)]
    read = list(CorpusReader().read("f", io.BytesIO(b"\xef\xbb\xbf" + lines_of(*documents, b""))))
    assert [each.document.text for each in read] == texts


def test_whatever_the_bytes_are_each_line_is_a_document_or_a_problem():
    dice = random.Random(5)
    good = json.dumps({**GOOD, "metadata": {"a": [1, None]}, "vector": [1, 2, 3, 4]}).encode()
    for _ in range(3_000):
        line = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            line[dice.randrange(len(line))] = dice.randrange(256)
        for each in CorpusReader(DIMENSION).read("f", io.BytesIO(bytes(line))):
            assert (each.document is None) == bool(each.problem)


# Through a broker


@pytest.fixture
def broker():
    with serving() as served:
        served.indexes["notes"], served.versions["notes"] = {}, 1
        yield served


@pytest.fixture
def ingest(broker, monkeypatch, tmp_path):
    """Runs `shoal ingest` in a folder of its own."""
    monkeypatch.setenv("SHOAL_ENDPOINT", broker.endpoint)
    monkeypatch.chdir(tmp_path)

    def run(*arguments, stdin=None):
        return CliRunner().invoke(app, ["ingest", *arguments], input=stdin)

    return run


def write(name, *lines):
    content = lines_of(*lines)
    with gzip.open(name, "wb") if name.endswith(".gz") else open(name, "wb") as file:
        file.write(content)


def many(count, prefix="d"):
    return [{"_id": f"{prefix}{at}", "text": f"text {at}"} for at in range(count)]


def test_plain_and_gzipped_files_and_standard_input(ingest, broker):
    write("a.jsonl", *many(5, "a"))
    write("b.jsonl.gz", *many(5, "b"))
    for abort in ("abort", "skip"):
        stdin = gzip.compress(lines_of(*many(5, f"c-{abort}-")))
        done = ingest("notes", "a.jsonl", "b.jsonl.gz", "-", "--on-error", abort, stdin=stdin)
        assert (done.exit_code, done.stderr) == (0, "")
        assert "15 documents, 15 passages in" in done.stdout
    assert len(broker.indexes["notes"]) == 20


def test_json_says_what_was_ingested(ingest):
    write("a.jsonl", GOOD, b"oops", {**GOOD, "_id": "refused"})
    done = ingest("notes", "a.jsonl", "--on-error", "skip", "--json")
    assert done.exit_code == 1
    printed = json.loads(done.stdout)
    assert printed.pop("seconds") >= 0
    assert printed == {
        "index": "notes",
        "documents": 1,
        "passages": 1,
        "table_version": 2,
        "searchable": True,
        "bad_lines": 2,
        "bad": [
            {
                "file": "a.jsonl",
                "line": 2,
                "reason": "malformed JSON: Expecting value at column 1",
            },
            {
                "file": "a.jsonl",
                "line": 3,
                "reason": "the cluster does not like it [INVALID_FIELD]",
            },
        ],
    }
    assert done.stderr.splitlines() == [
        "a.jsonl:2: malformed JSON: Expecting value at column 1",
        "a.jsonl:3: the cluster does not like it [INVALID_FIELD]",
    ]


def test_a_refusal_is_told_by_its_line_also_after_bad_ones(ingest):
    write("a.jsonl", b"", b"oops", *many(10))
    write("b.jsonl", b"oops", *many(10, "e"), {**GOOD, "_id": "refuse-me"})
    done = ingest("notes", "a.jsonl", "b.jsonl", "--on-error", "skip")
    assert "b.jsonl:12: the cluster does not like it" in done.stderr
    assert "20 documents" in done.stdout
    assert "3 bad lines were left out." in done.stdout


@pytest.mark.parametrize("stdin", [False, True])
def test_abort_ingests_nothing_if_one_line_is_bad(ingest, broker, stdin):
    lines = [*many(50), {"_id": "d7", "text": "again"}]
    write("a.jsonl", *lines)
    source = "-" if stdin else "a.jsonl"
    done = ingest("notes", source, stdin=lines_of(*lines) if stdin else None)
    assert done.exit_code == 1
    assert f"{source}:51: the id 'd7' stands in {source}:8 already" in done.stderr
    assert "Nothing was ingested: 1 bad lines." in done.stdout
    assert broker.indexes["notes"] == {}


def test_create_makes_the_index_only_for_files_that_are_good(ingest, broker):
    write("bad.jsonl", b"oops")
    write("good.jsonl", GOOD)
    assert ingest("new", "good.jsonl").exit_code == 1
    assert ingest("new", "bad.jsonl", "--create").exit_code == 1
    assert "new" not in broker.indexes
    assert ingest("new", "good.jsonl", "--create").exit_code == 0
    assert ingest("new", "good.jsonl", "--create").exit_code == 0
    assert list(broker.indexes["new"]) == ["good"]


def test_vectors_of_another_dimension_than_the_new_index_has(ingest, broker):
    write("a.jsonl", {**GOOD, "vector": [1, 2, 3]})
    done = ingest("new", "a.jsonl", "--create")
    assert done.exit_code == 1
    assert "vectors of 3 numbers, and the index has 4" in done.stderr
    assert broker.indexes.get("new", {}) == {}


@pytest.mark.parametrize("on_error", ["abort", "skip"])
def test_a_damaged_archive_is_a_bad_line(ingest, on_error):
    write("a.jsonl.gz", *many(2_000))
    with open("a.jsonl.gz", "rb+") as file:
        file.truncate(3_000)
    done = ingest("notes", "a.jsonl.gz", "--on-error", on_error)
    assert done.exit_code == 1
    assert "the file cannot be read on" in done.stderr


def test_files_that_cannot_be_read_are_named_before_anything_is_sent(ingest, broker, tmp_path):
    write("a.jsonl", GOOD)
    for other, said in (("missing.jsonl", "No such file"), (str(tmp_path), "is a folder")):
        done = ingest("notes", "a.jsonl", other, "--on-error", "skip")
        assert done.exit_code == 1
        assert said in done.stderr
    assert "named twice" in ingest("notes", "a.jsonl", "a.jsonl").stderr
    assert broker.indexes["notes"] == {}


def test_waiting_for_shards_that_do_not_follow_is_bounded_and_said(ingest, broker):
    broker.lag = 1
    write("a.jsonl", GOOD)
    done = ingest("notes", "a.jsonl", "--timeout", "0.3", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["searchable"] is False
    assert "not every shard has them" in done.stderr
    assert ingest("notes", "a.jsonl", "--no-wait").exit_code == 0


def test_an_empty_file_is_no_error(ingest):
    write("a.jsonl")
    done = ingest("notes", "a.jsonl")
    assert done.exit_code == 0
    assert "0 documents" in done.stdout
