"""Do passages tile the text, within their bounds, at boundaries that a reader would choose?"""

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from shoal.rpc.tokens import rough_tokens
from shoal.writer.splitting import SplitBounds, split_text

BOUNDS = SplitBounds(max_tokens=20, max_chars=120)

SCRIPTS = {
    "en": "The quick brown fox jumps over the lazy dog. It was not amused! Was it? No.\n\nNext. ",
    "ar": "الثعلب البني السريع يقفز فوق الكلب الكسول. هل كان سعيدا؟ لا. ",
    "el": "Η γρήγορη καφέ αλεπού πηδά πάνω από το τεμπέλικο σκυλί. Ναι; ",
    "hi": "तेज भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है। क्या वह खुश था? नहीं। ",
    "ru": "Быстрая коричневая лиса прыгает через ленивую собаку. Она рада? Нет! ",
    "th": "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจอย่างรวดเร็วและไม่มีใครสนใจเลย",
    "zh": "敏捷的棕色狐狸跳过了懒狗。它高兴吗\uff1f不\uff01下一句\uff0c没有空格。",
    "vi": "Con cáo nâu nhanh nhẹn nhảy qua con chó lười biếng. Nó có vui không? ",
    "emoji": "👩🏽‍💻 works with 👨‍👩‍👧‍👦 and e\u0301 ",
}

texts = st.text(
    st.one_of(
        st.sampled_from(" \n\t.!?。abcdeé中ไท\u0301\u200d"),
        st.characters(exclude_categories=["Cs"]),
    ),
    min_size=1,
    max_size=600,
)


def tiles(text, spans):
    position = 0
    for start, end in spans:
        assert start == position
        assert end > start
        position = end
    assert position == len(text)


@given(texts, st.integers(1, 40), st.integers(1, 80))
@example("a" * 1000, 5, 20)
@example(" " * 500, 5, 20)
@example("a" + "\u0301" * 500, 5, 20)
def test_passages_tile_the_text_within_their_bounds(text, max_tokens, max_chars):
    spans = split_text(text, SplitBounds(max_tokens, max_chars), rough_tokens)
    tiles(text, spans)
    starts = [start for start, _ in rough_tokens(text)]
    for start, end in spans:
        assert end - start <= max_chars
        assert sum(start <= token < end for token in starts) <= max_tokens


@pytest.mark.parametrize("language", SCRIPTS)
def test_every_script_is_split_between_characters(language):
    text = SCRIPTS[language] * 20
    spans = split_text(text, BOUNDS, rough_tokens)
    assert len(spans) > 2
    tiles(text, spans)
    for start, _ in spans[1:]:
        assert unicodedata.category(text[start]) not in ("Mn", "Mc", "Me")
        assert "\u200d" not in text[start - 1 : start + 1]
        assert not "\U0001f3fb" <= text[start] <= "\U0001f3ff"


@pytest.mark.parametrize("language", ["en", "ru", "hi", "ar", "zh"])
def test_sentences_stay_whole_where_they_fit(language):
    text = SCRIPTS[language] * 10
    for _, end in split_text(text, SplitBounds(60, 400), rough_tokens)[:-1]:
        assert text[:end].rstrip()[-1] in ".!?؟।。\uff01\uff1f"


def test_paragraphs_come_before_sentences():
    paragraph = "One two three. Four five six. Seven eight."
    text = "\n\n".join([paragraph] * 4)
    spans = split_text(text, SplitBounds(25, 1000), rough_tokens)
    assert [text[start:end].strip() for start, end in spans] == ["\n\n".join([paragraph] * 2)] * 2


def test_words_stay_whole_where_there_is_no_sentence():
    text = "word " * 100
    for start, _ in split_text(text, BOUNDS, rough_tokens):
        assert text[start : start + 5] == "word "


def test_lengths_are_even_rather_than_full():
    text = "word " * 23
    spans = split_text(text, SplitBounds(20, 1000), rough_tokens)
    assert [end - start for start, end in spans] == [60, 55]


def test_a_text_that_fits_is_one_passage():
    assert split_text("One. Two.\n\nThree.", BOUNDS, rough_tokens) == [(0, 17)]


def test_a_word_that_is_one_token_is_bounded_by_its_characters():
    spans = split_text("x" * 1000, BOUNDS, lambda text: [(0, len(text))])
    tiles("x" * 1000, spans)
    assert max(end - start for start, end in spans) <= BOUNDS.max_chars


# What is not linear in the text takes hours here.
@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", ["word ", "a.b", "文", "x", "\n", "e\u0301"])
def test_a_megabyte_is_split_in_passing(piece):
    text = (piece * (1 << 20))[: 1 << 20]
    tiles(text, split_text(text, SplitBounds(220, 2048), rough_tokens))


@given(texts, st.integers(4, 40), st.integers(1, 80), st.data())
@example("a" * 1000, 5, 20, None)
def test_overlapping_passages_cover_the_text_within_their_bounds(text, max_tokens, max_chars, data):
    overlap = 2 if data is None else data.draw(st.integers(1, max_tokens // 2))
    spans = split_text(text, SplitBounds(max_tokens, max_chars, overlap), rough_tokens)
    starts = [start for start, _ in rough_tokens(text)]
    reached = begun = 0
    for start, end in spans:
        assert begun <= start <= reached < end
        # A character that is made of many code points may be more than the bound.
        assert sum(start <= token < reached for token in starts) <= overlap + 32
        assert sum(start <= token < end for token in starts) <= max_tokens + 32
        assert end - start <= max_chars + 32
        begun, reached = start, end
    assert reached == len(text)


def test_an_overlap_is_whole_sentences_where_they_fit():
    text = "".join(f"This is sentence {number} of many. " for number in range(30))
    spans = split_text(text, SplitBounds(40, 1000, 14), rough_tokens)
    assert len(spans) > 4
    for (_, before), (start, _) in pairwise(spans):
        assert start < before
        assert text[start:].startswith("This is sentence")
