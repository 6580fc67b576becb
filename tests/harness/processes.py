"""The cluster of `controlled`, with shard servers and writer in processes that can be killed.

The other instances live in the test's process: a broker that stops abruptly is not told from one
that was killed, as it remembers nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import Final

from shoal.cluster.hosting import InstanceSpec, Placed
from shoal.rpc.server import PortInUseError, ServiceHost
from shoal.v1.cluster_pb2 import Role

from tests.harness.controlled import OneProcess
from tests.harness.stand_ins import StandInEncoder

_PROGRAMS: Final = {Role.ROLE_SHARD_SERVER: "shoal.shard", Role.ROLE_WRITER: "shoal.writer"}
_LOGGED_BYTES: Final = 4_000


class Processes(OneProcess):
    """A platform whose shard servers and writer are processes."""

    def __init__(self, dimension: int) -> None:
        """dimension: of the encoders' vectors."""
        super().__init__()
        self.dimension = dimension
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.hung: list[str] = []
        """What the controller had to start again, as it hung or had died; its log says where."""

    async def _start(self, spec: InstanceSpec) -> str:
        if spec.role in _PROGRAMS:
            return await asyncio.to_thread(self._spawn, spec)
        if spec.role != Role.ROLE_ENCODER:
            return await super()._start(spec)
        encoder = StandInEncoder(spec.id, dimension=self.dimension)
        host = ServiceHost(encoder, f"{spec.host}:{spec.port}")
        self.hosts[spec.id] = host
        return await host.start()

    def _spawn(self, spec: InstanceSpec) -> str:
        settings = {key: value for key, value in spec.settings.items() if value is not None}
        arguments = ["--listen", f"{spec.host}:{spec.port}", "--instance-id", spec.id]
        if spec.role == Role.ROLE_WRITER:
            arguments += ["--data", str(settings.pop("data"))]
        for key, value in settings.items():
            arguments += ["--set", f"{key}={value}"]
        log = os.open(self.log_path(spec), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", _PROGRAMS[spec.role], *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                # One that hangs is ended by SIGABRT, and says where it hung.
                env=os.environ | {"PYTHONFAULTHANDLER": "1"},
            )
        finally:
            os.close(log)
        self.processes[spec.id] = process
        assert process.stdout is not None
        address = process.stdout.readline().decode().strip()
        if address:
            return address
        self._end(spec.id, signal.SIGTERM)
        problem = self.log_of(spec.id)
        assert "the port is in use" in problem, f"{spec.id} did not start: {problem}"
        raise PortInUseError(problem)

    def log_path(self, spec: InstanceSpec) -> str:
        """File of what it logs."""
        os.makedirs(spec.state_folder, exist_ok=True)
        return os.path.join(spec.state_folder, f"{spec.id}.log")

    def log_of(self, instance_id: str) -> str:
        """The end of what it has logged."""
        with open(self.log_path(self.specs[instance_id]), encoding="utf-8") as file:
            return file.read()[-_LOGGED_BYTES:]

    async def restart_process(self, instance_id: str, number: signal.Signals) -> None:
        """End a process, and start it as Ray does: on the port that it had, if that is free."""
        address = await self.starting[instance_id]
        await asyncio.to_thread(self._end, instance_id, number)
        port = int(address.rpartition(":")[2])
        self.starting[instance_id] = self.loop.create_task(self._start_near(instance_id, port))
        await asyncio.shield(self.starting[instance_id])

    async def _start_near(self, instance_id: str, port: int) -> str:
        spec = self.specs[instance_id]
        try:
            return await self._start(replace(spec, port=port))
        except PortInUseError:  # Another process has taken it meanwhile.
            return await self._start(replace(spec, port=0))

    async def restart_host(self, instance_id: str) -> None:
        """The same for an instance of the test's own process."""
        await self.hosts[instance_id].stop(0)
        await self.start_again(instance_id)

    def _end(self, instance_id: str, number: signal.Signals) -> None:
        process = self.processes.pop(instance_id)
        process.send_signal(number)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()

    def remove(self, placed: Placed) -> None:
        """Stop it."""
        if placed.id not in self.processes:
            super().remove(placed)
            return
        del self.starting[placed.id]
        self._end(placed.id, signal.SIGTERM)

    def restart(self, placed: Placed) -> None:
        """End one that does not answer, and start it again."""
        assert placed.id in self.processes, f"{placed.id} was killed"
        died = self.processes[placed.id].poll()
        self.hung.append(f"{placed.id} {'hung' if died is None else f'died of {-died}'}")
        again = self.restart_process(placed.id, signal.SIGABRT)
        asyncio.run_coroutine_threadsafe(again, self.loop).result()

    async def close(self) -> None:
        """Stop everything."""
        await super().close()
        for instance_id in list(self.processes):
            await asyncio.to_thread(self._end, instance_id, signal.SIGTERM)
