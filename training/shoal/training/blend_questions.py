"""Which questions choose how a reranker's score is blended?

None that has to do with an evaluation set. A Debian machine has these kinds, which want different
things of a ranking:

- packages: the summary of a package asks for its description, without the summary;
- sections: the heading of a section in a manual or a documentation page, with the page's name in
  front, asks for the section, among the other sections of the same page;
- manuals: the purpose of a manual page asks for the page;
- sentences: a sentence of a manual page asks for the page, without that sentence;
- topics: as manuals, but for the pages that its SEE ALSO names, too;
- matters: as sentences, likewise.

The first four have one right answer, as questions of fact do; the last two have many, as a matter
that is looked into does. Summaries, purposes and headings are short, sentences are long, and
sections are of any length.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from shoal.bundle import EncoderModel
from shoal.training.debian import Package, iter_packages
from shoal.training.hybrid import Found, HybridCorpus
from shoal.training.manual_pages import ManualPage, iter_manual_pages
from shoal.training.pairs import Pair
from shoal.training.title_bodies import documentation_pairs, manual_pairs

DEPTH: Final = 50
MIN_DESCRIPTION_CHARACTERS: Final = 200
MAX_DESCRIPTION_CHARACTERS: Final = 1_200
MIN_SENTENCE_WORDS: Final = 8
# What is left of a page without one of its sentences.
MIN_REST_CHARACTERS: Final = 200
# A page with fewer sections gives its sections no company.
MIN_SECTIONS: Final = 3
MAX_SECTIONS: Final = 12
# Pages of one program's many commands repeat each other: at most so many of names that begin alike.
FAMILY: Final = 20
# A page names so many of the others: with more, it is a list and no matter of its own.
RELATED: Final = range(2, 16)

Progress = Callable[[str], None]
Asked = tuple[str, dict[int, int]]


@dataclass(frozen=True)
class Judged:
    """A question, what is right, and what the hybrid search found."""

    kind: str
    text: str
    relevant: dict[int, int]
    """Gain by position of the passage."""
    found: Found
    passages: Sequence[str]
    """Of the candidates, in order."""


@dataclass(frozen=True)
class Sources:
    """What the questions are made of."""

    packages: Iterable[Package]
    pages: Iterable[ManualPage]
    sections: Iterable[Pair]
    """Headings and their sections (title_bodies.py)."""


def machine_sources() -> Sources:
    """What this machine has. Raises PackageListsError once packages are read, if it has none."""
    return Sources(
        iter_packages(),
        iter_manual_pages(),
        itertools.chain(manual_pairs(), documentation_pairs()),
    )


def build_questions(
    sources: Sources,
    encoder: EncoderModel,
    *,
    passage_count: int,
    question_count: int,
    seed: int,
    progress: Progress = lambda _: None,
) -> list[Judged]:
    """Make the questions of all kinds, and search for each.

    passage_count: of packages, pages and sections, at most. question_count: of each kind, at most.
    Deterministic for the same machine, encoder and seed.
    """
    rng = random.Random(seed)
    packages = _one_a_source(sources.packages, rng)[:passage_count]
    sections = _whole_pages(sources.sections, rng)[:passage_count]
    pages = _few_a_family(sources.pages, rng)[:passage_count]
    progress(f"encoding {len(packages)} descriptions of packages")
    corpus = HybridCorpus(
        [f"{each.name}. {_clipped(each.description)}" for each in packages], encoder
    )
    asked: list[Asked] = [(each.summary, {place: 1}) for place, each in enumerate(packages)]
    judged = _search("packages", corpus, asked[:question_count])
    progress(f"encoding {len(sections)} sections")
    corpus = HybridCorpus([f"{_title(each)}. {each.positive}" for each in sections], encoder)
    asked = [(each.query, {place: 1}) for place, each in enumerate(sections)]
    rng.shuffle(asked)
    judged += _search("sections", corpus, asked[:question_count])
    progress(f"encoding {len(pages)} manual pages")
    return judged + _page_questions(pages, encoder, question_count, rng)


def _page_questions(
    pages: Sequence[ManualPage], encoder: EncoderModel, count: int, rng: random.Random
) -> list[Judged]:
    taken = [_sentence_taken(each.description, rng) for each in pages]
    corpus = HybridCorpus(
        [f"{page.name}. {rest}" for page, (_, rest) in zip(pages, taken, strict=True)], encoder
    )
    purposes = {place: page.purpose for place, page in enumerate(pages)}
    sentences = {place: sentence for place, (sentence, _) in enumerate(taken) if sentence}
    related = _related(pages)
    judged: list[Judged] = []
    for one, many, texts in (
        ("manuals", "topics", purposes),
        ("sentences", "matters", sentences),
    ):
        alone: list[Asked] = [(text, {place: 1}) for place, text in texts.items()]
        judged += _search(one, corpus, alone[:count])
        together: list[Asked] = [
            (texts[place], {place: 2} | dict.fromkeys(others, 1))
            for place, others in related.items()
            if place in texts
        ]
        judged += _search(many, corpus, together[-count:])
    return judged


def _search(kind: str, corpus: HybridCorpus, asked: Iterable[Asked]) -> list[Judged]:
    judged = []
    for text, relevant in asked:
        found = corpus.search(text, DEPTH)
        passages = [corpus.passages[place] for place in found.places]
        judged.append(Judged(kind, text, relevant, found, passages))
    return judged


def _related(pages: Sequence[ManualPage]) -> dict[int, set[int]]:
    """The places of the pages that a page names, for pages that name some."""
    places = {each.name: place for place, each in enumerate(pages)}
    named = {
        place: {places[name] for name in page.related if name in places} - {place}
        for place, page in enumerate(pages)
    }
    return {place: others for place, others in named.items() if len(others) in RELATED}


def _sentence_taken(text: str, rng: random.Random) -> tuple[str, str]:
    """One sentence of a text, and the text without it; no sentence if none can be spared."""
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)
    long = [
        at
        for at, each in enumerate(sentences)
        if len(each.split()) >= MIN_SENTENCE_WORDS and len(text) - len(each) >= MIN_REST_CHARACTERS
    ]
    if not long:
        return "", text
    at = rng.choice(long)
    return sentences[at], " ".join(sentences[:at] + sentences[at + 1 :])


def _one_a_source(packages: Iterable[Package], rng: random.Random) -> list[Package]:
    """Packages of one source repeat each other."""
    long = [each for each in packages if len(each.description) >= MIN_DESCRIPTION_CHARACTERS]
    rng.shuffle(long)
    return list({each.source: each for each in long}.values())


def _few_a_family(pages: Iterable[ManualPage], rng: random.Random) -> list[ManualPage]:
    """Pages in any order, FAMILY of those whose names begin with the same word."""
    shuffled = sorted(pages, key=lambda each: each.name)
    rng.shuffle(shuffled)
    counts: Counter[str] = Counter()
    kept = []
    for page in shuffled:
        counts[_family(page.name)] += 1
        if counts[_family(page.name)] <= FAMILY:
            kept.append(page)
    return kept


def _family(name: str) -> str:
    """The first word of a name: gcloud of gcloud_run_deploy."""
    return re.split(r"[^A-Za-z0-9]", name, maxsplit=1)[0]


def _whole_pages(sections: Iterable[Pair], rng: random.Random) -> list[Pair]:
    """Sections, those of a page together, the pages in any order; each question once."""
    pages: dict[str, dict[str, Pair]] = {}
    for each in sections:
        pages.setdefault(each.source, {})[each.query] = each
    long = [list(each.values()) for each in pages.values() if len(each) >= MIN_SECTIONS]
    rng.shuffle(long)
    counts: Counter[str] = Counter()
    kept: list[Pair] = []
    for page in long:
        family = _family(_title(page[0]))
        counts[family] += 1
        if counts[family] <= FAMILY:
            # Some pages are books.
            kept += rng.sample(page, min(len(page), MAX_SECTIONS))
    return kept


def _title(section: Pair) -> str:
    """The name of a section's page: `man:ls.1` is of ls, `doc:tar` of tar."""
    kind, _, name = section.source.partition(":")
    return name.rpartition(".")[0] if kind == "man" else name


def _clipped(text: str) -> str:
    return " ".join(text.split())[:MAX_DESCRIPTION_CHARACTERS]
