"""Is what live queries should have found the truth, and is it compared fairly?"""

import numpy as np
import pytest
from shoal.shard.codebook import train_codebook
from shoal.shard.codes import load_codebook
from shoal.shard.config import ShardSettings
from shoal.shard.exact_check import Sample, compare, served, true_neighbours
from shoal.shard.live_recall import SampledQuery
from shoal.shard.recall_watch import RecallWatch
from shoal.shard.search import Target
from shoal.table.scanning import SPARING

from tests.harness.shard_corpus import Corpus, Stored
from tests.unit.test_shard_state import Layout

TOP_K = 10


def forever():
    return True


def sample_of(layout, queries, top_k=TOP_K):
    targets = [Target(number, each.shard.view) for number, each in layout.held.shards.items()]
    asked = [SampledQuery(query, top_k) for query in queries]
    return Sample(asked, targets, layout.held.id.shard_count)


@pytest.fixture
def corpus(tmp_path):
    corpus = Corpus(tmp_path, dimension=32)
    corpus.fill(600)
    return corpus


@pytest.fixture
def trained(corpus, tmp_path):
    train_codebook(corpus.uri, tmp_path / "codebook", threads=1)
    return Layout(corpus, 3, load_codebook(tmp_path / "codebook", corpus.dimension))


def test_the_truth_is_what_is_live_in_main_segment_and_tail(corpus, trained):
    changed = {f"doc-{at}": corpus.document("again", 2) for at in range(0, 90, 3)}
    corpus.write(changed, tuple(f"doc-{at}" for at in range(1, 90, 3)))
    trained.follow()
    # What comes later is not in the views yet, and must not be missed by them.
    queries = corpus.vectors(40)
    expected = [corpus.best(query, TOP_K) for query in queries]
    corpus.write({"later": Stored("", ["later"], {}, queries[:1])})
    corpus.table.refresh()
    sample = sample_of(trained, queries)
    truth = true_neighbours(corpus.table, sample, forever)
    np.testing.assert_allclose(
        truth.scores[:, :TOP_K], [[each[2] for each in row] for row in expected], atol=1e-5
    )
    outcome = compare(sample, truth, [row[:TOP_K] for row in truth.row_ids])
    assert (outcome.expected.sum(axis=1) == TOP_K).all()
    assert outcome.estimate().mean == 1.0
    assert (outcome.expected > 0).any(axis=0).all()
    # Half of what is true, and what is found besides, is half a recall.
    half = [row[: TOP_K // 2] for row in truth.row_ids]
    assert compare(sample, truth, half).estimate().mean == 0.5
    nothing = [np.empty(0, np.uint64)] * len(queries)
    assert compare(sample, truth, nothing).estimate().mean == 0.0


def test_it_is_what_a_live_search_finds_that_is_counted(corpus, trained):
    queries = corpus.vectors(60)
    sample = sample_of(trained, queries)
    truth = true_neighbours(corpus.table, sample, forever)
    hits = 0
    for query, found in zip(queries, trained.find(queries, TOP_K), strict=True):
        hits += len({each[:2] for each in found} & {each[:2] for each in corpus.best(query, TOP_K)})
    outcome = compare(sample, truth, served(sample, trained.codebook, 1.0))
    assert outcome.found.sum() == hits
    harder = compare(sample, truth, served(sample, trained.codebook, 4.0))
    assert harder.estimate().mean >= outcome.estimate().mean


def test_which_of_equal_passages_is_found_does_not_matter(corpus, trained):
    (row,) = corpus.vectors(1)
    copies = {f"copy-{at}": Stored("", ["copy"], {}, row[None]) for at in range(15)}
    corpus.write(copies)
    trained.follow()
    corpus.table.refresh()
    sample = sample_of(trained, [row])
    truth = true_neighbours(corpus.table, sample, forever)
    copied = truth.row_ids[0, :15]
    assert np.isclose(truth.scores[0, :15], 1.0).all()
    for chosen in (copied[:10], copied[5:], np.random.default_rng(1).permutation(copied)[:10]):
        assert compare(sample, truth, [chosen]).estimate().mean == 1.0
    assert compare(sample, truth, [copied[7:]]).estimate().mean == 0.8
    # Others do not make up for those that are missing.
    others = np.concatenate([copied[:6], truth.row_ids[0, 20:24]])
    assert compare(sample, truth, [others]).estimate().mean == 0.6


def test_a_check_reads_little_at_once(tmp_path):
    corpus = Corpus(tmp_path, dimension=4)
    vectors = corpus.vectors(3000)
    corpus.write(
        {f"doc-{at}": Stored("", ["text"], {}, row[None]) for at, row in enumerate(vectors)}
    )
    layout = Layout(corpus, 1, None)
    asked = []
    truth = true_neighbours(
        corpus.table, sample_of(layout, vectors[:2]), lambda: asked.append(0) or True
    )
    assert np.isclose(truth.scores[:, 0], 1.0).all()
    # Once for each batch.
    assert len(asked) >= 3000 / SPARING.batch_rows > 2


def test_a_check_ends_early_when_it_is_not_wanted_any_more(corpus, trained):
    sample = sample_of(trained, corpus.vectors(2))
    assert true_neighbours(corpus.table, sample, lambda: False) is None


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def test_checks_take_their_share_of_a_core_and_no_more(corpus, trained):
    clock, held = Clock(), trained.held
    watch = RecallWatch(ShardSettings(recall_core_share=0.02, recall_interval_s=60), clock)
    held.live = watch.begin(held, [])
    held.live.window.offer(corpus.vectors(40), [TOP_K] * 40)
    assert not watch.due(held)  # Too few to learn from.
    held.live.window.offer(corpus.vectors(40), [TOP_K] * 40)
    assert watch.due(held)
    reads = 0

    def slow():
        nonlocal reads
        reads += 1
        clock.now_s += 3.0 if reads == 1 else 0.0  # 3 s in all.
        return True

    watch.check(held, corpus.table, slow)
    assert clock.now_s == 3.0
    assert held.live.shards.keys() == {0, 1, 2}
    held.live.window.offer(corpus.vectors(1), [TOP_K])
    clock.now_s = 149.0
    assert not watch.due(held)  # 3 s of 150 are 2%.
    watch.check(held, corpus.table, slow)  # It had waited while another was checked.
    assert clock.now_s == 149.0
    clock.now_s = 151.0
    assert watch.due(held)


def test_nothing_is_checked_twice_and_a_failure_leaves_all_as_it_is(corpus, trained, caplog):
    clock, held = Clock(), trained.held
    watch = RecallWatch(ShardSettings(recall_core_share=1.0, recall_interval_s=0), clock)
    held.live = watch.begin(held, [])
    held.live.window.offer(corpus.vectors(80), [TOP_K] * 80)
    watch.check(held, corpus.table, forever)
    assert not watch.due(held)
    known = held.live.shards
    held.live.window.offer(corpus.vectors(1), [TOP_K])
    assert watch.due(held)

    def fails():
        raise OSError("the disk has gone")

    watch.check(held, corpus.table, fails)
    assert "cannot check the recall" in caplog.text
    assert (held.live.shards, held.live.effort, held.live.busy) == (known, 1.0, False)
    assert not watch.due(held)
    clock.now_s = 61.0
    assert watch.due(held)


def test_exact_layouts_are_not_watched_and_versions_learn_by_themselves(corpus, trained):
    watch = RecallWatch(ShardSettings())
    exact, held = Layout(corpus, 2).held, trained.held
    assert watch.begin(exact, [held]) is None
    held.live = watch.begin(held, [exact])
    held.live.effort, held.live.since = 2.0, "yesterday"
    again = watch.begin(trained.held, [exact, held])
    assert (again.effort, again.since, again.window) == (2.0, "yesterday", held.live.window)
    assert again.shards == {}
