"""Are the weights of a reranker chosen on questions that tell something, and blended as served?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shoal.bundle import EncoderModel, RerankerModel, load_bundle
from shoal.training.blend_questions import FAMILY, Judged, Sources, build_questions
from shoal.training.debian import Package
from shoal.training.hybrid import Found, HybridCorpus
from shoal.training.manual_pages import ManualPage, iter_manual_pages, sections_of
from shoal.training.pairs import Pair
from shoal.training.weighing import Shape, blend, choose_blend, choose_shape, means, ndcg

BUNDLES = Path(__file__).resolve().parents[2] / "deploy" / "bundles"
KINDS = ("packages", "sections", "manuals", "topics", "sentences", "matters")
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
            description=f"It prints, for whoever has asked, the history of {topic}. "
            + f"This prints what is known of {topic}. " * 9,
            related=tuple(each for each in TOPICS[:3] if each != topic),
        )
        for topic in TOPICS
    ]
    sections = [
        Pair(f"{topic} {heading}", f"Of {topic} and its {heading} much is told here. " * 3, topic)
        for topic in TOPICS
        for heading in ("rules", "history", "tools")
    ]
    sources = Sources(packages, pages, sections)
    return build_questions(sources, encoder, passage_count=30, question_count=6, seed=3)


def test_there_are_questions_of_all_kinds(questions: list[Judged]) -> None:
    assert [each.kind for each in questions] == [kind for kind in KINDS for _ in range(6)]
    for each in questions:
        assert len(each.passages) == (30 if each.kind == "sections" else 10)
        assert max(each.relevant.values()) == (2 if each.kind in ("topics", "matters") else 1)
        assert (np.diff(each.found.scores) <= 0).all()
        np.testing.assert_allclose(np.diag(each.found.similarities), 1.0, atol=1e-4)


def test_a_sentence_that_asks_is_not_in_the_passage(questions: list[Judged]) -> None:
    asked = [each for each in questions if each.kind in ("sentences", "matters")]
    for each in asked:
        assert len(each.text.split()) >= 8
        assert not any(each.text in passage for passage in each.passages)


def test_one_programs_pages_are_few(encoder: EncoderModel) -> None:
    pages = [
        ManualPage(f"cloud_{number}", f"say something of {number}", f"Number {number}. " * 20, ())
        for number in range(FAMILY + 5)
    ]
    sources = Sources([], [*pages, ManualPage("sea", "say something of it", "Salt. " * 50, ())], [])
    found = build_questions(sources, encoder, passage_count=90, question_count=90, seed=1)
    assert [each.kind for each in found] == ["manuals"] * (FAMILY + 1)


def test_the_choice_says_what_it_was_made_on(model: RerankerModel, questions: list[Judged]) -> None:
    chosen = choose_blend(model, questions)
    assert chosen.weight > 0
    assert chosen.affinity >= 0
    assert chosen.read == model.bundle.card.blend.read  # type: ignore[union-attr]
    assert all(kind in chosen.chosen_on for kind in KINDS)


def test_what_is_read_is_chosen_too(model: RerankerModel, questions: list[Judged]) -> None:
    shapes = (Shape(1, 8), Shape(5, 24))
    told: list[str] = []
    shape, chosen = choose_shape(model.bundle, shapes, questions, told.append)
    assert shape in shapes
    assert chosen.read == shape.read
    gained = [float(line.partition("nDCG@10 ")[2].split()[0]) for line in told]
    assert shape == shapes[int(np.argmax(gained))]


def test_what_is_weighed_is_what_is_served(model: RerankerModel, questions: list[Judged]) -> None:
    card = model.bundle.card.blend
    assert card is not None
    found = questions[0].found
    rerank = np.full(len(found.scores), np.nan, dtype=np.float32)
    rerank[:4] = [3.0, -2.0, 5.0, 0.5]
    served = model.blend(rerank, found.scores, found.similarities)
    weighed = blend(questions[0], rerank, card.weight, card.affinity)
    np.testing.assert_allclose(served, weighed, atol=1e-6)


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
