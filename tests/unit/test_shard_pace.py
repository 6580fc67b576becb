"""Does long work in the background rest as much as it works?"""

from __future__ import annotations

import os
import threading
import time

import pytest
from shoal.shard.config import ShardSettings
from shoal.shard.holdings import Holdings
from shoal.shard.pace import Pace, pause, turns


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


def test_threads_of_the_background_work_in_turns():
    working, most, done = [0], [0], []

    def work(name: str) -> None:
        with turns(Pace(sleep=lambda _: None)):
            for _ in range(200):
                working[0] += 1
                most[0] = max(most[0], working[0])
                time.sleep(0)  # Lets others run Python, if they are not waiting for a turn.
                working[0] -= 1
                pause()
        done.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(done) == ["a", "b", "c"]
    assert most == [1]


def test_who_works_in_turns_rests_at_a_pause_and_others_do_not():
    rests: list[float] = []
    now_s = [0.0]
    pause()
    with turns(Pace(lambda: now_s[0], rests.append)):
        now_s[0] += 0.02
        pause()
        now_s[0] += 0.01
        pause()
    pause()
    assert [round(each, 6) for each in rests] == [0.02, 0.01]


def test_a_turn_ends_with_an_error():
    with pytest.raises(ValueError, match="broken"), turns():
        raise ValueError("broken")
    with turns():
        pass


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
