"""Do messages read as JSON as documented, and does progress know when to speak?"""

import json

import pytest
from google.protobuf.duration_pb2 import Duration
from shoal.cli.output import printable, snippet
from shoal.cli.plain import as_plain, enum_name, milliseconds
from shoal.cli.progress import FIRST_LINE_S, LINE_EVERY_S, Lines, progress
from shoal.v1 import cluster_pb2, documents_pb2, indexes_pb2, search_pb2


def test_every_field_is_there_and_what_is_unset_is_null():
    plain = as_plain(search_pb2.Hit(score=0.1, content_hash=b"\x01\xff"))
    assert set(plain) == {field.name for field in search_pb2.Hit.DESCRIPTOR.fields}
    assert plain["rerank_score"] is plain["metadata"] is plain["update_time"] is None
    assert (plain["score"], plain["dense_score"]) == (0.1, 0.0)
    assert plain["content_hash"] == "01ff"


def test_integers_of_64_bits_are_numbers():
    assert as_plain(search_pb2.SearchResponse(table_version=2**60))["table_version"] == 2**60


def test_metadata_comes_back_as_it_was_written():
    document = documents_pb2.Document()
    document.metadata.update({"year": 2016, "share": 0.25, "tags": ["a", None, True, {"n": -3}]})
    printed = json.dumps(as_plain(document)["metadata"], sort_keys=True)
    assert printed == '{"share": 0.25, "tags": ["a", null, true, {"n": -3}], "year": 2016}'


def test_durations_are_in_milliseconds_and_say_so():
    explanation = search_pb2.Explanation()
    explanation.total.FromMicroseconds(1_234)
    assert as_plain(explanation)["total_ms"] == 1.234
    assert milliseconds(Duration()) == 0.0


@pytest.mark.parametrize(
    ("enum", "number", "name"),
    [
        (search_pb2.SearchKind, 2, "IVF_PQ"),
        (search_pb2.Stage, 5, "RERANK"),
        (cluster_pb2.Role, 3, "SHARD_SERVER"),
        (indexes_pb2.IndexState, 0, "UNSPECIFIED"),
        (cluster_pb2.InstanceState, 99, "99"),
    ],
)
def test_enums_are_named_without_their_type(enum, number, name):
    assert enum_name(enum.DESCRIPTOR, number) == name


def test_text_is_shown_without_what_steers_a_terminal():
    assert printable("ไทย हिन्दी 中文 🐟") == "ไทย हिन्दी 中文 🐟"
    assert printable("a\x1b[31mb\x9bc\u202ed\ne", keep="\n") == "a [31mb c d\ne"
    assert snippet("  a \n\n b\t" + "c" * 500, limit=20) == "a b " + "c" * 15 + "…"


def test_progress_in_a_log_speaks_from_the_third_second_on_and_now_and_then(capsys):
    now_s = 100.0
    lines = Lines("ingesting", 2_000, "documents", clock=lambda: now_s)
    lines.advance(1)
    assert capsys.readouterr().err == ""
    now_s += FIRST_LINE_S
    lines.advance(500, "510 passages")
    lines.advance(501)
    assert capsys.readouterr().err == "ingesting: 500 of 2,000 documents 510 passages (2 s)\n"
    now_s += LINE_EVERY_S
    lines.advance(1_500)
    assert capsys.readouterr().err == "ingesting: 1,500 of 2,000 documents (12 s)\n"


def test_progress_that_is_short_says_nothing_where_there_is_no_terminal(capsys):
    with progress("quick", 3, "steps") as advance:
        for done in range(3):
            advance(done, "")
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress("ingesting", 3, "documents") as advance:
        advance(3, "4 passages")
    assert capsys.readouterr().out == ""
