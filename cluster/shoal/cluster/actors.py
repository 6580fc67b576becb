"""How does Ray host what Shoal runs? The one file that imports ray.

Ray places processes and starts them again; it carries no query. A `ServiceActor` is a process with
one service in it, on an event loop of its own, behind a gRPC port. The `ControllerActor` is the
same around the controller. `RayCluster` is all that anyone else sees of Ray.

Actors are detached, so they outlive whoever made them, the controller too; `max_restarts=-1` has
Ray start a killed one again within about two seconds, with the arguments it was made with, and the
port file has it listen where it listened before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from shoal.cluster import local
from shoal.cluster.config import ClusterConfig
from shoal.cluster.controller_server import ControllerService
from shoal.cluster.hosting import InstanceDiedError, InstanceSpec, Placed, PortFile, build_host
from shoal.cluster.steps import Step, StepFailedError, explain, function_of
from shoal.rpc.garbage import spare_what_is_there
from shoal.rpc.server import ServiceHost

_log = logging.getLogger(__name__)

NAMESPACE: Final = "shoal"
CONTROLLER_ACTOR: Final = "controller"


class _LoopThread:
    """An event loop in a thread: the service's own, which no Ray call ever occupies."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="service", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()


class StartError(Exception):
    """Ray cannot be reached, or did not start what was asked for; the message says why."""


class ServiceActor:
    """A process that hosts one service."""

    def __init__(self, spec: InstanceSpec) -> None:
        """Start the service; raise what keeps it from starting."""
        _log_to_stderr()
        _bound_lance_threads()
        self._loop = _LoopThread()
        port_file = PortFile(Path(spec.state_folder) / f"{spec.id}.port")
        self._host = build_host(
            spec, port_file.listen_address(_reachable_host(spec.host), spec.port)
        )
        self._address: str = self._loop.run(self._host.start())
        port_file.remember(self._address)
        spare_what_is_there()
        _log.info("%s listens on %s", spec.id, self._address)

    def address(self) -> tuple[str, str]:
        """Where the service listens, and the id of the Ray node it runs on."""
        return self._address, str(ray.get_runtime_context().get_node_id())

    def stop(self) -> None:
        """Drain and stop the service; the process ends with the actor."""
        self._loop.run(self._host.stop())


class ControllerActor:
    """The process of the controller."""

    def __init__(self, config: ClusterConfig, home: str) -> None:
        """Begin to control: place what is missing, adopt what is there."""
        _log_to_stderr()
        self._loop = _LoopThread()
        self._service = ControllerService(config, Path(home), RayCluster())
        port_file = PortFile(Path(home) / "run" / f"{CONTROLLER_ACTOR}.port")
        host = _reachable_host(config.listen_host)
        self._address = self._loop.run(self._start(port_file.listen_address(host, 0)))
        port_file.remember(self._address)
        spare_what_is_there()
        _log.info("the controller listens on %s", self._address)

    async def _start(self, listen: str) -> str:
        # Kept, as a server that nobody refers to is closed.
        self._host = ServiceHost(self._service, listen)
        address = await self._host.start()
        self._service.introduce(address)
        return address

    def address(self) -> str:
        """Where the controller listens."""
        return str(self._address)

    def stop(self) -> None:
        """Stop every instance: the end of the cluster."""
        self._loop.run(self._service.remove_all())


def _bound_lance_threads() -> None:
    # Lance would start a thread a core in each process; it reads this when it is first used.
    os.environ.setdefault("LANCE_CPU_THREADS", "2")
    os.environ.setdefault("LANCE_IO_THREADS", "2")


def _log_to_stderr() -> None:
    # Ray keeps each process's stderr in a file of its session's log folder.
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )


def _reachable_host(host: str) -> str:
    return str(ray.util.get_node_ip_address()) if host == "node" else host


@contextlib.contextmanager
def connected(address: str, home: Path) -> Iterator[None]:
    """Be connected to the Ray cluster at `address`, as a driver that leaves nothing behind.

    Raises StartError if it cannot be reached, or refuses this home's token.
    """
    _require_listener(address)
    try:
        _join(address, home)
    except Exception as error:
        raise StartError(
            f"cannot join Ray at {address}: {error}. Is its token the one in "
            f"{local.token_path(home)}, or in RAY_AUTH_TOKEN?"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Refuse an address where nobody listens: `ray.init` would wait there for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2.0).close()
    except (OSError, ValueError) as error:
        raise StartError(f"no Ray cluster answers at {address}: {error}") from error


def _join(address: str, home: Path) -> None:
    # Ray 2.60 reads how to authenticate, and whether to replace a loopback address by the machine's
    # outer one, when it is imported; both depend on the home, which is known only now.
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    local.use_token(home)
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    ray_constants.ENABLE_RAY_CLUSTER = not address.startswith(f"{local.LOOPBACK}:")
    ray.init(
        address=address,
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level="ERROR",
        configure_logging=False,
    )


def start_controller(config: ClusterConfig, home: Path) -> str:
    """Have Ray host the controller, or find the one it hosts; return where it listens.

    It runs on this machine, as its state file does. Raises StartError.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(ControllerActor).options(
        name=CONTROLLER_ACTOR,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        num_cpus=0,
        max_concurrency=2,
        scheduling_strategy=here,
    )
    try:
        return str(ray.get(actor.remote(config, str(home)).address.remote(), timeout=60))
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise StartError(f"the controller did not start: {_first_cause(error)}") from error


def stop_controller() -> None:
    """Stop every instance, then the controller. Raises StartError if Ray does not answer."""
    try:
        controller = ray.get_actor(CONTROLLER_ACTOR, namespace=NAMESPACE)
    except ValueError:
        return
    try:
        ray.get(controller.stop.remote(), timeout=60)
    except (ray.exceptions.RayError, TimeoutError) as error:
        _log.warning("the controller did not stop by itself: %s", error)
    ray.kill(controller, no_restart=True)


class RayCluster:
    """All that Shoal asks of Ray. Blocking; call it off the event loop."""

    def __init__(self) -> None:
        """Join the Ray cluster that this process was connected to."""
        assert ray.is_initialized()

    def create(self, spec: InstanceSpec, resources: dict[str, float]) -> Placed:
        """Place an instance, or find the one that has its id already."""
        options: dict[str, Any] = {
            "name": spec.id,
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
            "max_restarts": -1,
            # Thread budgets, not Ray's processor slots, divide a machine.
            "num_cpus": resources.get("CPU", 0),
            "num_gpus": resources.get("GPU", 0),
            "resources": {
                key: value for key, value in resources.items() if key not in ("CPU", "GPU")
            },
            # Copies of a shard on one machine would be lost together.
            "scheduling_strategy": "SPREAD",
            # `stop` must get through while `address` waits.
            "max_concurrency": 2,
        }
        return Placed(spec.id, ray.remote(ServiceActor).options(**options).remote(spec))

    def find(self, instance_id: str) -> Placed | None:
        """Find an instance that was placed before, by an earlier life of the controller."""
        try:
            return Placed(instance_id, ray.get_actor(instance_id, namespace=NAMESPACE))
        except ValueError:
            return None

    def placed_ids(self) -> list[str]:
        """Ids of all instances that live, the controller left out."""
        named = ray.util.list_named_actors(all_namespaces=True)
        return sorted(
            str(each["name"])
            for each in named
            if each["namespace"] == NAMESPACE and each["name"] != CONTROLLER_ACTOR
        )

    async def address(self, placed: Placed) -> tuple[str, str]:
        """Ask an instance where it listens: `host:port` and node. Waits while it starts.

        Raises InstanceDiedError once Ray will not start it again, and ConnectionError while Ray
        does: ask again.
        """
        try:
            address, node = await asyncio.wrap_future(placed.handle.address.remote().future())
        except ray.exceptions.ActorUnavailableError as error:
            raise ConnectionError(str(error)) from error
        except ray.exceptions.RayActorError as error:
            raise InstanceDiedError(_first_cause(error)) from error
        return str(address), str(node)

    def remove(self, placed: Placed, grace_s: float = 12.0) -> None:
        """Stop an instance for good."""
        try:
            ray.get(placed.handle.stop.remote(), timeout=grace_s)
        except (ray.exceptions.RayError, TimeoutError) as error:
            _log.warning("%s did not stop by itself: %s", placed.id, error)
        ray.kill(placed.handle, no_restart=True)

    def restart(self, placed: Placed) -> None:
        """Kill an instance that hangs; Ray starts it again."""
        ray.kill(placed.handle, no_restart=False)

    async def run_step(self, step: Step, *arguments: Any) -> Any:
        """Run a step of a build in a task on some machine; twice more if its process dies.

        Raises StepFailedError.
        """
        task = ray.remote(_run_step).options(
            num_cpus=0, max_retries=2, scheduling_strategy="SPREAD"
        )
        try:
            result, failure = await asyncio.wrap_future(task.remote(step, *arguments).future())
        except ray.exceptions.RayError as error:
            raise StepFailedError(
                f"the process of step {step} died: {_first_cause(error)}"
            ) from error
        if failure:
            raise StepFailedError(failure)
        return result


def _run_step(step: Step, *arguments: Any) -> tuple[Any, str]:
    """Run the function of a step; return its result, or why it failed."""
    _log_to_stderr()
    _bound_lance_threads()
    _give_way()
    try:
        return function_of(step)(*arguments), ""
    except Exception as error:  # noqa: BLE001  # whatever it was, the operator is told
        _log.exception("step %s of a build failed", step)
        return None, explain(error)


def _give_way() -> None:
    """Let queries go first: on a core that serves too, a step only has what is left of it.

    The policy of this thread, and of the threads that it starts from now on. A step of a lower
    priority (nice) alone may go on for a slice of 1 to 3 ms before a query that wakes up gets its
    core, and a query wakes up in six threads one after another; a step of this policy stops at
    once.
    """
    if sys.platform != "linux":
        os.nice(max(0, 10 - os.nice(0)))  # The process may have run steps before.
        return
    _leave_session()
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _leave_session() -> None:
    """Have the kernel weigh this process by itself, as little as it may.

    Where it groups processes by session (autogroup, sched(7)), priorities and policies count within
    a session alone. Ray's processes share one: with a build in it, whatever runs in another, such
    as a caller, waited up to a second for a core.
    """
    if os.getsid(0) != os.getpid():
        # Ray has each worker lead a group, and who leads one may not leave the session.
        os.setpgid(0, os.getpgid(os.getppid()))
        os.setsid()
    with contextlib.suppress(OSError):  # A kernel without such groups.
        Path("/proc/self/autogroup").write_text("19", encoding="ascii")


def _first_cause(error: BaseException) -> str:
    """The line that says why an actor died: the last one of Ray's long message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
