"""Is the present state what a dictionary would hold?"""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from shoal.table import DocumentRows, PassageSpan, Tombstone, build_batch, latest_mask, present_rows

DIMENSION = 2

# Operations: an id, and passages to write, or None for a deletion.
operations = st.lists(
    st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(1, 3))), max_size=30
)


def as_operation(document_id, passage_count):
    if passage_count is None:
        return Tombstone(document_id)
    spans = [PassageSpan(each, each + 1, "x") for each in range(passage_count)]
    vectors = np.eye(passage_count, DIMENSION, dtype=np.float32)
    return DocumentRows(document_id, "", "", bytes(32), 0, spans, vectors)


def batch_of(history, first_sequence=0):
    return build_batch(
        [as_operation(*each) for each in history],
        first_sequence=first_sequence,
        updated_at_us=0,
        dimension=DIMENSION,
    )


@given(operations, st.integers(0, 30), st.randoms())
def test_the_present_state_is_the_last_operation_on_each_document(history, cut, random):
    expected = {}
    for sequence, (document_id, passage_count) in enumerate(history):
        expected[document_id] = (sequence, passage_count)
    batches = [batch_of(history[:cut]), batch_of(history[cut:], first_sequence=len(history[:cut]))]
    random.shuffle(batches)  # Scans keep no order.
    rows = present_rows(batches).select(["document_id", "sequence", "ordinal"]).to_pylist()
    found = {(row["document_id"], row["sequence"], row["ordinal"]) for row in rows}
    assert len(found) == len(rows)
    assert found == {
        (document_id, sequence, ordinal)
        for document_id, (sequence, passage_count) in expected.items()
        for ordinal in range(passage_count or 0)
    }


def test_nothing_has_no_present_state():
    assert present_rows([]) is None
    assert latest_mask(pa.array([], pa.string()), np.empty(0, np.int64)).tolist() == []


def test_tombstones_have_no_vector_and_no_text():
    batch = batch_of([("a", 2), ("a", None)])
    assert batch.column("vector").is_valid().to_pylist() == [True, True, False]
    assert batch.slice(2, 1).select(["text", "content_hash", "span_start"]).to_pylist() == [
        {"text": None, "content_hash": None, "span_start": None}
    ]
