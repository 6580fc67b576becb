"""Does plain Python become the request that was meant, and nonsense an error that says so?"""

import json
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from shoal.client import Document, search_request
from shoal.client import _requests as requests
from shoal.client._channel import channel_options, service_config, target_of
from shoal.v1.search_pb2 import VectorType


def test_a_question_becomes_text_and_unset_stays_unset():
    request = search_request("xquad", "who?")
    assert request.WhichOneof("query") == "text"
    assert not request.HasField("top_k")
    assert not request.rerank.disabled
    assert request.rerank.candidate_count == 0


def test_a_top_k_of_zero_is_sent_and_not_swallowed():
    assert search_request("i", "q", top_k=0).HasField("top_k")


def test_all_arguments_arrive():
    request = search_request(
        "i",
        "q",
        top_k=3,
        rerank=False,
        candidate_count=7,
        min_table_version=5,
        require_complete=True,
        explain=True,
        omit_text=True,
        bypass_cache=True,
    )
    assert (request.top_k, request.rerank.disabled, request.rerank.candidate_count) == (3, True, 7)
    assert request.min_table_version == 5
    assert request.require_complete
    assert request.explain
    assert request.omit_text
    assert request.bypass_cache


@pytest.mark.parametrize(
    "values",
    [
        [0.5, -1.0],
        (0.5, -1),
        np.array([0.5, -1.0]),
        np.array([0.5, -1.0], dtype=np.float32),
        np.array([0.5, 9.0, -1.0, 9.0], dtype=np.float32)[::2],
    ],
)
def test_vectors_are_packed_little_endian(values):
    vector = search_request("i", values).vector
    assert np.frombuffer(vector.values, "<f4").tolist() == [0.5, -1.0]
    assert (vector.count, vector.dimension) == (1, 2)
    assert vector.type == VectorType.VECTOR_TYPE_FLOAT32


@pytest.mark.parametrize("values", [[[1.0, 2.0]], ["a"], np.zeros((2, 2)), 3])
def test_what_is_no_vector_is_refused(values):
    with pytest.raises(TypeError, match="flat sequence of numbers"):
        requests.vectors(values)


def test_a_mapping_becomes_a_document():
    document = requests.document(
        {
            "id": "a",
            "title": None,
            "text": "t",
            "metadata": {"year": 2016, "tags": ["x", None], "deep": {"ok": True}},
            "vector": [1.0, 0.0],
            "create_time": datetime(2020, 1, 1, 3, tzinfo=timezone(timedelta(hours=3))),
        },
        1,
    )
    assert (document.id, document.title, document.text) == ("a", "", "t")
    assert document.metadata["year"] == 2016
    assert document.metadata["tags"][1] is None
    assert document.metadata["deep"]["ok"] is True
    assert document.vector.dimension == 2
    assert document.create_time.ToDatetime(UTC) == datetime(2020, 1, 1, tzinfo=UTC)
    assert requests.document(document, 1) is document


@pytest.mark.parametrize(
    ("source", "kind", "says"),
    [
        ({"_id": "a", "text": "t"}, ValueError, "document 7: there is no '_id'"),
        ({"id": 5}, TypeError, "document 7: "),
        ({"id": "a", "metadata": {"x": object()}}, TypeError, "document 7: its metadata"),
        ({"id": "a", "vector": ["x"]}, TypeError, "document 7: a vector is a flat sequence"),
    ],
)
def test_a_wrong_document_is_refused_by_its_position(source, kind, says):
    with pytest.raises(kind, match=says):
        requests.document(source, 7)


def test_ids_are_a_list_and_no_string():
    with pytest.raises(TypeError, match=r"\['abc'\]"):
        requests.delete_request("i", "abc")
    assert list(requests.get_request("i", ["a", "b"], 3).document_ids) == ["a", "b"]


def test_each_creation_has_an_id_of_its_own():
    ids = {requests.create_index_request("i", 0).request_id for _ in range(2)}
    assert len(ids) == 2
    assert "" not in ids


def test_scale_leaves_out_what_is_not_to_change():
    scale = requests.scale_request({"shards": 3, "replicas": None, "rerankers": 0}).scale
    assert (scale.shards, scale.HasField("replicas"), scale.HasField("rerankers")) == (
        3,
        False,
        True,
    )


def test_document_is_the_message():
    assert Document(id="a").id == "a"


def test_only_calls_without_side_effects_are_retried():
    config = json.loads(service_config())
    named = {f"{each['service']}/{each['method']}" for each in config["methodConfig"][0]["name"]}
    assert named == {
        "shoal.v1.SearchService/Search",
        "shoal.v1.SearchService/BatchSearch",
        "shoal.v1.DocumentService/GetDocuments",
        "shoal.v1.SearchService/RetrieveContext",
        "shoal.v1.IndexService/ListIndexes",
        "shoal.v1.IndexService/ListIndexVersions",
        "shoal.v1.IndexService/ListSnapshots",
        "shoal.v1.IndexService/DescribeIndex",
        "shoal.v1.IndexService/DescribeRollout",
        "shoal.v1.ClusterService/GetClusterStatus",
    }


def test_callers_own_channel_options_win():
    options = dict(channel_options([("grpc.enable_http_proxy", 1), ("grpc.lb", "x")]))
    assert options["grpc.enable_http_proxy"] == 1
    assert options["grpc.lb"] == "x"
    assert dict(channel_options())["grpc.enable_http_proxy"] == 0


@pytest.mark.parametrize(
    ("endpoints", "target"),
    [
        ("h:1", "h:1"),
        ("dns:///brokers:7600", "dns:///brokers:7600"),
        (["h:1"], "h:1"),
        (["127.0.0.1:1", "127.0.0.2:2"], "ipv4:127.0.0.1:1,127.0.0.2:2"),
        (["localhost:1", "127.0.0.2:2"], "ipv4:127.0.0.1:1,127.0.0.2:2"),
        (["[::1]:1", "[::1]:2"], "ipv6:[::1]:1,[::1]:2"),
    ],
)
def test_targets(endpoints, target):
    assert target_of(endpoints) == target


@pytest.mark.parametrize("endpoints", [[], ["a", "b"], ["127.0.0.1:1", "[::1]:2"], [":1", "h:x"]])
def test_wrong_targets_are_refused(endpoints):
    with pytest.raises(ValueError, match=r"endpoint|host:port|not both"):
        target_of(endpoints)
