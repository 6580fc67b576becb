"""Do filtered searches find the best of what matches, through folds, moves and snapshots?"""

from dataclasses import replace

import numpy as np
import pytest
from shoal.filters.fields import Field, Kind
from shoal.filters.parsing import parse
from shoal.shard import matching_lists, selective
from shoal.shard.changes import catch_up
from shoal.shard.codebook import train_codebook
from shoal.shard.codes import load_codebook
from shoal.shard.field_columns import Condition
from shoal.shard.kind_names import DEFAULT_KIND, KIND_NAMES
from shoal.shard.kinds import kind_of
from shoal.shard.load import build_shards
from shoal.shard.move import Source, assembled, cover
from shoal.shard.search import Target, search
from shoal.shard.shard import Shard
from shoal.shard.snapshot import SnapshotFolder
from shoal.shard.survivors import Part
from shoal.shard.tombstones import Live
from shoal.table.slots import slot_range
from shoal.table.table import PassageTable

from tests.harness.shard_corpus import UID, Corpus, Stored

FIELDS = (
    Field("share", Kind.FLOAT),
    Field("side", Kind.STRING),
    Field("tags", Kind.STRINGS),
    Field("topic", Kind.INTEGER),
)
DIMENSION = 32
RECALL = 0.95


def condition(text):
    return Condition(text, parse(text, FIELDS))


def stored(corpus, name, passages=1):
    document = corpus.document(name, passages)
    side = "left" if document.vectors[0, 0] < 0 else "right"
    tags = [f"t{number}" for number in corpus.random.integers(0, 5, 2).tolist()]
    metadata = {"share": float(corpus.random.random()), "side": side, "tags": tags}
    metadata["topic"] = int((corpus._centres @ document.vectors[0]).argmax())
    if corpus.random.random() < 0.1:
        metadata = {"side": None}
    return Stored(document.title, document.texts, metadata, document.vectors)


def filled(folder, count, seed=3):
    corpus = Corpus(folder, dimension=DIMENSION, seed=seed, fields=FIELDS)
    corpus.write({f"d{at}": stored(corpus, f"d{at}", 1 + at % 2) for at in range(count)})
    return corpus


def matches(document, text):
    metadata = document.metadata
    share, side, tags = (metadata.get(name) for name in ("share", "side", "tags"))
    topic = metadata.get("topic")
    return {
        "side == 'left'": side == "left",
        "side != 'left'": side is not None and side != "left",
        "!(side == 'left')": side != "left",
        "'t1' in tags && share < 0.5": tags is not None and "t1" in tags and share < 0.5,
        "share < 0.01": share is not None and share < 0.01,
        "!has(share)": share is None,
        "share > 2.0": False,
        "topic < 15": topic is not None and topic < 15,
        "topic < 30": topic is not None and topic < 30,
        "share < 0.1": share is not None and share < 0.1,
        "share < 0.5": share is not None and share < 0.5,
    }[text]


TEXTS = (
    "side == 'left'",
    "side != 'left'",
    "!(side == 'left')",
    "'t1' in tags && share < 0.5",
    "share < 0.01",
    "!has(share)",
    "share > 2.0",
)


def best(corpus, query, text, count=10):
    """What an exact search among what matches should find."""
    held = [
        ((name, ordinal), float(vector @ query))
        for name, document in corpus.present.items()
        if matches(document, text)
        for ordinal, vector in enumerate(document.vectors)
    ]
    return sorted(held, key=lambda each: -each[1])[:count], len(held)


def found(shards, codebook, queries, text, top_k=10, shard_count=None):
    targets = [Target(at, shard.view).matching(condition(text)) for at, shard in enumerate(shards)]
    count = shard_count or len(targets)
    ranking, failures = search(targets, codebook, queries, top_k, shard_count=count)
    assert not failures
    hits = []
    for row in range(len(queries)):
        hits.append([])
        for part, position, score in zip(
            ranking.parts[row].tolist(),
            ranking.positions[row].tolist(),
            ranking.scores[row].tolist(),
            strict=True,
        ):
            if position >= 0:
                directory = targets[part // 2].directory(part % 2 == 1)
                (name,) = directory.ids_at(np.array([position]))
                ordinal = int(directory.records["ordinal"][position])
                hits[-1].append(((name, ordinal), score))
    return hits, sum(target.view.passage_count for target in targets)


def check(corpus, shards, codebook=None, texts=TEXTS, recall=1.0, top_k=10):
    queries = corpus.vectors(20)
    for text in texts:
        hits, count = found(shards, codebook, queries, text, top_k)
        reached = wanted = 0
        for query, mine in zip(queries, hits, strict=True):
            expected, matching = best(corpus, query, text, top_k)
            assert count == matching
            assert all(matches(corpus.present[name], text) for (name, _), _ in mine)
            assert len(mine) == len(expected)
            if codebook is None:
                assert [key for key, _ in mine] == [key for key, _ in expected]
            reached += len({key for key, _ in mine} & {key for key, _ in expected})
            wanted += len(expected)
        assert reached >= recall * wanted, (text, reached, wanted)


def followed(shard, corpus, number, shard_count):
    """Apply what came since, as a load does."""
    catch_up(PassageTable.open(corpus.uri), shard, number, shard_count)


@pytest.fixture(params=["exact", "codes"])
def indexed(request, tmp_path):
    corpus = filled(tmp_path, 600)
    if request.param == "exact":
        return corpus, None
    train_codebook(corpus.uri, tmp_path / "codebook", threads=1)
    return corpus, load_codebook(tmp_path / "codebook")


def test_columns_come_along_through_tail_fold_move_and_snapshot(indexed, tmp_path):
    corpus, codebook = indexed
    recall = 1.0 if codebook is None else RECALL
    table = PassageTable.open(corpus.uri)
    mains = build_shards(table, codebook, range(2), 2)
    shards = [Shard(main, DIMENSION, 10_000) for main in mains.values()]
    check(corpus, shards, codebook, recall=recall)
    for step in range(4):
        names = [f"d{number}" for number in corpus.random.integers(0, 600, 20).tolist()]
        news = [f"n{step}-{at}" for at in range(30)]
        corpus.write(
            {name: stored(corpus, name) for name in dict.fromkeys([*names, *news])},
            tuple(f"d{number}" for number in range(30 * step, 30 * step + 5)),
        )
        for number, shard in enumerate(shards):
            followed(shard, corpus, number, 2)
        check(corpus, shards, codebook, recall=recall)
        if step == 1:
            for shard in shards:
                shard.fold()
                assert shard.view.tail_live.count == 0
            check(corpus, shards, codebook, recall=recall)
    for mapped in (True, False):
        stored_at = SnapshotFolder(tmp_path / "stored", UID, 1, 2)
        again = []
        for number, shard in enumerate(shards):
            stored_at.save(number, shard.view.main)
            main = stored_at.load(number, codebook, DIMENSION, mapped=mapped)
            again.append(Shard(main, DIMENSION, 10_000))
            followed(again[-1], corpus, number, 2)
        check(corpus, again, codebook, recall=recall)
    sources = [
        Source(slot_range(number, 2), shard.view.main, shard.view)
        for number, shard in enumerate(shards)
    ]
    moved = []
    for number in range(3):
        pieces, missing = cover(slot_range(number, 3), sources)
        assert not missing
        moved.append(assembled(pieces, DIMENSION, 10_000))
    check(corpus, moved, codebook, recall=recall)
    for shard in moved:
        shard.fold()
    check(corpus, moved, codebook, recall=recall)


def test_an_index_without_fields_keeps_nothing_of_them(tmp_path):
    corpus = Corpus(tmp_path)
    corpus.fill(50)
    (main,) = build_shards(PassageTable.open(corpus.uri), None, [0], 1).values()
    assert main.directory.fields is None
    shard = Shard(main, corpus.dimension, 10)
    corpus.fill(20, "more")
    followed(shard, corpus, 0, 1)
    assert shard.view.tail.directory.fields.memory_bytes == 0
    assert shard.fold().directory.fields is None


def test_a_shard_that_is_empty_matches_nothing(tmp_path):
    corpus = Corpus(tmp_path, dimension=DIMENSION, fields=FIELDS)
    mains = build_shards(PassageTable.open(corpus.uri), None, [0], 1)
    shard = Shard(mains[0], DIMENSION, 10)
    hits, count = found([shard], None, corpus.vectors(1), "share < 0.5")
    assert hits == [[]]
    assert count == 0
    corpus.write({"a": Stored("", ["x"], {"share": 0.1}, corpus.vectors(1))})
    followed(shard, corpus, 0, 1)
    assert found([shard], None, corpus.vectors(1), "share < 0.5")[1] == 1
    shard.fold()
    assert found([shard], None, corpus.vectors(1), "share < 0.5")[1] == 1


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Enough to be searched by lists, in three shards."""
    folder = tmp_path_factory.mktemp("large")
    corpus = filled(folder, 8_000, seed=5)
    train_codebook(corpus.uri, folder / "codebook", threads=2)
    codebook = load_codebook(folder / "codebook")
    mains = build_shards(PassageTable.open(corpus.uri), codebook, range(3), 3)
    return corpus, codebook, [Shard(main, DIMENSION, 1 << 20) for main in mains.values()]


@pytest.mark.parametrize("narrow", [True, False, None])
def test_recall_does_not_depend_on_the_filter(large, monkeypatch, narrow):
    """Whichever way is taken: each is forced, then the cheaper one is chosen."""
    corpus, codebook, shards = large
    if narrow is not None:
        monkeypatch.setattr("shoal.shard.search.is_narrow", lambda *arguments: narrow)
    texts = ("share < 0.5", "share < 0.1", "share < 0.01", *TEXTS)
    check(corpus, shards, codebook, texts, recall=RECALL)


@pytest.fixture(scope="module", params=KIND_NAMES)
def of_kind(request, large, tmp_path_factory):
    """The same, of each kind."""
    corpus, *_ = large
    if request.param == DEFAULT_KIND:
        return large
    folder = tmp_path_factory.mktemp(request.param)
    train_codebook(corpus.uri, folder / "codebook", kind=request.param, threads=2)
    codebook = load_codebook(folder / "codebook")
    mains = build_shards(PassageTable.open(corpus.uri), codebook, range(3), 3)
    return corpus, codebook, [Shard(main, DIMENSION, 1 << 20) for main in mains.values()]


def test_recall_does_not_depend_on_the_filter_in_any_kind(of_kind, monkeypatch):
    corpus, codebook, shards = of_kind
    check(corpus, shards, codebook, recall=RECALL)
    monkeypatch.setattr("shoal.shard.search.is_narrow", lambda *arguments: False)
    check(corpus, shards, codebook, ("share < 0.5", "share < 0.1", "share < 0.01"), recall=RECALL)


@pytest.mark.parametrize("top_k", [10, 32, 100])
@pytest.mark.parametrize("narrow", [False, None])
def test_recall_holds_where_the_filter_goes_with_topics(of_kind, monkeypatch, narrow, top_k):
    """Queries of all topics: around most of them nothing matches for a long way."""
    corpus, codebook, shards = of_kind
    if narrow is not None:
        monkeypatch.setattr("shoal.shard.search.is_narrow", lambda *arguments: narrow)
    check(corpus, shards, codebook, ("topic < 15", "topic < 30"), recall=RECALL, top_k=top_k)


@pytest.mark.parametrize("text", ["side == 'left'", "side != 'left'"])
def test_recall_holds_where_queries_are_far_from_all_that_matches(large, monkeypatch, text):
    corpus, codebook, shards = large
    monkeypatch.setattr("shoal.shard.search.is_narrow", lambda *arguments: False)
    queries = corpus.vectors(200)
    far = queries[np.abs(queries[:, 0]) > 0.2]
    far = np.ascontiguousarray(far[(far[:, 0] < 0) != (text == "side == 'left'")])
    assert len(far) > 10
    hits, _ = found(shards, codebook, far, text)
    expected = [{key for key, _ in best(corpus, query, text)[0]} for query in far]
    reached = sum(
        len(wanted & {key for key, _ in mine}) for wanted, mine in zip(expected, hits, strict=True)
    )
    assert reached >= RECALL * 10 * len(far)


def test_narrow_filters_are_compared_and_broad_ones_looked_up_in_lists(large):
    _, codebook, shards = large
    manifest = codebook.manifest.model_copy(update={"list_count": 4096})
    kind = kind_of(codebook)
    narrow, broad = parts_of(shards[:1], "share < 0.001"), parts_of(shards[:1], "share < 0.5")
    assert selective.is_narrow(kind, manifest, 10, 1, narrow)
    assert not selective.is_narrow(kind, manifest, 10, 1, broad)


def parts_of(shards, text):
    targets = [Target(at, each.view).matching(condition(text)) for at, each in enumerate(shards)]
    return [
        Part(
            each.view.main.segment,
            each.view.main.directory.fields,
            each.matches,
            each.view.main_live,
        )
        for each in targets
    ]


def test_what_is_priced_is_what_is_looked_into(of_kind):
    """All lists that are going to be looked into count, and candidates where any are refined."""
    corpus, codebook, shards = of_kind
    kind, manifest = kind_of(codebook), codebook.manifest
    parts = parts_of(shards, "share < 0.5")
    # So few that a few times as many are not all.
    points = tuple(
        each.model_copy(update={"nprobe": 1, "ef_search": each.top_k})
        for each in manifest.operating_points
    )
    manifest = manifest.model_copy(update={"operating_points": points})
    probe, count = kind.narrowed_probe(codebook, manifest, corpus.vectors(40), 10, 1.0, parts)
    if not kind.refines:
        assert count == 10
    if not kind.has_lists:
        assert kind.narrowed_ns(manifest, 10, parts) > 3 * probe.ef_search * 1_000
        return
    used = (probe.lists >= 0).sum(axis=1)
    assert matching_lists.expected_lists(manifest, 10, parts) >= np.median(used) > 1


def test_a_broad_walk_is_dearer_than_many_narrow_ones(of_kind):
    _, codebook, shards = of_kind
    kind = kind_of(codebook)
    if kind.has_lists:
        return
    points = tuple(
        each.model_copy(update={"ef_search": 100}) for each in codebook.manifest.operating_points
    )
    manifest = codebook.manifest.model_copy(update={"operating_points": points})
    all_, tenth = parts_of(shards, "has(share)"), parts_of(shards, "share < 0.1")
    fewer = sum(each.live.live_count for each in all_) / sum(each.live.live_count for each in tenth)
    narrow, broad = (kind.narrowed_ns(manifest, 10, parts) for parts in (all_, tenth))
    assert broad > 1.1 * fewer * narrow
    assert kind.narrowed_ns(manifest, 10, parts_of(shards, "share < 0.001")) == np.inf


def test_sizes_of_lists_are_counted_once(large):
    _, _, shards = large
    (one,), (other,) = parts_of(shards[:1], "share < 0.5"), parts_of(shards[:1], "share < 0.1")
    assert matching_lists.list_sizes(one) is matching_lists.list_sizes(other)


def test_lists_without_a_match_are_not_looked_into(large):
    corpus, codebook, shards = large
    parts = parts_of(shards, "share < 0.01")
    counts = sum(matching_lists.list_counts(part) for part in parts)
    assert counts.sum() == sum(part.matches.count for part in parts)
    assert sum(matching_lists.list_sizes(part).sum() for part in parts) == corpus.passage_count
    assignment, _ = kind_of(codebook).narrowed_probe(
        codebook, codebook.manifest, corpus.vectors(5), 10, 1.0, parts
    )
    chosen = assignment.lists
    assert (counts[chosen[chosen >= 0]] > 0).all()
    assert (np.diff((chosen < 0).astype(int), axis=1) >= 0).all()


@pytest.mark.parametrize("part", ["tail", "codes"])
def test_a_shard_that_fails_does_not_keep_the_others_from_being_whole(large, monkeypatch, part):
    """Where codes find too little, what matches is compared, in the shards that do not fail."""
    corpus, codebook, shards = large
    failing = shards[0].view.main.segment

    def candidates(segment, queries, probe, count, live):
        if part == "codes" and segment is failing:
            raise OSError("cannot be read")
        nothing = np.full((len(queries), count), -1, dtype=np.int64)
        return np.full(nothing.shape, -np.inf, dtype=np.float32), nothing

    monkeypatch.setattr("shoal.shard.search.is_narrow", lambda *arguments: False)
    monkeypatch.setattr(type(failing), "candidates", candidates)
    targets = [
        Target(at, each.view).matching(condition("share < 0.1")) for at, each in enumerate(shards)
    ]
    if part == "tail":
        # One that is not as long as it should be.
        view = replace(targets[0].view, tail_live=Live(1))
        targets[0] = replace(targets[0], view=view)
    ranking, failures = search(targets, codebook, corpus.vectors(5), 10, shard_count=3)
    assert list(failures) == [0]
    assert (ranking.positions >= 0).all()
    assert (ranking.parts // 2 > 0).all()


def test_a_shard_whose_columns_are_missing_is_left_out_alone(large):
    from shoal.shard.answer import _matching

    _, _, shards = large
    targets = [Target(at, shard.view) for at, shard in enumerate(shards)]
    wrong = Condition("x", parse("absent == 1", (Field("absent", Kind.INTEGER),)))
    narrowed, failures = _matching(targets, wrong)
    assert sorted(failures) == [0, 1, 2]
    assert all(each.view.passage_count == 0 for each in narrowed)
