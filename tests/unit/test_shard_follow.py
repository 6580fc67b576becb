"""Does a follower go on when the version that it reads is taken away?"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from shoal.shard.config import ShardSettings
from shoal.shard.follow import IndexFollower
from shoal.shard.held import IndexPlan, LayoutId, LayoutPlan
from shoal.shard.recall_watch import RecallWatch
from shoal.shard.upkeep import Upkeep
from shoal.table.errors import TableNotFoundError

from tests.harness.shard_corpus import UID, Corpus

# Whoever rests so long is not seen again in this test.
FOREVER_S = 3600.0
PATIENCE_S = 60.0


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """A table, its follower, and what is set after each of the follower's steps."""
    monkeypatch.setattr("shoal.shard.follow.RETRY_S", FOREVER_S)
    corpus = Corpus(tmp_path)
    corpus.fill(30)
    settings, stepped = ShardSettings(), threading.Event()
    plan = IndexPlan(
        corpus.uri, corpus.dimension, {LayoutId(UID, 0, 1): LayoutPlan("", frozenset({0}))}
    )
    with ThreadPoolExecutor(1) as pool:
        follower = IndexFollower(
            plan,
            upkeep=Upkeep(settings),
            recall_watch=RecallWatch(settings),
            background=pool,
            patient=pool,
            checking=pool,
            interval_s=0.01,
            on_progress=stepped.set,
            now_us=lambda: time.time_ns() // 1000,
        )
        try:
            yield corpus, follower, stepped
        finally:
            follower.close()


def await_version(follower, stepped, version):
    """Wait until the shard has applied a version of the table; False if it never does."""
    deadline_s = time.monotonic() + PATIENCE_S
    (layout,) = follower.layouts.values()
    while time.monotonic() < deadline_s:
        stepped.clear()
        shard = layout.shards[0].shard
        if shard is not None and layout.shards[0].ready and shard.view.cursor.version >= version:
            return True
        if not stepped.wait(PATIENCE_S):
            break
    return False


def test_a_version_that_was_purged_while_it_was_read_is_no_reason_to_rest(followed, monkeypatch):
    corpus, follower, stepped = followed
    assert await_version(follower, stepped, corpus.table.version)
    changes, losses = follower.table.changes, [0]

    def lost(*arguments, **named):
        if losses[0] == 3:
            return changes(*arguments, **named)
        losses[0] += 1
        raise TableNotFoundError(corpus.uri)

    monkeypatch.setattr(follower.table, "changes", lost)
    version = corpus.write({"new": corpus.document("new")})
    assert await_version(follower, stepped, version)
    assert losses == [3]
