"""How does Ray come up on one machine, seen by nobody else, and go away without a trace?

Ray is run for one home folder: its own token, its own ports, its own temporary folder. It is ended
by what identifies it, never by name, as `ray stop` does, which ends every Ray on the machine.

What keeps it private (Ray 2.60, measured with `ss` and read in its source):

- A process of Ray binds the loopback interface if its node's address is 127.0.0.1, and all
  interfaces otherwise. `ray start` replaces 127.0.0.1 by the machine's outer address, unless
  RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER is off: the switch for systems on which Ray has no clusters.
- RAY_AUTH_MODE=token has every server refuse a call without the token, save health checks. Ray's
  unix sockets ask for none; the folder around them is readable by this user alone.

What identifies it: all of its processes stay in the session (`setsid`) that `ray start` is run in.
A session's number is not given again while one of its processes lives.

This module does not import ray, so that it can be asked about Ray while Ray is broken. Linux only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError
from shoal.cluster.processes import Process, boot_id, find_process, session_members, signal_all

LOOPBACK: Final = "127.0.0.1"
OBJECT_STORE_BYTES: Final = 100_000_000
"""Ray refuses less than 75 MiB. Queries never pass through it; it is memory only once it is used.
"""
START_TIMEOUT_S: Final = 90.0
"""For `ray start`: 2.5-4 s on two free cores, several times that on busy ones."""
DRAIN_S: Final = 5.0
"""For the raylet to end its workers; 1.5 s if they go at once."""
KILL_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.02
LOG_FILE_BYTES: Final = 16 * 1024 * 1024
"""Ray rotates each log file at this size, and keeps two older ones. Its default is 512 MiB."""
MAX_SOCKET_PATH_BYTES: Final = 107
"""Of a unix socket on Linux: `sun_path` in unix(7), less the closing zero byte."""
_SOCKET_TAIL_BYTES: Final = len("/session_2026-11-23_16-48-33_690839_4194304/sockets/plasma_store")
"""What Ray appends to its temporary folder, with the longest process number."""

_SERVERS: Final = ("gcs_server", "raylet")


class LocalRayError(Exception):
    """Ray did not start or stop; the message says why and what to do."""


class AlreadyRunningError(LocalRayError):
    """Ray runs for this home already; the message names its process."""


class PortInUseError(LocalRayError):
    """The port asked for is taken."""


@dataclass(frozen=True)
class LocalRay:
    """A Ray that runs for a home."""

    address: str
    """`127.0.0.1:port` for `ray.init`, which needs `use_token` first."""
    token_path: Path
    temp_dir: Path
    """Ray's `--temp-dir`."""
    log_folder: Path
    """Of Ray's processes, and of actors: `worker-*.out` and `worker-*.err`, one pair a process."""
    pids: tuple[int, ...]
    """Of the servers and agents; workers come and go."""


class _Record(BaseModel):
    """What is known of a Ray that was started, kept in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    boot_id: str
    """Of the machine's run: after a reboot nothing of this is left, whatever the numbers say."""
    session_id: int
    temp_dir: Path
    address: str
    """Empty while Ray starts: a record that stays so was left by a start that was killed."""
    processes: tuple[Process, ...]


def start_local_ray(
    home: Path,
    *,
    num_cpus: int | None = None,
    port: int = 0,
    object_store_bytes: int = OBJECT_STORE_BYTES,
) -> LocalRay:
    """Start Ray for this home on the loopback interface, and return once it accepts work.

    Its processes live on when the caller ends. What an earlier Ray of this home left is cleared.

    num_cpus: processor slots that Ray may give away; None takes what the machine has.
    port: of Ray's head (the GCS); 0 takes a free one.
    object_store_bytes: for objects that pass between tasks; at least 75 MiB.
    Raises AlreadyRunningError, PortInUseError, and LocalRayError with the end of Ray's own output;
    nothing is left running then.
    """
    folder = _private_folder(home / "ray")
    with _locked(folder):
        record = _read_record(folder)
        if record is not None and _is_whole(record):
            raise AlreadyRunningError(
                f"Ray runs for {home} already, at {record.address}, process "
                f"{_one(record, 'gcs_server').pid}: use it, or stop it with `shoal down`"
            )
        if record is not None:
            _end(folder, record)
        _require_free(port)
        _ensure_token(folder / "token")
        options = [f"--port={port}", f"--object-store-memory={object_store_bytes}"]
        if num_cpus is not None:
            options.append(f"--num-cpus={num_cpus}")
        return _launch(folder, _fresh_temp_dir(folder), options)


def stop_local_ray(home: Path) -> bool:
    """End the Ray of this home, all of it and nothing else. Its logs stay until the next start.

    Workers get SIGTERM from Ray, and DRAIN_S to go. Returns False if there was none.
    Raises LocalRayError if a process survives SIGKILL.
    """
    folder = home / "ray"
    if not folder.is_dir():
        return False
    with _locked(folder):
        record = _read_record(folder)
        return record is not None and _end(folder, record)


def is_running(home: Path) -> bool:
    """True if the Ray of this home runs: the processes that it cannot do without are alive."""
    record = _read_record(home / "ray")
    return record is not None and _is_whole(record)


def token_path(home: Path) -> Path:
    """Where the token of this home's Ray is, or is to be put to join a Ray started elsewhere."""
    return home / "ray" / "token"


def log_folder(home: Path) -> Path:
    """Where the logs of this home's Ray are, of the latest if it has ended."""
    record = _read_record(home / "ray")
    return _logs_in(record.temp_dir if record is not None else _temp_dir(home / "ray"))


def use_token(home: Path) -> None:
    """Have Ray, in this process and in those that it starts, present the token of this home.

    RAY_AUTH_TOKEN goes first, unless this home's own Ray runs. Without either, nothing is changed.
    Ray reads RAY_AUTH_MODE when it is imported: call this before, or have it read again.
    """
    path = token_path(home)
    if is_running(home) or ("RAY_AUTH_TOKEN" not in os.environ and path.is_file()):
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path.absolute())
    elif "RAY_AUTH_TOKEN" not in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"


def short_folder(folder: Path) -> Path:
    """A folder for sockets, of this user alone, for one whose own path is too long for them."""
    digest = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:12]
    # Fixed, not $TMPDIR: whoever looks for a socket must find the same folder.
    return Path(f"/tmp/shoal-{os.geteuid()}-{digest}")  # noqa: S108  # checked when it is made


# Starting


def _launch(folder: Path, temp_dir: Path, options: Sequence[str]) -> LocalRay:
    log_path = folder / "start.log"
    # Ray offers no way to go without its API server (the dashboard's back end, 120 MB here) and its
    # client proxy. Neither starts on a port that is taken.
    with _taken_port() as api_port, _taken_port() as client_port, log_path.open("wb") as log:
        command = _command(temp_dir, api_port, client_port) + list(options)
        starter = subprocess.Popen(
            command,
            env=_environment(folder / "token"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        record = _Record(
            boot_id=boot_id(),
            session_id=starter.pid,
            temp_dir=temp_dir,
            address="",
            processes=session_members(starter.pid),
        )
        try:
            _write_record(folder, record)
            _await_start(starter, log_path)
            _end_spares(record.session_id)
            record = _complete(record, log_path)
            _write_record(folder, record)
        except BaseException:
            _end(folder, record)
            starter.wait()
            raise
    return _describe(folder, record)


def _command(temp_dir: Path, api_port: int, client_port: int) -> list[str]:
    ray = Path(sysconfig.get_path("scripts")) / "ray"
    if not ray.exists():
        raise LocalRayError(f"there is no {ray}: install shoal in this environment again")
    return [
        str(ray),
        "start",
        "--head",
        f"--node-ip-address={LOOPBACK}",
        f"--temp-dir={temp_dir}",
        "--include-dashboard=false",
        f"--dashboard-port={api_port}",
        f"--ray-client-server-port={client_port}",
        "--include-log-monitor=false",
        "--no-monitor",
        "--disable-usage-stats",
        "--dashboard-agent-listen-port=0",
        # Any free ports, instead of 10002-19999, which services may have been given.
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--log-color=false",
    ]


def _environment(token: Path) -> dict[str, str]:
    """The environment of all of Ray's processes: the one place where it is decided."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return inherited | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token.absolute()),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Shoal has its own metrics; these would cost a listener.
        "RAY_enable_metrics_collection": "false",
        # Workers are started for actors, not for stock: 40 MB each.
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        # Actors serve queries. By Ray's default (15) they would stand behind all else on the
        # machine, and no build could stand behind them.
        "RAY_worker_niceness": "0",
        "RAY_ROTATION_MAX_BYTES": str(LOG_FILE_BYTES),
        "RAY_ROTATION_BACKUP_COUNT": "2",
    }


def _await_start(starter: subprocess.Popen[bytes], log_path: Path) -> None:
    try:
        status = starter.wait(START_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise LocalRayError(
            f"Ray did not start within {START_TIMEOUT_S:.0f} s. {_tail(log_path)}"
        ) from error
    if status != 0:
        raise LocalRayError(f"`ray start` failed with status {status}. {_tail(log_path)}")


def _end_spares(session_id: int) -> None:
    """End what Ray started and nobody here needs: the client proxy, if it has not ended itself."""

    def spares() -> list[Process]:
        members = session_members(session_id)
        raylets = {each.pid for each in members if each.name == "raylet"}
        return [
            each for each in members if each.name not in _SERVERS and each.parent_pid not in raylets
        ]

    _kill(spares)


def _complete(record: _Record, log_path: Path) -> _Record:
    try:
        address = (record.temp_dir / "ray_current_cluster").read_text().strip()
    except OSError as error:
        raise LocalRayError(f"Ray did not say where it listens. {_tail(log_path)}") from error
    complete = record.model_copy(
        update={"address": address, "processes": session_members(record.session_id)}
    )
    if not _is_whole(complete):
        raise LocalRayError(
            f"Ray started and ended at once: look at the logs in {_logs_in(record.temp_dir)}"
        )
    return complete


def _describe(folder: Path, record: _Record) -> LocalRay:
    return LocalRay(
        address=record.address,
        token_path=folder / "token",
        temp_dir=record.temp_dir,
        log_folder=_logs_in(record.temp_dir),
        pids=tuple(each.pid for each in record.processes),
    )


def _require_free(port: int) -> None:
    if not port:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise PortInUseError(
                f"port {port} of {LOOPBACK} is taken; `ss -ltnp 'sport = :{port}'` tells by whom"
            ) from error


@contextlib.contextmanager
def _taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind((LOOPBACK, 0))
        holder.listen(1)
        yield int(holder.getsockname()[1])


# Ending


def _end(folder: Path, record: _Record) -> bool:
    """End what is left of a Ray. Returns whether anything was."""

    def survivors() -> list[Process]:
        return _survivors(record, folder / "token")

    def all_but_gcs() -> list[Process]:
        return [each for each in survivors() if each.name != "gcs_server"]

    left = survivors()
    # The raylet ends its workers in good order, if the GCS is still there to be told.
    signal_all([each for each in left if each.name == "raylet"], signal.SIGTERM)
    if any(each.name == "raylet" for each in left):
        _gone_within(all_but_gcs, DRAIN_S)
    _kill(survivors)
    (folder / "state.json").unlink(missing_ok=True)
    if not record.temp_dir.is_relative_to(folder):
        shutil.rmtree(record.temp_dir.parent, ignore_errors=True)
    return bool(left)


def _survivors(record: _Record, token: Path) -> list[Process]:
    if record.boot_id != boot_id():
        return []
    members = session_members(record.session_id)
    known = {(each.pid, each.start_ticks) for each in record.processes}
    if any((each.pid, each.start_ticks) in known for each in members):
        return list(members)
    # All that was known is gone: either these are workers that outlived it, or the number of the
    # session was given to somebody else's since. Only ours have this home's token.
    return [each for each in members if _has_token(each.pid, token)]


def _has_token(pid: int, token: Path) -> bool:
    setting = b"RAY_AUTH_TOKEN_PATH=" + os.fsencode(token.absolute())
    try:
        return setting in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _kill(find: Callable[[], list[Process]]) -> None:
    deadline_s = time.monotonic() + KILL_TIMEOUT_S
    while left := find():
        if time.monotonic() > deadline_s:
            names = ", ".join(f"{each.name} ({each.pid})" for each in left)
            raise LocalRayError(f"processes of Ray do not end: {names}")
        signal_all(left, signal.SIGKILL)
        _gone_within(find, 10 * POLL_S)


def _gone_within(find: Callable[[], list[Process]], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while find() and time.monotonic() < deadline_s:
        time.sleep(POLL_S)


# Processes


def _is_whole(record: _Record) -> bool:
    if not record.address or record.boot_id != boot_id():
        return False
    needed = [each for each in record.processes if each.name in _SERVERS]
    return len(needed) == len(_SERVERS) and all(
        (now := find_process(each.pid)) is not None and now.start_ticks == each.start_ticks
        for each in needed
    )


def _one(record: _Record, name: str) -> Process:
    return next(each for each in record.processes if each.name == name)


# Files


def _private_folder(folder: Path) -> Path:
    """Make a folder that is this user's alone, or refuse one that is not."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        raise LocalRayError(f"{folder} is somebody else's: remove it, or choose another home")
    folder.chmod(0o700)
    return folder


def _temp_dir(folder: Path) -> Path:
    # One level down: Ray opens the permissions of the folder that it is given to everybody.
    temp_dir = folder.absolute() / "t"
    if len(os.fsencode(temp_dir)) + _SOCKET_TAIL_BYTES <= MAX_SOCKET_PATH_BYTES:
        return temp_dir
    return short_folder(folder) / "t"


def _fresh_temp_dir(folder: Path) -> Path:
    temp_dir = _temp_dir(folder)
    _private_folder(temp_dir.parent)
    shutil.rmtree(temp_dir, ignore_errors=True)
    temp_dir.mkdir(mode=0o700)
    return temp_dir


def _logs_in(temp_dir: Path) -> Path:
    return temp_dir / "session_latest" / "logs"


def _ensure_token(path: Path) -> None:
    if path.exists() and path.read_text().strip():
        path.chmod(0o600)
        return
    _write_private(path, secrets.token_hex(32))


def _read_record(folder: Path) -> _Record | None:
    try:
        return _Record.model_validate_json((folder / "state.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write_record(folder: Path, record: _Record) -> None:
    _write_private(folder / "state.json", record.model_dump_json())


def _write_private(path: Path, text: str) -> None:
    """Replace a file at once, so that no reader sees a half of it."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time start or stop the Ray of a home; others wait."""
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tail(path: Path, lines: int = 12) -> str:
    text = path.read_text(errors="replace").strip().splitlines()[-lines:]
    return "Ray said:\n" + "\n".join(text) if text else "Ray said nothing."
