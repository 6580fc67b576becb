"""How does a cluster live in a container?

`shoal up` brings the cluster up and returns; a container needs a process that stays. This one
brings it up, waits for the container to be stopped, and takes it down. Whatever fails ends the
container, with a status that has its restart policy try again.
"""

from __future__ import annotations

import signal
import subprocess
import sys


def main() -> int:
    """Bring up the topology file on the command line, and stay."""
    # Blocked from the start: a stop that arrives while the cluster comes up is then not lost.
    stops = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    started = subprocess.run(["shoal", "up", *sys.argv[1:]], check=False, preexec_fn=_unblock)
    if started.returncode != 0:
        return started.returncode
    signal.sigwait(stops)
    return subprocess.run(["shoal", "down"], check=False, preexec_fn=_unblock).returncode


def _unblock() -> None:
    # A blocked signal stays blocked in what a process starts, and in all of Ray.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    sys.exit(main())
