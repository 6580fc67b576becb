"""Are hits gathered by document as sorting and counting would?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from shoal.broker.answer import Ranked
from shoal.broker.grouping import best_documents, keep_best
from shoal.v1.search_pb2 import Hit

ids = st.lists(st.sampled_from("abcdef"), max_size=40)


@given(ids, st.integers(1, 3), st.integers(1, 7))
def test_the_best_of_each_document_are_kept(
    documents: list[str], per_document: int, count: int
) -> None:
    kept = keep_best(documents, per_document, count)
    wanted = list(dict.fromkeys(documents))[:count]
    expected = sorted(
        at
        for id_ in wanted
        for at in [at for at, each in enumerate(documents) if each == id_][:per_document]
    )
    assert kept == expected


def test_a_passage_whose_document_is_not_known_is_left_out() -> None:
    assert keep_best([None, "a", None, "b"], 1, 9) == [1, 3]


@given(ids, st.integers(1, 7))
def test_the_first_documents_stay_in_order(documents: list[str], count: int) -> None:
    ranked = [Ranked(Hit(document_id=id_), 0, "", 1.0, 1.0) for id_ in documents]
    found = [each.hit.document_id for each in best_documents(ranked, count)]
    wanted = set(list(dict.fromkeys(documents))[:count])
    assert found == [id_ for id_ in documents if id_ in wanted]
