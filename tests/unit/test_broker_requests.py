"""Are wrong requests refused with the field's name, and are answers named by all they depend on?"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from shoal.broker.cache import answer_key, vector_key
from shoal.broker.config import BrokerSettings
from shoal.broker.fusion import HybridPlan
from shoal.broker.routes import IndexRoute, ShardGroup
from shoal.broker.validation import check_ids, check_index_name, check_search
from shoal.rpc.arrays import pack_vectors
from shoal.rpc.errors import InvalidFieldError
from shoal.v1.errors_pb2 import Reason
from shoal.v1.search_pb2 import Fusion, Group, Hybrid, Rerank, SearchRequest, Vectors

ROUTE = IndexRoute(
    name="books",
    uid="0123",
    dimension=4,
    encoder_model="tiny@1",
    create_time=Timestamp(),
    index_version=1,
    shard_count=2,
    groups=(ShardGroup((0, 1), ("shard-server-0",)),),
)
SETTINGS = BrokerSettings()


def request(**fields: object) -> SearchRequest:
    return SearchRequest(**{"index": "books", **fields})  # type: ignore[arg-type]


def rows(*values: object) -> Vectors:
    return pack_vectors(np.asarray(values, np.float32))


def refused(wrong: SearchRequest) -> InvalidFieldError:
    with pytest.raises(InvalidFieldError) as caught:
        check_search(wrong, ROUTE, SETTINGS)
    return caught.value


def test_defaults() -> None:
    query = check_search(request(text="whale"), ROUTE, SETTINGS)
    assert (query.text, query.vector, query.top_k, query.rerank_count) == ("whale", b"", 10, 50)


def test_reranking_is_asked_for_or_not() -> None:
    some = request(text="whale", rerank=Rerank(candidate_count=200))
    assert check_search(some, ROUTE, SETTINGS).rerank_count == 200
    none = request(text="whale", rerank=Rerank(disabled=True, candidate_count=7))
    assert check_search(none, ROUTE, SETTINGS).rerank_count == 0
    vector = request(vector=rows([1, 0, 0, 0]))
    assert check_search(vector, ROUTE, SETTINGS).rerank_count == 0


@pytest.mark.parametrize("top_k", [0, 1_001, 1_000_000, 2**32 - 1])
def test_top_k(top_k: int) -> None:
    assert "top_k" in refused(request(text="whale", top_k=top_k)).failure.fields


@pytest.mark.parametrize("top_k", [1, 1_000])
def test_top_k_at_its_bounds(top_k: int) -> None:
    assert check_search(request(text="a", top_k=top_k), ROUTE, SETTINGS).top_k == top_k


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\t\n\r ",
        "\u2003\u3000",
        "\x00",
        "\x07 \x1b",
        "\x85\xa0",
        "a" * 32_769,
        "ш" * 16_385,
    ],
)
def test_texts_that_ask_nothing_or_too_much(text: str) -> None:
    assert "text" in refused(request(text=text)).failure.fields


@pytest.mark.parametrize(
    "text", ["a", "кит", "鲸鱼", " whale\n", "a" * 32_768, "ш" * 16_384, "😀", "a\x00b"]
)
def test_texts_that_ask_something(text: str) -> None:
    assert check_search(request(text=text), ROUTE, SETTINGS).text == text


def test_a_query_is_needed() -> None:
    assert "query" in refused(request()).failure.fields


@pytest.mark.parametrize("count", [201, 2**32 - 1])
def test_too_many_candidates(count: int) -> None:
    wrong = request(text="whale", rerank=Rerank(candidate_count=count))
    assert "rerank.candidate_count" in refused(wrong).failure.fields


@pytest.mark.parametrize(
    ("vector", "path", "reason"),
    [
        (rows([1, 2, 3]), "vector.dimension", Reason.REASON_DIMENSION_MISMATCH),
        (rows([1, 2, 3, np.nan]), "vector.values", Reason.REASON_INVALID_VECTOR),
        (rows([1, 2, 3, np.inf]), "vector.values", Reason.REASON_INVALID_VECTOR),
        (rows([1, 2, 3, -np.inf]), "vector.values", Reason.REASON_INVALID_VECTOR),
        (rows([0, 0, 0, 0]), "vector.values", Reason.REASON_INVALID_VECTOR),
        (rows([1, 0, 0, 0], [0, 1, 0, 0]), "vector.count", Reason.REASON_INVALID_FIELD),
        (Vectors(), "vector.type", Reason.REASON_INVALID_FIELD),
        (
            Vectors(values=b"123", count=1, dimension=4, type="VECTOR_TYPE_FLOAT32"),
            "vector.values",
            Reason.REASON_INVALID_FIELD,
        ),
        (
            Vectors(count=0, dimension=4, type="VECTOR_TYPE_FLOAT32"),
            "vector.count",
            Reason.REASON_INVALID_FIELD,
        ),
    ],
)
def test_vectors_that_are_none(vector: Vectors, path: str, reason: Reason.ValueType) -> None:
    error = refused(request(vector=vector))
    assert path in error.failure.fields
    assert error.reason == reason


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_vector_is_made_unit_length(scale: float) -> None:
    query = check_search(request(vector=rows([3 * scale, 0, 4 * scale, 0])), ROUTE, SETTINGS)
    np.testing.assert_allclose(np.frombuffer(query.vector, "<f4"), [0.6, 0, 0.8, 0], rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["", "A", "1a", "-a", "_a", "a b", "a/b", "a.b", "é", "a" * 64, "a\n"]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        check_index_name(name)
    assert "name" in caught.value.failure.fields


@pytest.mark.parametrize("name", ["a", "a-b_9", "a" * 63])
def test_names(name: str) -> None:
    assert check_index_name(name) == name


@pytest.mark.parametrize("ids", [[], ["a", ""], ["é" * 257], ["a"] * 4])
def test_ids_that_are_none(ids: list[str]) -> None:
    with pytest.raises(InvalidFieldError):
        check_ids(ids, 3)


def test_ids() -> None:
    check_ids(["a", "é" * 256, "\n"], 3)


BASE = request(text="whale")
CHANGES: dict[str, SearchRequest] = {
    "index": request(index="other", text="whale"),
    "text": request(text="whale "),
    "vector": request(vector=rows([1, 0, 0, 0])),
    "top_k": request(text="whale", top_k=10),
    "rerank": request(text="whale", rerank=Rerank(disabled=True)),
    "min_table_version": request(text="whale", min_table_version=1),
    "require_complete": request(text="whale", require_complete=True),
    "explain": request(text="whale", explain=True),
    "omit_text": request(text="whale", omit_text=True),
    "bypass_cache": request(text="whale", bypass_cache=True),
    "filter": request(text="whale", filter="open"),
    "group": request(text="whale", group=Group(per_document=2)),
    "hybrid": request(text="whale", hybrid=Hybrid(lexical_weight=0.3)),
    "no_feedback": request(text="whale", no_feedback=True),
    "index_version": request(text="whale", index_version=2),
    "spaces": request(text="whale", spaces=["default"]),
}


def test_every_field_of_a_request_is_tried() -> None:
    assert set(CHANGES) == {field.name for field in SearchRequest.DESCRIPTOR.fields}


def test_an_answer_is_named_by_all_that_it_depends_on() -> None:
    names = [answer_key(each, ROUTE, (3, 4), ("tiny@1", "words@1")) for each in CHANGES.values()]
    names += [
        answer_key(BASE, ROUTE, (3, 4), ("tiny@1", "words@1")),
        answer_key(BASE, ROUTE, (4, 3), ("tiny@1", "words@1")),
        answer_key(BASE, ROUTE, (3,), ("tiny@1", "words@1")),
        answer_key(BASE, ROUTE, (3, 4), ("tiny@1",)),
        answer_key(BASE, ROUTE, (3, 4), ("tiny@2", "words@1")),
        answer_key(BASE, ROUTE, (3, 4), ("tiny@1", "words@2")),
        answer_key(BASE, dataclasses.replace(ROUTE, uid="4567"), (3, 4), ("tiny@1", "words@1")),
        answer_key(
            BASE, dataclasses.replace(ROUTE, index_version=2), (3, 4), ("tiny@1", "words@1")
        ),
        answer_key(BASE, dataclasses.replace(ROUTE, shard_count=3), (3, 4), ("tiny@1", "words@1")),
        answer_key(
            *(BASE, ROUTE, (3, 4), ("tiny@1", "words@1")),
            hybrid=HybridPlan(0.5, Fusion.FUSION_CONVEX, 100),
        ),
        answer_key(
            *(BASE, ROUTE, (3, 4), ("tiny@1", "words@1")),
            hybrid=HybridPlan(0.5, Fusion.FUSION_CONVEX, 50),
        ),
        vector_key("tiny@1", "whale"),
        vector_key("tiny@2", "whale"),
        vector_key("tiny@", "1whale"),
    ]
    assert len(set(names)) == len(names)
    again = answer_key(request(text="whale"), ROUTE, (3, 4), ("tiny@1", "words@1"))
    assert again in names
