"""Is what augmentation makes still right, and always the same?"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from shoal.training.augmentation import (
    ThesaurusError,
    augmented,
    delete_span,
    drop_words,
    first_sentence,
    inverse_cloze,
    read_thesaurus,
    swap_words,
)
from shoal.training.pairs import Pair
from shoal.training.settings import AugmentationSettings

FIRST = "Brewer keeps track of every batch of ale."
SECOND = "It counts the malt and the hops that are in store."
THIRD = "Reports can be printed or sent by mail to the neighbours."
PAIR = Pair("program that brews good ale", f"{FIRST} {SECOND} {THIRD}", "brewer")
THESAURUS = "UTF-8\nbrews|1\n(verb)|makes|ferments well\ngood|2\n(adj)|fine\n(adj)|solid|good\n"


def test_words_are_left_out_and_one_stays() -> None:
    rng = random.Random(1)
    texts = {drop_words(PAIR.query, 0.5, rng) for _ in range(50)}
    assert len(texts) > 5
    assert all(text and set(text.split()) <= set(PAIR.query.split()) for text in texts)
    assert drop_words("single", 0.99, rng) == "single"
    assert drop_words(PAIR.query, 0.0, rng) == PAIR.query


def test_a_third_of_the_words_in_a_row_is_left_out() -> None:
    words = ["a", "b", "c", "d", "e", "f"]
    for _ in range(20):
        kept = delete_span(" ".join(words), random.Random()).split()
        assert len(kept) == 4
        assert kept == [word for word in words if word in kept]
    assert delete_span("a b", random.Random(1)) == "a b"


def test_a_first_sentence_asks_for_the_rest() -> None:
    asked = first_sentence(PAIR)
    assert asked == Pair(FIRST, f"{SECOND} {THIRD}", "brewer", made_from=PAIR.positive)
    assert first_sentence(Pair("q", FIRST, "s")) is None


def test_inverse_cloze_asks_for_what_is_around() -> None:
    rng = random.Random(2)
    made = [inverse_cloze(PAIR, rng) for _ in range(200)]
    torn = [each for each in made if each is not None and each.query not in each.positive]
    whole = [each for each in made if each is not None and each.query in each.positive]
    assert {each.query for each in torn} == {FIRST, SECOND, THIRD}
    # One in ten keeps its sentence.
    assert 5 <= len(whole) <= 40
    assert all(each.source == "brewer" for each in torn)
    # A part of a part is a part of the passage.
    assert {each.whole for each in torn} == {PAIR.whole} == {PAIR.positive}
    part = Pair("q", f"{SECOND} {THIRD} {SECOND}", "brewer", made_from=PAIR.positive)
    assert {made.whole for made in [first_sentence(part)] if made} == {PAIR.positive}


def test_synonyms_come_from_a_thesaurus(tmp_path: Path) -> None:
    path = tmp_path / "th.dat"
    path.write_text(THESAURUS)
    thesaurus = read_thesaurus(path)
    assert thesaurus == {"brews": ("makes",), "good": ("fine", "solid")}
    swapped = swap_words(PAIR.query, thesaurus, 0.999, random.Random(1)).split()
    assert swapped[2] == "makes"
    assert swapped[3] in ("fine", "solid")
    path.write_text("UTF-8\nno bar here\n")
    with pytest.raises(ThesaurusError, match=r"th\.dat:2: "):
        read_thesaurus(path)


def test_everything_goes_by_the_seed() -> None:
    settings = AugmentationSettings(
        word_dropout=0.3, span_deletion=0.3, first_sentences=0.5, inverse_cloze=0.5
    )
    pairs = [PAIR] * 40
    once = augmented(pairs, settings, seed=1)
    assert once == augmented(pairs, settings, seed=1)
    assert once != augmented(pairs, settings, seed=2)
    assert len(once) > 60
    assert augmented(pairs, AugmentationSettings(), seed=1) == pairs
