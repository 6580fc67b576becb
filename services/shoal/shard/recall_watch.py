"""When are live queries checked, and what follows from a check?

One check at a time on a server, of one layout, in a thread that rests as much as it works. After
each it rests for so long that checks take no more than their share of a core.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Final

from shoal.shard.allocator import give_back
from shoal.shard.config import ShardSettings
from shoal.shard.exact_check import Sample, compare, served, true_neighbours
from shoal.shard.held import HeldLayout
from shoal.shard.kernel import faiss
from shoal.shard.live_recall import Estimate, LiveRecall, Outcome, QueryWindow
from shoal.shard.pace import pause, turns
from shoal.shard.search import Target
from shoal.shard.tuning import MIN_QUERIES, NO_EFFORT, alert_of, tune
from shoal.table.table import PassageTable

_log = logging.getLogger(__name__)

# After a check that failed.
_RETRY_S: Final = 60.0


class RecallWatch:
    """Checks the layouts of a server."""

    def __init__(
        self,
        settings: ShardSettings,
        clock: Callable[[], float] = time.monotonic,
        random: Random | None = None,
    ) -> None:
        """clock: monotonic, in seconds. random: chooses queries."""
        self._settings, self._clock = settings, clock
        self._random = random or Random()
        self._rests_until_s = float("-inf")

    def begin(self, layout: HeldLayout, others: Sequence[HeldLayout]) -> LiveRecall | None:
        """Begin to watch a layout, with what others of its version have learnt.

        None if it is searched exactly.
        """
        if layout.exact:
            return None
        for each in others:
            if each.live is not None and each.id.index_version == layout.id.index_version:
                return each.live.successor()
        settings = self._settings
        return LiveRecall(
            QueryWindow(settings.recall_window, settings.recall_sample_share, self._random)
        )

    def due(self, layout: HeldLayout) -> bool:
        """True if a layout should be checked now: something new is in the window. Cheap."""
        live = layout.live
        if live is None or live.busy or layout.codebook is None:
            return False
        window = live.window
        if len(window) < MIN_QUERIES or window.added_count == live.checked_count:
            return False
        return self._clock() >= max(live.next_s, self._rests_until_s)

    def check(self, layout: HeldLayout, table: PassageTable, wanted: Callable[[], bool]) -> None:
        """Check a layout that is busy for it, and free it. Blocks.

        wanted: False once it need not go on.
        """
        live = layout.live
        assert live is not None
        started_s = self._clock()
        if started_s < self._rests_until_s:  # Another layout was checked while it waited.
            live.busy = False
            return
        pause_s = self._settings.recall_interval_s
        try:
            faiss.omp_set_num_threads(1)
            with turns():
                self._check(layout, live, table, wanted)
        except Exception:  # noqa: BLE001  # searches go on as they are
            _log.exception("cannot check the recall of %s", layout.id)
            pause_s = max(pause_s, _RETRY_S)
        finally:
            took_s = self._clock() - started_s
            self._rests_until_s = started_s + took_s / self._settings.recall_core_share
            live.next_s = started_s + pause_s
            live.busy = False
            give_back()

    def _check(
        self,
        layout: HeldLayout,
        live: LiveRecall,
        table: PassageTable,
        wanted: Callable[[], bool],
    ) -> None:
        codebook = layout.codebook
        targets = [
            Target(number, held.shard.view)
            for number, held in layout.shards.items()
            if held.ready and held.shard is not None
        ]
        if codebook is None or not targets:
            return
        added_count = live.window.added_count
        sample = Sample(live.window.queries(), targets, layout.id.shard_count)

        def goes_on() -> bool:
            pause()
            return wanted()

        truth = true_neighbours(table, sample, goes_on)
        if truth is None:
            return
        outcomes: dict[float, Outcome] = {}

        def measure(effort: float) -> Estimate:
            if effort not in outcomes:
                outcomes[effort] = compare(sample, truth, served(sample, codebook, effort))
            return outcomes[effort].estimate() or Estimate(1.0, 0.0, 0)

        target = codebook.manifest.recall_target
        before = live.effort
        verdict = tune(before, target, self._settings.max_search_effort, measure)
        if verdict.effort == NO_EFFORT:
            live.since = ""
        elif not live.since:
            live.since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        live.effort = verdict.effort
        numbers = [each.shard for each in targets]
        live.shards = outcomes[verdict.effort].by_shard(numbers)
        live.alert = alert_of(verdict, target, live.since)
        live.checked_count = added_count
        level = logging.INFO if verdict.effort == before else logging.WARNING
        _log.log(
            level,
            "%s: recall of %d live queries is %.3f ± %.3f at effort %g (before: %g)",
            layout.id,
            verdict.reached.query_count,
            verdict.reached.mean,
            verdict.reached.half_width,
            verdict.effort,
            before,
        )
