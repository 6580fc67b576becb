"""Is every wrong field named by its path, and every right one taken?"""

import hashlib

import numpy as np
import pytest
from google.protobuf.struct_pb2 import Struct
from shoal.rpc.arrays import pack_vectors
from shoal.rpc.errors import InvalidFieldError
from shoal.v1.documents_pb2 import Document
from shoal.v1.errors_pb2 import Reason
from shoal.writer.validation import check_document, check_index_name, shown_to_models

FIELD = Reason.REASON_INVALID_FIELD
VECTOR = Reason.REASON_INVALID_VECTOR
MISMATCH = Reason.REASON_DIMENSION_MISMATCH


def document(**fields):
    vector = fields.pop("vector", None)
    made = Document(**{"id": "a", "text": "text", **fields})
    if vector is not None:
        made.vector.CopyFrom(pack_vectors(np.array([vector], np.float32)))
    return made


def with_metadata(value):
    made = document()
    made.metadata.CopyFrom(Struct())
    made.metadata["key"] = value
    return made


def with_time(seconds, nanos=0):
    made = document()
    made.create_time.seconds, made.create_time.nanos = seconds, nanos
    return made


def test_a_good_document_is_taken_as_it_is():
    checked = check_document(
        document(id="ü" * 256, title="T", text="a\x00b\u202e", vector=[3.0, 4.0]), dimension=2
    )
    assert checked.text == "a\x00b\u202e"
    assert checked.content_hash == hashlib.sha256("T\0a\x00b\u202e".encode()).digest()
    assert checked.vector.tolist() == [[np.float32(0.6), np.float32(0.8)]]
    assert checked.metadata == ""
    assert checked.created_at_us is None


def test_metadata_and_time_are_kept():
    assert check_document(with_metadata("ü"), 2).metadata == '{"key":"ü"}'
    assert check_document(with_time(1, 2000), 2).created_at_us == 1_000_002
    assert check_document(with_time(-62_135_596_800), 2).created_at_us == -62_135_596_800_000_000


@pytest.mark.parametrize(
    ("wrong", "path", "reason"),
    [
        (document(id=""), "document.id", FIELD),
        (document(id="x" * 513), "document.id", FIELD),
        (document(id="ü" * 257), "document.id", FIELD),
        (document(id="a\nb"), "document.id", FIELD),
        (document(id="a\x7f"), "document.id", FIELD),
        (document(title="x" * 4097), "document.title", FIELD),
        (document(text=""), "document.text", FIELD),
        (document(text=" \n\t\u3000"), "document.text", FIELD),
        (document(text="x" * (1 << 20) + "x"), "document.text", FIELD),
        (document(text="ü" * (1 << 19) + "x"), "document.text", FIELD),
        (with_metadata("x" * 65_536), "document.metadata", FIELD),
        (with_metadata(float("nan")), "document.metadata", FIELD),
        (with_time(253_402_300_800), "document.create_time", FIELD),
        (with_time(0, -1), "document.create_time", FIELD),
        (document(vector=[1.0, 2.0, 3.0]), "document.vector.dimension", MISMATCH),
        (document(vector=[1.0, float("nan")]), "document.vector.values", VECTOR),
        (document(vector=[1.0, float("inf")]), "document.vector.values", VECTOR),
        (document(vector=[0.0, 0.0]), "document.vector.values", VECTOR),
    ],
)
def test_what_is_wrong_is_named(wrong, path, reason):
    with pytest.raises(InvalidFieldError) as caught:
        check_document(wrong, dimension=2)
    assert list(caught.value.failure.fields) == [path]
    assert caught.value.reason == reason


def test_the_limits_themselves_are_taken():
    check_document(document(id="x" * 512, title="x" * 4096, text="x" * (1 << 20)), 2)


def test_two_vectors_are_not_one():
    wrong = document()
    wrong.vector.CopyFrom(pack_vectors(np.ones((2, 2), np.float32)))
    with pytest.raises(InvalidFieldError, match=r"document\.vector\.count: is 2; must be 1"):
        check_document(wrong, 2)


@pytest.mark.parametrize("name", ["", "A", "1a", "a b", "a/b", "..", "a" * 64, "ä", "a\n"])
def test_names_of_indexes_are_checked(name):
    with pytest.raises(InvalidFieldError):
        check_index_name(name, "index")


def test_models_see_no_control_characters():
    assert shown_to_models("a\x00b\x9f\nc") == "a b  c"
