"""Does long work in the background rest as much as it works?"""

from __future__ import annotations

import os
import threading

from shoal.shard.config import ShardSettings
from shoal.shard.holdings import Holdings
from shoal.shard.pace import Pace


def test_a_rest_is_as_long_as_the_work_before_it_up_to_a_bound():
    now_s, rests = [100.0], []

    def sleep(seconds: float) -> None:
        rests.append(round(seconds, 6))
        now_s[0] += seconds

    pace = Pace(lambda: now_s[0], sleep)
    for worked_s in (0.004, 0.0, 0.030, 5.0):
        now_s[0] += worked_s
        pace.rest()
    assert rests == [0.004, 0.0, 0.030, 0.05]


def test_no_thread_of_the_background_holds_the_interpreter_at_a_low_priority():
    holdings = Holdings(ShardSettings(), "", lambda: None, lambda: 0)
    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    try:
        for pool in (holdings._background, holdings._patient, holdings._checking):
            assert pool.submit(priority).result() == mine
    finally:
        holdings.close()
