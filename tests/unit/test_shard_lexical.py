"""Do the terms of passages come along through loads, writes, folds, moves and files?"""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from shoal.internal.v1.shard_pb2 import LexicalQuery
from shoal.lexical.analysis import DEFAULT_ANALYZER, analyzer_of
from shoal.rpc.errors import InvalidFieldError
from shoal.shard.codebook import train_codebook
from shoal.shard.codes import load_codebook
from shoal.shard.lexical_leg import (
    LexicalLeg,
    count_terms,
    statistics_of,
    words_of,
    write_statistics,
)
from shoal.shard.load import build_shards
from shoal.shard.move import Piece, Source, assembled, cover
from shoal.shard.search import Target, search
from shoal.shard.shard import Shard
from shoal.shard.snapshot import SnapshotFolder
from shoal.table import schema
from shoal.table.slots import slot_range
from shoal.table.table import PassageTable

from tests.harness.shard_corpus import UID, Corpus
from tests.unit.test_shard_state import Layout

ANALYZER = analyzer_of(DEFAULT_ANALYZER)
QUESTIONS = ["the title of doc-3, part 1", "šoal 𝄞 part 0", "doc-7 doc-11 title", "nothing here"]


def expected_terms(corpus):
    return {
        (document_id, ordinal): Counter(ANALYZER.terms(f"{stored.title}\n{text}"))
        for document_id, stored in corpus.present.items()
        for ordinal, text in enumerate(stored.texts)
    }


def held_terms(layout):
    """The terms of all live passages, read out of the postings."""
    found = {}
    for shard in layout.shards:
        view = shard.view
        tail = view.tail.postings.first(view.tail_live.count).sorted()
        for postings, live, directory in (
            (view.main.postings, view.main_live, view.main.directory),
            (tail, view.tail_live, view.tail.directory),
        ):
            names = list(
                zip(
                    directory.ids_at(np.arange(live.count)),
                    directory.records["ordinal"][: live.count].tolist(),
                    strict=True,
                )
            )
            alive = live.mask()
            for position, name in enumerate(names):
                if alive[position]:
                    found[name] = Counter()
            for at, term in enumerate(postings.terms.tolist()):
                here = slice(postings.offsets[at], postings.offsets[at + 1])
                for position, count in zip(
                    postings.positions[here].tolist(),
                    postings.frequencies[here].tolist(),
                    strict=True,
                ):
                    if alive[position]:
                        found[names[position]][term] += count
            for position in np.flatnonzero(alive).tolist():
                assert postings.lengths[position] == found[names[position]].total()
    return found


def find(layout, question, top_k, statistics=None):
    """Hits with both scores, as a shard server finds them."""
    targets = [Target(number, held.shard.view) for number, held in layout.held.shards.items()]
    queries = Corpus.vectors(layout.asks, 1)
    ranking, _ = search(targets, layout.codebook, queries, top_k, shard_count=len(targets))
    query = LexicalQuery(text=question, statistics=statistics)
    (words,) = words_of([query], ANALYZER).read([0], targets)
    leg = LexicalLeg(targets, layout.codebook)
    wide = leg.widened(ranking, queries, [words], [top_k])
    assert not leg.failures
    count = int((wide.positions[0] >= 0).sum())
    assert len(wide.lexical[0]) == count <= 2 * top_k
    return [
        (row_id, pytest.approx(float(dense), abs=2e-6), float(lexical))
        for row_id, dense, lexical in zip(
            wide.row_ids[0, :count].tolist(), wide.scores[0, :count], wide.lexical[0], strict=True
        )
    ]


@pytest.fixture
def corpus(tmp_path):
    corpus = Corpus(tmp_path, dimension=8, seed=3)
    corpus.fill(60)
    return corpus


def changed(corpus):
    """Replace, delete and add."""
    names = list(corpus.present)
    corpus.write({name: corpus.document(name, 2) for name in names[::5]}, tuple(names[1::4]))
    corpus.fill(12, "late")


@pytest.mark.parametrize("shard_count", [1, 3])
def test_terms_are_those_of_the_table_through_writes_and_folds(corpus, shard_count):
    layout = Layout(corpus, shard_count)
    assert held_terms(layout) == expected_terms(corpus)
    changed(corpus)
    layout.follow()
    assert held_terms(layout) == expected_terms(corpus)
    for shard in layout.shards:
        shard.fold()
        assert shard.view.tail_live.count == 0
    assert held_terms(layout) == expected_terms(corpus)
    changed(corpus)
    layout.follow()
    assert held_terms(layout) == expected_terms(corpus)


def test_terms_written_while_a_fold_runs_are_kept(corpus):
    layout = Layout(corpus, 1)
    changed(corpus)
    layout.follow()
    (shard,) = layout.shards

    def write_meanwhile(main):
        changed(corpus)
        layout.follow()
        return main

    shard.fold(write_meanwhile)
    assert shard.view.tail_live.count > 0
    assert held_terms(layout) == expected_terms(corpus)


def test_a_move_takes_the_terms_along(corpus):
    before = Layout(corpus, 3)
    changed(corpus)
    before.follow()
    sources = [
        Source(slot_range(number, 3), held.shard.view.main, held.shard.view)
        for number, held in before.held.shards.items()
    ]
    after = Layout(corpus, 2)
    for number, held in after.held.shards.items():
        pieces, missing = cover(slot_range(number, 2), sources)
        assert not missing
        held.shard = assembled(pieces, corpus.dimension, 40)
    assert held_terms(after) == expected_terms(corpus)


def test_one_without_terms_makes_a_move_without(corpus):
    main = build_shards(PassageTable.open(corpus.uri), None, [0], 1)[0]
    bare = type(main)(main.segment, main.directory, main.cursor)
    sources = [Source((0, 512), main), Source((512, 1024), bare)]
    pieces = [Piece(source.slots, source) for source in sources]
    assert assembled(pieces, corpus.dimension, 40).view.main.postings is None


def test_stored_terms_are_read_back(corpus, tmp_path: Path):
    layout = Layout(corpus, 1)
    (shard,) = layout.shards
    folder = SnapshotFolder(tmp_path / "stored", UID, 0, 1)
    folder.save(0, shard.view.main)
    for mapped in (True, False):
        main = folder.load(0, None, corpus.dimension, mapped=mapped)
        layout.held.shards[0].shard = Shard(main, corpus.dimension, 40)
        assert held_terms(layout) == expected_terms(corpus)


def test_divisions_and_kinds_find_the_same(corpus, tmp_path: Path):
    corpus.fill(300, "many")
    train_codebook(corpus.uri, tmp_path / "codebook", recall_target=0.9, threads=1)
    codebook = load_codebook(tmp_path / "codebook", corpus.dimension)
    changed(corpus)
    layouts = [Layout(corpus, n, kind) for kind in (None, codebook) for n in (1, 2, 4)]
    changed(corpus)
    for layout in layouts:
        layout.follow()
    layouts[2].shards[1].fold()
    for question in QUESTIONS:
        for at in (0, 3):
            answers = []
            for layout in layouts[at : at + 3]:
                layout.asks = Corpus(tmp_path / f"{id(layout)}-{question[:3]}", dimension=8, seed=9)
                answers.append(find(layout, question, 12))
            assert answers[0] == answers[1] == answers[2]


def test_counts_of_parts_add_up_to_those_of_all(corpus):
    changed(corpus)
    layout = Layout(corpus, 3)
    targets = [Target(number, held.shard.view) for number, held in layout.held.shards.items()]
    terms, _ = count_terms(ANALYZER, "title of doc-3 doc-4 part")
    expected = expected_terms(corpus)
    counted = statistics_of(targets, terms)
    assert counted.passage_count == len(expected)
    assert counted.total_length == sum(each.total() for each in expected.values())
    assert counted.frequencies.tolist() == [
        sum(term in each for each in expected.values()) for term in terms.tolist()
    ]
    parts = [statistics_of([target], terms) for target in targets]
    total = parts[0] + parts[1] + parts[2]
    assert total.frequencies.tolist() == counted.frequencies.tolist()


def test_counts_of_other_terms_are_refused(corpus):
    layout = Layout(corpus, 1)
    targets = [Target(0, layout.shards[0].view)]
    terms, _ = count_terms(ANALYZER, "title")
    wrong = LexicalQuery(
        text="another title", statistics=write_statistics(statistics_of(targets, terms), terms)
    )
    with pytest.raises(InvalidFieldError, match="not of the text's terms"):
        words_of([wrong], ANALYZER).read([0], targets)


def test_a_table_of_an_earlier_release_has_no_words(tmp_path: Path):
    import lance

    corpus = Corpus(tmp_path, dimension=8)
    layout = schema.table_schema(8)
    fields = [field for field in layout if field.name != schema.TERMS]
    metadata = {schema.SCHEMA_VERSION_KEY: layout.metadata[schema.SCHEMA_VERSION_KEY]}
    old = layout.empty_table().select([field.name for field in fields])
    uri = str(tmp_path / "old.lance")
    lance.write_dataset(
        old.replace_schema_metadata(metadata), uri, enable_stable_row_ids=True, mode="create"
    )
    corpus.uri, corpus.table = uri, PassageTable.open(uri)
    assert corpus.table.analyzer == ""
    corpus.fill(20)
    held = Layout(corpus, 2)
    corpus.fill(5, "late")
    held.follow()
    assert all(shard.view.main.postings is None for shard in held.shards)
    for shard in held.shards:
        shard.fold()
    assert sum(shard.view.passage_count for shard in held.shards) == corpus.passage_count
    assert words_of([LexicalQuery(text="title")], analyzer_of(corpus.table.analyzer)) is None
