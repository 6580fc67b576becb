"""Do the background's threads stand behind the searches, whatever the process's own priority?"""

from __future__ import annotations

import os
import sys
import threading

import pytest
from shoal.shard.config import ShardSettings
from shoal.shard.holdings import Holdings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads")


def _priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def _of_background(found: dict[str, int], start_nice: int) -> None:
    """In a thread of that priority, which those that it starts inherit."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), start_nice)
    holdings = Holdings(ShardSettings(), "", lambda: None, lambda: 0)
    try:
        found["patient"] = holdings._patient.submit(_priority).result()
        found["urgent"] = holdings._background.submit(_priority).result()
    finally:
        holdings.close()


@pytest.mark.parametrize(("start_nice", "patient"), [(0, 8), (10, 18), (15, 19), (19, 19)])
def test_what_can_wait_has_a_lower_priority_than_its_process(start_nice, patient):
    if start_nice < os.getpriority(os.PRIO_PROCESS, 0):
        pytest.skip("only an administrator may raise a priority")
    found: dict[str, int] = {}
    thread = threading.Thread(target=_of_background, args=(found, start_nice))
    thread.start()
    thread.join()
    assert found == {"patient": patient, "urgent": start_nice}
