"""Does a living index return what it should, whatever is done to it, and in whatever order?

A hypothesis state machine over the real services: broker, controller, Redis, and shard servers and
a writer in processes of their own, which are ended by SIGTERM and SIGKILL. It writes, deletes, lets
expire, purges, cleans, builds versions of all kinds, promotes, rolls back, drops, divides, restores
from a snapshot and restarts through the public client, with or without other writers and readers
beside it. After every step all that the client can see is compared with a dictionary and exact
search (tests/model/oracle.py), under filters too (conditions.py), and what the others saw with the
history of what was written (tests/harness/history.py).

    deleted never        what was deleted or replaced at a version is not returned at that version
    acknowledged always  what was acknowledged is read, counted, and found by its own vector
    filter always        what is found under a filter matches it; if few match, they are all found
    expired never        what has expired is in no answer, be it a cached one

The cluster outlives the examples; each has an index of its own. No run is timed like another, so
that the steps are drawn from the seed alone, and never from what an operation gave.

    SHOAL_MODEL_EXAMPLES=50 SHOAL_MODEL_STEPS=40 SHOAL_MODEL_SEED=7 pytest tests/model

runs longer, and other steps. A failure prints the steps as code, and the blob that hypothesis'
`@reproduce_failure` takes, for `machine` below; the history of its last step is then in the folder
of the test, a line of JSON for each operation. SHOAL_MODEL_SHRINK=1 has hypothesis look for fewer
steps, which takes many runs. README.md in this folder says what the machine has found, and what it
would find.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
import traceback
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from tests.harness.controlled import controlled
from tests.harness.processes import Processes
from tests.model.operations import OPERATIONS, Operation
from tests.model.oracle import DIMENSION
from tests.model.world import World

EXAMPLES: Final = int(os.environ.get("SHOAL_MODEL_EXAMPLES", "2"))
STEPS: Final = int(os.environ.get("SHOAL_MODEL_STEPS", "30"))
SEED: Final = int(os.environ.get("SHOAL_MODEL_SEED", "15"))
SHRINK: Final = bool(os.environ.get("SHOAL_MODEL_SHRINK"))


class Machine(RuleBasedStateMachine):
    """An index and its operations.

    One rule draws from all operations: of many rules, hypothesis leaves out some in each example,
    which suits more examples than there is time for.
    """

    def __init__(self, living: Living) -> None:
        super().__init__()
        self._living, self._world = living, living.world()
        self._seeds = itertools.count()

    @initialize()
    def begin(self) -> None:
        self._do(self._world.begin())
        self._do(self._world.check())

    @rule(operation=OPERATIONS, beside=st.booleans())
    def step(self, operation: Operation, beside: bool) -> None:
        """beside: others write and read meanwhile."""
        begin_s = time.monotonic()
        self._do(self._world.step(operation, next(self._seeds) if beside else None))
        print(f"{time.monotonic() - begin_s:6.2f} s  {operation}{' beside others' * beside}")

    def _do(self, work: Awaitable[Any]) -> None:
        self._living.run(work, self._world)

    def teardown(self) -> None:
        if self._living.is_sound:
            self._do(self._world.end())
            self._world.check_recall()


class Living:
    """The cluster, and the event loop that it lives on, which runs as long as a step does."""

    def __init__(self, runner: asyncio.Runner, home: Path) -> None:
        self._runner, self._home = runner, home
        self._stack = contextlib.AsyncExitStack()
        self._lives = itertools.count()
        self.is_sound = False

    async def _start(self) -> None:
        self._cluster, self._client = await self._stack.enter_async_context(
            controlled(
                self._home / str(next(self._lives)),
                platform=Processes(DIMENSION),
                scale={"shards": 2, "replicas": 2, "rerankers": 0},
                redis={"mode": "embedded"},
                # A busy machine is no reason to leave the cache alone here.
                broker={"probe_interval_s": 0.05, "redis_timeout_s": 2.0},
                shard={
                    "threads": 1,
                    "follow_interval_s": 0.05,
                    "fold_at_passages": 16,
                    "snapshot_interval_s": 0.2,
                },
                writer={
                    "tokenizer": None,
                    "passage_tokens": 16,
                    "clean_interval_s": 1.0,
                    "keep_versions_s": 5.0,
                    # Stored segments may be older than what the table remembers.
                    "keep_tombstones_s": 5.0,
                    "keep_index_versions": 1,
                },
            )
        )

    def world(self) -> World:
        """A new index's, in a new cluster if something went wrong in the last one."""
        if not self.is_sound:
            self.close()
            self._runner.run(self._start())
            self.is_sound = True
        return World(self._cluster, self._client)

    def run(self, work: Awaitable[Any], world: World) -> None:
        """Do a part of a step."""

        async def done() -> None:
            await work

        try:
            self._runner.run(done())
        except BaseException:
            self.is_sound = False
            path = self._home / f"history-{world.name}.jsonl"
            world.ledger.history.save(path)
            # Hypothesis shows the last of several failures: a run may fail in its own way.
            print(f"seed {SEED}, history in {path}:\n{traceback.format_exc()}")
            raise

    def close(self) -> None:
        """End the cluster."""
        self._runner.run(self._stack.aclose())


@pytest.fixture
def living(tmp_path: Path) -> Iterator[Living]:
    with asyncio.Runner() as runner:
        cluster = Living(runner, tmp_path)
        yield cluster
        cluster.close()


@pytest.mark.timeout(300 + 4 * EXAMPLES * STEPS)
def test_what_is_returned_is_what_is_there(living: Living) -> None:
    @seed(SEED)
    def machine() -> Machine:
        return Machine(living)

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            print_blob=True,
            phases=[Phase.generate, *([Phase.shrink] if SHRINK else [])],
            suppress_health_check=list(HealthCheck),
        ),
        # Else hypothesis tries what no steps at all do, which takes one example of few.
        _min_steps=0 if SHRINK else STEPS,
    )
