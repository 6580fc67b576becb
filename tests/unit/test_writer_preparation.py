"""What does the encoder read of a document, and is a document prepared whole?"""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from shoal.rpc.arrays import pack_vectors
from shoal.v1.documents_pb2 import Document, UpsertDocumentsRequest
from shoal.writer.config import WriterSettings
from shoal.writer.preparation import Preparer
from shoal.writer.tokens import Measure, load_measure

BUNDLE = Path(__file__).parents[2] / "deploy" / "bundles" / "all-minilm-l6-v2-int8"


def prepare(*documents, measure=None, **settings):
    preparer = Preparer(WriterSettings(data="/nowhere", **settings), measure or Measure(), 2)
    requests = [
        UpsertDocumentsRequest(number=number, document=document)
        for number, document in enumerate(documents, 1)
    ]
    return preparer.prepare(requests)


def test_the_title_stands_in_front_of_every_passage():
    chunk = prepare(Document(id="a", title=" A\ntitle ", text="One two. " * 200))
    assert len(chunk.texts) > 1
    assert all(text.startswith("A title. One two.") for text in chunk.texts)
    assert "".join(each.text for each in chunk.documents[0].passages) == "One two. " * 200


def test_a_long_title_leaves_room_for_the_text():
    chunk = prepare(Document(id="a", title="word " * 800, text="The text."), title_tokens=5)
    assert chunk.texts == ["word word word word word. The text."]
    chunk = prepare(Document(id="a", title="word " * 800, text="The text."), title_tokens=0)
    assert chunk.texts == ["The text."]


def test_documents_with_and_without_vectors_keep_their_places():
    vector = pack_vectors(np.array([[0.0, 1.0]], np.float32))
    chunk = prepare(
        Document(id="a", text="one"),
        Document(id="b", text="two", vector=vector),
        Document(id="c", text="three"),
        Document(id="", text="four"),
    )
    assert chunk.texts == ["one", "three"]
    assert chunk.number == 4
    rows = chunk.rows(np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32), now_us=7)
    assert [(row.document_id, row.vectors.tolist()) for row in rows] == [
        ("a", [[1.0, 0.0]]),
        ("b", [[0.0, 1.0]]),
        ("c", [[-1.0, 0.0]]),
    ]
    assert {row.created_at_us for row in rows} == {7}


def test_a_missing_document_fails_alone():
    preparer = Preparer(WriterSettings(data="/nowhere"), Measure(), 2)
    chunk = preparer.prepare([UpsertDocumentsRequest(number=1)])
    assert [(each.number, each.reason) for each in chunk.failures] == [(1, "INVALID_FIELD")]


@pytest.mark.skipif(not BUNDLE.is_dir(), reason="needs the encoder's bundle")
@pytest.mark.parametrize("text", ["A sentence of words. ", "文書。", "คำไทย", "слово ", "x"])
def test_no_passage_is_longer_than_the_encoder_reads(text):
    measure = load_measure(BUNDLE)
    assert measure.model_tokens == 256
    chunk = prepare(
        Document(id="a", title="Some title of a document", text=(text * 20_000)[:20_000]),
        measure=measure,
    )
    assert len(chunk.texts) > 5
    assert all(len(measure.tokens(each)) + 2 <= 256 for each in chunk.texts)


def test_an_object_store_is_not_taken_for_a_folder():
    with pytest.raises(ValidationError, match="must be a folder"):
        WriterSettings(data="s3://bucket/data")
