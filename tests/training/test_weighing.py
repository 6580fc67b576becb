"""Are the weights of a reranker chosen on questions that tell something, and blended as served?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shoal.bundle import EncoderModel, RerankerModel, load_bundle
from shoal.training.debian import Package
from shoal.training.hybrid import Found, HybridCorpus
from shoal.training.manual_pages import ManualPage, iter_manual_pages, sections_of
from shoal.training.weighing import Judged, blend, build_questions, choose_blend, means, ndcg

BUNDLES = Path(__file__).resolve().parents[2] / "deploy" / "bundles"
TOPICS = ("chess", "beer", "maps", "music", "spam", "trains", "tides", "fonts", "knots", "bees")


@pytest.fixture(scope="module")
def encoder() -> EncoderModel:
    return EncoderModel(load_bundle(BUNDLES / "all-minilm-l6-v2-int8"), threads=1)


@pytest.fixture(scope="module")
def model() -> RerankerModel:
    return RerankerModel(load_bundle(BUNDLES / "reranker-minilm-l12-int8"), threads=1)


@pytest.fixture(scope="module")
def questions(encoder: EncoderModel) -> list[Judged]:
    packages = [
        Package(
            name=f"lib{topic}",
            source=topic,
            summary=f"program about {topic}",
            description=f"It is all about {topic}, and what people do with {topic}. " * 5,
            section="misc",
            homepage="",
        )
        for topic in TOPICS
    ]
    pages = [
        ManualPage(
            name=topic,
            purpose=f"show what there is to know of {topic}",
            description=f"This prints what is known of {topic}. " * 9,
            related=tuple(each for each in TOPICS[:3] if each != topic),
        )
        for topic in TOPICS
    ]
    return build_questions(packages, pages, encoder, passage_count=20, question_count=6, seed=3)


def test_there_are_questions_of_all_kinds(questions: list[Judged]) -> None:
    assert [each.kind for each in questions] == ["packages"] * 6 + ["manuals"] * 6 + ["topics"] * 6
    for each in questions:
        assert len(each.passages) == 10
        assert max(each.relevant.values()) == (2 if each.kind == "topics" else 1)
        assert (np.diff(each.found.scores) <= 0).all()
        np.testing.assert_allclose(np.diag(each.found.similarities), 1.0, atol=1e-4)


def test_the_choice_says_what_it_was_made_on(model: RerankerModel, questions: list[Judged]) -> None:
    chosen = choose_blend(model, questions)
    assert chosen.weight > 0
    assert chosen.affinity >= 0
    assert chosen.read == model.bundle.card.blend.read  # type: ignore[union-attr]
    assert all(kind in chosen.chosen_on for kind in ("packages", "manuals", "topics"))


def test_what_is_weighed_is_what_is_served(model: RerankerModel, questions: list[Judged]) -> None:
    card = model.bundle.card.blend
    assert card is not None
    found = questions[0].found
    rerank = np.full(len(found.scores), np.nan, dtype=np.float32)
    rerank[:4] = [3.0, -2.0, 5.0, 0.5]
    served = model.blend(rerank, found.scores, found.similarities)
    weighed = blend(found, rerank, card.weight, card.affinity)
    # They differ by a constant.
    np.testing.assert_allclose(served - served[0], weighed - weighed[0], atol=1e-5)


def test_gains_are_discounted_and_measured_by_kind() -> None:
    found = Found(np.array([7, 8, 9]), np.array([3, 2, 1], np.float32), np.eye(3, dtype=np.float32))
    right = Judged("one", "q", {8: 1}, found, ["a", "b", "c"])
    many = Judged("many", "q", {7: 2, 9: 1, 5: 1}, found, ["a", "b", "c"])
    assert ndcg(right, found.scores) == pytest.approx(1 / np.log2(3))
    ideal = 2 + 1 / np.log2(3) + 1 / np.log2(4)
    assert ndcg(many, found.scores) == pytest.approx((2 + 1 / np.log2(4)) / ideal)
    values = means([right, many], [found.scores, found.scores])
    assert values == pytest.approx({"one": 0.63093, "many": 0.79848}, abs=1e-4)


def test_words_and_vectors_find(encoder: EncoderModel) -> None:
    corpus = HybridCorpus([f"About {topic} and nothing else." for topic in TOPICS], encoder)
    found = corpus.search("is there something about bees", 4)
    assert found.places[0] == TOPICS.index("bees")
    assert len(found.places) == 4


MAN = r"""
.TH LS 1
.SH NAME
ls \- list the contents of directories
.SH DESCRIPTION
.PP
List information about the FILEs
.RB ( "the current directory" " by default)."
Sort entries \fIalphabetically\fP.
.SH "SEE ALSO"
.BR dir (1),
.BR stat (1)
"""


def test_manual_pages_are_read(tmp_path: Path) -> None:
    assert sections_of(MAN)["NAME"] == "ls - list the contents of directories"
    folder = tmp_path / "man1"
    folder.mkdir()
    (folder / "ls.1").write_text(MAN.replace("Sort entries", "Sort entries. " * 30))
    (folder / "short.1").write_text(MAN)
    (folder / "broken.1.gz").write_bytes(b"no gzip")
    (page,) = iter_manual_pages(tmp_path)
    assert (page.name, page.purpose, page.related) == (
        "ls",
        "list the contents of directories",
        ("dir", "stat"),
    )
    assert page.description.startswith("List information about the FILEs ( the current directory")
