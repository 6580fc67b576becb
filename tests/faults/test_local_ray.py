"""Does the Ray of a home come up alone, refuse strangers, and go without a trace?

Real Ray, about four seconds a start. Ray itself is imported only by programs that these tests run.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from shoal.cluster import local
from shoal.cluster.processes import find_process

pytestmark = pytest.mark.cluster

# A method of each server that Ray listens with.
METHODS = {
    "gcs_server": ["/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"],
    "raylet": [
        "/ray.rpc.NodeManagerService/GetNodeStats",
        "/ray.rpc.ObjectManagerService/Push",
    ],
    "ray::DashboardAgent": ["/ray.rpc.ReporterService/HealthCheck"],
    "ray::": ["/ray.rpc.CoreWorkerService/GetCoreWorkerStats"],
}

START = """
import sys; from pathlib import Path
from shoal.cluster import local
print(local.start_local_ray(Path(sys.argv[1]), num_cpus=2).address)
"""

PLACE_AN_ACTOR = """
import sys; from pathlib import Path
from shoal.cluster import local
home, address, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
local.use_token(home)
import os
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
import ray
ray.init(address=address, namespace="shoal", log_to_driver=False, logging_level="ERROR")

class Sitter:
    def pid(self):
        return os.getpid()

options = dict(name=name, lifetime="detached", num_cpus=0, max_restarts=-1)
print(ray.get(ray.remote(Sitter).options(**options).remote().pid.remote()))
"""


def run(program: str, *arguments: object) -> str:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def processes_of(home: Path) -> list[psutil.Process]:
    """Whatever names this home in its command or its environment, and its children."""
    found: dict[int, psutil.Process] = {}
    for each in psutil.process_iter():
        try:
            told = " ".join([*each.cmdline(), *each.environ().values()])
            if str(home) in told and each.pid != os.getpid():
                found |= {child.pid: child for child in [each, *each.children(recursive=True)]}
        except psutil.Error:
            continue
    return [each for each in found.values() if is_alive(each)]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end(process: psutil.Process) -> None:
    process.kill()
    psutil.wait_procs([process], timeout=20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def new_home() -> Iterator[Callable[[], Path]]:
    homes: list[Path] = []

    def make() -> Path:
        homes.append(Path(tempfile.mkdtemp(prefix="ray-")))
        return homes[-1]

    yield make
    for home in homes:
        local.stop_local_ray(home)
        assert processes_of(home) == []
        assert not local.short_folder(home / "ray").exists()
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home with a Ray that was started by a process which ended since, and an actor in it."""
    home = Path(tempfile.mkdtemp(prefix="ray-"))
    try:
        run(PLACE_AN_ACTOR, home, run(START, home), "sitter")
        yield home
    finally:
        local.stop_local_ray(home)
        assert processes_of(home) == []
        shutil.rmtree(home)


def test_it_outlives_its_starter_and_is_not_started_twice(home: Path) -> None:
    assert local.is_running(home)
    gcs = next(each for each in processes_of(home) if each.name() == "gcs_server")
    with pytest.raises(local.AlreadyRunningError, match=f"process {gcs.pid}"):
        local.start_local_ray(home)


def test_it_runs_what_it_must_and_no_more(home: Path) -> None:
    # The kernel keeps 15 characters of a name.
    assert sorted(each.name()[:15] for each in processes_of(home)) == [
        "gcs_server",
        "ray::DashboardA",
        "ray::RuntimeEnv",
        "ray::Sitter",
        "raylet",
    ]


def test_its_folders_are_private(home: Path) -> None:
    assert (home / "ray").stat().st_mode & 0o777 == 0o700
    assert local.token_path(home).stat().st_mode & 0o777 == 0o600
    assert list(local.log_folder(home).glob("worker-*.out"))


def test_it_listens_on_loopback_alone(home: Path) -> None:
    listeners = [
        (each.name(), connection.laddr.ip)
        for each in processes_of(home)
        for connection in each.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {name for name, _ in listeners} >= {"gcs_server", "raylet", "ray::Sitter"}
    beyond = [(name, ip) for name, ip in listeners if ip.removeprefix("::ffff:") != "127.0.0.1"]
    assert beyond == []


def test_every_listener_refuses_a_call_without_the_token(home: Path) -> None:
    for process in processes_of(home):
        name = process.name()
        for connection in process.net_connections():
            if connection.status == psutil.CONN_LISTEN:
                port = connection.laddr.port
                assert refuses(name, port, None), f"{name} answers anybody on {port}"
                assert refuses(name, port, "0" * 64), f"{name} takes any token on {port}"
    token = local.token_path(home).read_text()
    address = local._read_record(home / "ray").address  # type: ignore[union-attr]
    assert not refuses("gcs_server", int(address.rpartition(":")[2]), token)


def refuses(name: str, port: int, token: str | None) -> bool:
    header = {"authorization": f"Bearer {token}"} if token else {}
    status = http_status(port, header)
    if status is not None:
        return status in (401, 403)
    methods = next(found for prefix, found in METHODS.items() if name.startswith(prefix[:15]))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        codes = {code_of(channel, method, tuple(header.items())) for method in methods}
    # The raylet has two ports with a service each; the other's methods are unknown there.
    return grpc.StatusCode.UNAUTHENTICATED in codes and grpc.StatusCode.OK not in codes


def http_status(port: int, header: dict[str, str]) -> int | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/", headers=header)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def code_of(
    channel: grpc.Channel, method: str, metadata: tuple[tuple[str, str], ...]
) -> grpc.StatusCode:
    try:
        channel.unary_unary(method)(b"", timeout=10, metadata=metadata)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_only_its_own_ray_is_stopped(home: Path, new_home: Callable[[], Path]) -> None:
    other = new_home()
    ray = local.start_local_ray(other, num_cpus=1)
    worker = int(run(PLACE_AN_ACTOR, other, ray.address, "another"))
    assert psutil.pid_exists(worker)
    assert local.stop_local_ray(other)
    assert processes_of(other) == []
    assert not local.is_running(other)
    assert not local.stop_local_ray(other)
    assert list(ray.log_folder.glob("gcs_server.*"))
    assert local.is_running(home)


@pytest.mark.parametrize("victim", ["gcs_server", "raylet"])
def test_what_a_kill_left_is_cleared_by_the_next_start(
    new_home: Callable[[], Path], victim: str
) -> None:
    home = new_home()
    first = local.start_local_ray(home, num_cpus=1)
    run(PLACE_AN_ACTOR, home, first.address, "sitter")
    end(next(each for each in processes_of(home) if each.name() == victim))
    assert not local.is_running(home)
    second = local.start_local_ray(home, num_cpus=1)
    assert local.is_running(home)
    assert not set(second.pids) & set(first.pids)
    assert not any(psutil.pid_exists(pid) for pid in first.pids)


def test_what_carries_its_token_is_its_own_even_if_all_that_was_known_is_gone(
    new_home: Callable[[], Path],
) -> None:
    home = new_home()
    ray = local.start_local_ray(home, num_cpus=1)
    run(PLACE_AN_ACTOR, home, ray.address, "sitter")
    everything = processes_of(home)
    path = home / "ray" / "state.json"
    record = json.loads(path.read_text())
    forgotten = [each | {"start_ticks": 0} for each in record["processes"]]
    path.write_text(json.dumps(record | {"processes": forgotten}))
    assert local.stop_local_ray(home)
    # The agents, which hide their environment, follow the raylet by themselves.
    _, left = psutil.wait_procs(everything, timeout=20)
    assert not [each for each in left if is_alive(each)]


def test_a_record_from_before_a_reboot_harms_nobody(new_home: Callable[[], Path]) -> None:
    home = new_home()
    local.start_local_ray(home, num_cpus=1)
    record = json.loads((home / "ray" / "state.json").read_text())
    local.stop_local_ray(home)
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as bystander:
        now = find_process(bystander.pid)
        assert now is not None
        old = record | {
            "boot_id": "another",
            "session_id": bystander.pid,
            "processes": [now.model_dump() | {"name": name} for name in ("gcs_server", "raylet")],
        }
        (home / "ray" / "state.json").write_text(json.dumps(old))
        assert not local.is_running(home)
        assert not local.stop_local_ray(home)
        # The same boot, but the number of the session has a new owner.
        reused = old | {"boot_id": record["boot_id"], "processes": record["processes"]}
        (home / "ray" / "state.json").write_text(json.dumps(reused))
        assert not local.is_running(home)
        assert not local.stop_local_ray(home)
        assert bystander.poll() is None
        bystander.kill()


def test_a_damaged_record_does_not_keep_it_from_starting(new_home: Callable[[], Path]) -> None:
    home = new_home()
    (home / "ray").mkdir()
    (home / "ray" / "state.json").write_text("{")
    assert not local.is_running(home)
    local.start_local_ray(home, num_cpus=1)
    assert local.is_running(home)


def test_a_taken_port_is_named(new_home: Callable[[], Path]) -> None:
    home = new_home()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(local.PortInUseError, match=f"port {port} of 127.0.0.1 is taken"):
            local.start_local_ray(home, port=port)
    assert processes_of(home) == []
    assert local.start_local_ray(home, port=(free := free_port())).address == f"127.0.0.1:{free}"


def test_a_start_that_fails_leaves_nothing(new_home: Callable[[], Path]) -> None:
    home = new_home()
    with pytest.raises(local.LocalRayError, match="Ray said"):
        local.start_local_ray(home, object_store_bytes=1)
    assert processes_of(home) == []
    assert not (home / "ray" / "state.json").exists()


def test_a_start_that_hangs_leaves_nothing(
    new_home: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = new_home()
    monkeypatch.setattr(local, "START_TIMEOUT_S", 2.0)
    monkeypatch.setattr(local, "_command", lambda *_: ["sh", "-c", "sleep 600 & sleep 600", "--"])
    with pytest.raises(local.LocalRayError, match="did not start within"):
        local.start_local_ray(home)
    assert processes_of(home) == []


def test_a_starter_that_was_killed_is_cleaned_up_after(new_home: Callable[[], Path]) -> None:
    home = new_home()
    command = [sys.executable, "-c", START, str(home)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as starter:
        while not (home / "ray" / "state.json").exists():
            assert starter.poll() is None
        starter.send_signal(signal.SIGKILL)
    assert not local.is_running(home)
    local.start_local_ray(home, num_cpus=1)
    assert local.is_running(home)


def test_a_long_home_gets_a_short_folder(new_home: Callable[[], Path]) -> None:
    home = new_home() / ("long" * 20)
    ray = local.start_local_ray(home, num_cpus=1)
    try:
        assert ray.temp_dir.parent == local.short_folder(home / "ray")
        assert ray.temp_dir.parent.stat().st_mode & 0o777 == 0o700
        run(PLACE_AN_ACTOR, home, ray.address, "sitter")
    finally:
        assert local.stop_local_ray(home)
    assert not ray.temp_dir.parent.exists()


def test_the_token_in_the_environment_goes_before_that_of_a_home_at_rest(
    new_home: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = new_home()
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")  # So that it is put back afterwards.
        monkeypatch.delenv(name)
    local.use_token(home)
    assert "RAY_AUTH_MODE" not in os.environ
    local.token_path(home).parent.mkdir()
    local.token_path(home).write_text("a" * 64)
    local.use_token(home)
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(local.token_path(home))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    local.use_token(home)
    assert os.environ["RAY_AUTH_TOKEN"] == "b" * 64
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ
