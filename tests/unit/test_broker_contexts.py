"""Do contexts hold what was found, once, within their budget, and prove it?"""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st
from shoal.broker.contexts import glue
from shoal.internal.v1.shard_pb2 import StoredDocument
from shoal.rpc.tokens import rough_token_count
from shoal.v1.search_pb2 import Hit, Span

WORDS = "alpha beta gamma delta epsilon zeta eta theta "


def document(id_: str, lengths: list[int], overlap: int = 0) -> StoredDocument:
    """A document whose passages have so many words; each begins `overlap` characters early."""
    texts = [(WORDS * 9)[:6] * length for length in lengths]
    stored = StoredDocument(document_id=id_, title=f"Title of {id_}", text="".join(texts))
    stored.content_hash = hashlib.sha256(stored.text.encode()).digest()
    position = 0
    for text in texts:
        stored.passages.append(Span(start=max(0, position - overlap), end=position + len(text)))
        position += len(text)
    return stored


def hit(stored: StoredDocument, passage: int, score: float) -> Hit:
    return Hit(
        document_id=stored.document_id,
        passage=passage,
        span=stored.passages[passage],
        content_hash=stored.content_hash,
        score=score,
        dense_score=score,
    )


def test_neighbours_are_glued_to_what_they_stand_beside() -> None:
    one, two = document("one", [3] * 12, overlap=4), document("two", [3] * 4)
    hits = [hit(one, 4, 0.9), hit(two, 0, 0.8), hit(one, 5, 0.7), hit(one, 10, 0.6)]
    contexts = glue(hits, {"one": one, "two": two}, 1_000, 1)
    found = [(each.document_id, [one.passage for one in each.citations]) for each in contexts]
    assert found == [("one", [4, 5]), ("two", [0]), ("one", [10])]
    best = contexts[0]
    assert (best.span.start, best.span.end) == (one.passages[3].start, one.passages[6].end)
    assert best.text == one.text[best.span.start : best.span.end]
    assert best.title == "Title of one"
    assert best.citations[0].span == one.passages[4]


def test_the_best_come_first_and_then_their_neighbours() -> None:
    stored = document("one", [10] * 9)
    each = rough_token_count(stored.text[: stored.passages[0].end])
    hits = [hit(stored, 4, 0.9), hit(stored, 0, 0.8)]
    contexts = glue(hits, {"one": stored}, 3 * each, 20)
    spans = [(context.span.start, context.span.end) for context in contexts]
    first, last = stored.passages[4], stored.passages[5]
    assert spans == [(first.start, last.end), (0, stored.passages[0].end)]
    assert len(glue(hits, {"one": stored}, each, 20)) == 1
    assert glue(hits, {"one": stored}, each - 1, 20) == []


def test_what_was_changed_since_it_was_found_is_left_out() -> None:
    before, now = document("one", [3, 3]), document("one", [4, 3])
    assert glue([hit(before, 1, 0.9)], {"one": now}, 1_000, 1) == []
    assert glue([hit(before, 1, 0.9)], {}, 1_000, 1) == []


@given(
    st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=8), min_size=1, max_size=4),
    st.data(),
)
def test_whatever_is_found_the_budget_is_kept_and_nothing_comes_twice(
    shapes: list[list[int]], data: st.DataObject
) -> None:
    overlap = data.draw(st.sampled_from([0, 3]))
    documents = {f"d{at}": document(f"d{at}", shape, overlap) for at, shape in enumerate(shapes)}
    places = [(id_, at) for id_, each in documents.items() for at in range(len(each.passages))]
    chosen = data.draw(st.lists(st.sampled_from(places), unique=True))
    hits = [hit(documents[id_], at, 1.0 - number / 100) for number, (id_, at) in enumerate(chosen)]
    budget, neighbours = data.draw(st.integers(1, 120)), data.draw(st.integers(0, 3))
    contexts = glue(hits, documents, budget, neighbours)
    assert sum(rough_token_count(each.text) for each in contexts) <= budget
    assert [each.score for each in contexts] == sorted(
        (each.score for each in contexts), reverse=True
    )
    cited = [(each.document_id, one.passage) for each in contexts for one in each.citations]
    assert len(set(cited)) == len(cited)
    assert set(cited) <= set(chosen)
    held: set[tuple[str, int]] = set()
    for each in contexts:
        assert each.citations
        stored = documents[each.document_id]
        assert each.text == stored.text[each.span.start : each.span.end]
        inside = {
            (each.document_id, at)
            for at, span in enumerate(stored.passages)
            if each.span.start <= span.start and span.end <= each.span.end
        }
        assert not inside & held
        held |= inside
