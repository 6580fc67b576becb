"""Does the state of an upsert hold whatever the stream does? A pure state, scripted here."""

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.client import IndexNotFoundError, OverloadedError, UnavailableError
from shoal.client._upsert import MAX_ATTEMPTS, Upload, ended_early
from shoal.v1.documents_pb2 import Document, UpsertDocumentsResponse, UpsertFailure


def lost():
    return UnavailableError("WRITER_UNAVAILABLE", grpc.StatusCode.UNAVAILABLE, "gone")


def test_numbers_rise_from_one_and_every_message_names_the_index():
    upload = Upload("xquad")
    requests = [upload.add(Document(id=str(each))) for each in range(3)]
    assert [request.number for request in requests] == [1, 2, 3]
    assert {request.index for request in requests} == {"xquad"}


def test_window_is_bounded_by_count_and_by_bytes():
    upload = Upload("i", window_count=2)
    upload.add(Document(id="a"))
    assert upload.has_room
    upload.add(Document(id="b"))
    assert not upload.has_room
    upload.acknowledge(UpsertDocumentsResponse(durable_number=1))
    assert upload.has_room

    upload = Upload("i", window_bytes=100)
    upload.add(Document(id="a", text="x" * 200))
    assert not upload.has_room
    upload.acknowledge(UpsertDocumentsResponse(durable_number=1))
    assert upload.has_room
    assert upload.done


def test_failures_are_not_counted_as_acknowledged():
    upload = Upload("i")
    for each in range(3):
        upload.add(Document(id=str(each)))
    failure = UpsertFailure(number=2, document_id="1", reason="INVALID_FIELD", message="no")
    summary = upload.acknowledge(
        UpsertDocumentsResponse(
            durable_number=3, table_version=9, failures=[failure], passage_count=5
        )
    )
    assert (summary.acknowledged, summary.processed, summary.table_version) == (2, 3, 9)
    assert summary.failures == (failure,)
    assert upload.done


def test_gives_up_after_bounded_attempts_without_progress_and_says_what_was_done():
    upload = Upload("i")
    upload.add(Document(id="a"))
    pauses = [upload.lost(lost()) for _ in range(MAX_ATTEMPTS - 1)]
    assert pauses == sorted(pauses)
    assert sum(pauses) > 5
    with pytest.raises(UnavailableError) as caught:
        upload.lost(lost())
    assert "0 documents had been acknowledged" in caught.value.__notes__[0]


def test_progress_renews_the_attempts():
    upload = Upload("i")
    for each in range(50):
        upload.add(Document(id=str(each)))
    for number in range(1, 50):
        upload.lost(lost())
        upload.acknowledge(UpsertDocumentsResponse(durable_number=number))
    assert upload.summary.acknowledged == 49


def test_waits_as_long_as_an_overloaded_server_asks():
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    error = OverloadedError("OVERLOADED", code, "full", retry_delay_s=3.5)
    assert Upload("i").lost(error) == 3.5


def test_does_not_send_again_what_is_refused_for_good():
    error = IndexNotFoundError("INDEX_NOT_FOUND", grpc.StatusCode.NOT_FOUND, "no such index")
    with pytest.raises(IndexNotFoundError):
        Upload("i").lost(error)


def test_a_stream_ended_early_may_be_sent_again():
    assert Upload("i").lost(ended_early()) > 0


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=30),
    st.integers(min_value=1, max_value=40),
)
def test_pending_is_always_what_follows_the_highest_durable_number(acknowledgements, count):
    """Also if a new stream acknowledges less than the one before it had, and streams are lost."""
    upload = Upload("i")
    for each in range(count):
        upload.add(Document(id=str(each)))
    highest = 0
    for number, lose in acknowledgements:
        if lose:
            upload.lost(lost()) if upload._attempts < MAX_ATTEMPTS - 1 else None
        number = min(number, count)
        highest = max(highest, number)
        summary = upload.acknowledge(UpsertDocumentsResponse(durable_number=number))
        assert summary.acknowledged == highest
        assert [each.number for each in upload.pending] == list(range(highest + 1, count + 1))
        assert upload._pending_bytes == sum(each.ByteSize() for each in upload.pending)
