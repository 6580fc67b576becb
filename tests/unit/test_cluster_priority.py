"""Does a step of a build leave the cores to whoever answers queries?"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="policies and sessions of Linux")

STEP = """
import os
from shoal.cluster.actors import _give_way

os.setpgid(0, 0)  # As Ray starts its workers.
for step in range(2):
    _give_way()
    assert os.sched_getscheduler(0) == os.SCHED_IDLE
    assert os.getsid(0) == os.getpid() != os.getsid(os.getppid())
try:
    with open("/proc/self/autogroup") as file:
        print(file.read())
except OSError:
    print("there are no groups: nice 19")
"""


def test_a_step_is_idle_work_in_a_session_of_its_own():
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nice 19" in done.stdout
