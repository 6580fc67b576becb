"""Do the two programs in the image do what Docker relies on?"""

import os
import signal
import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

PROGRAMS = Path(__file__).parents[2] / "deploy" / "docker"


@pytest.fixture
def server():
    server = grpc.server(futures.ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield address, servicer
    server.stop(None).wait()


def probe(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "health_probe", *arguments],
        env=dict(os.environ, PYTHONPATH=str(PROGRAMS)) | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_probe_tells_serving_from_everything_else(server):
    address, servicer = server
    assert probe(address).returncode == 0
    assert probe(SHOAL_PROBE_ADDRESS=address).returncode == 0
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    done = probe(address)
    assert done.returncode == 1
    assert "NOT_SERVING" in done.stderr


def test_probe_names_an_address_where_nobody_listens():
    done = probe("127.0.0.1:1")
    assert done.returncode == 1
    assert "127.0.0.1:1: UNAVAILABLE" in done.stderr


def a_shoal(folder, up_status=0):
    """A stand-in for the command, which notes how it is called."""
    program = folder / "shoal"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/calls\n[ "$1" = up ] && exit {up_status}\n:\n'
    )
    program.chmod(0o755)
    return dict(os.environ, PATH=f"{folder}:{os.environ['PATH']}")


def keep(environment):
    return subprocess.Popen(
        [sys.executable, PROGRAMS / "keep_cluster.py", "topology.yaml"], env=environment
    )


def test_container_stays_until_it_is_stopped_and_takes_the_cluster_down(tmp_path):
    process = keep(a_shoal(tmp_path))
    calls = tmp_path / "calls"
    give_up_s = time.monotonic() + 60
    while not calls.exists() and time.monotonic() < give_up_s:
        time.sleep(0.02)
    # Also if the signal comes before `shoal up` is done.
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert calls.read_text().splitlines() == ["up topology.yaml", "down"]


def test_container_ends_with_the_status_of_an_up_that_failed(tmp_path):
    assert keep(a_shoal(tmp_path, up_status=3)).wait(60) == 3
    assert (tmp_path / "calls").read_text().splitlines() == ["up topology.yaml"]
