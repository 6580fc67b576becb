"""Which connections does the broker keep, and what does it know of each?

A target is an instance with its channel, health, and whatever calls are gathered for it. Targets
live on over epochs; one that leaves the topology is closed once its calls have had time to finish.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Final, TypeVar

import grpc
from shoal.broker.coalesce import Coalescer
from shoal.broker.replicas import Chooser, Health
from shoal.rpc.channels import open_channel
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError, service_error_of
from shoal.rpc.space_names import MAX_SPACES
from shoal.v1.errors_pb2 import Reason

Result = TypeVar("Result")

CLOSE_GRACE_S: Final = 10.0
# Between two rounds over all instances of a role, when all have failed.
ROUND_S: Final = 0.1

# Layouts of an index that are asked side by side: what serves, in each space, and a rollout's.
MAX_LAYOUTS: Final = 2 * (MAX_SPACES + 1)

# Attempts at what fails for a reason that lies in the request, or in our code.
TRIES: Final = 3

# The instance, or the way to it, is at fault: another one, or the same one later, may do.
RETRIED: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DATA_LOSS,
    }
)


class Target:
    """An instance that the broker calls."""

    def __init__(self, instance_id: str, address: str) -> None:
        """Connects on its first call."""
        self.id, self.address = instance_id, address
        self.health = Health()
        self.channel = open_channel(address)
        # By what is asked for; where that depends on a layout, the layout is next in the key.
        self.coalescers: dict[Any, Coalescer[Any, Any]] = {}

    def make_room(self, purpose: str, layout: tuple[str, int, int]) -> None:
        """Let the coalescers of an index's oldest layouts go: replaced, they are not asked again.

        Those stay that may be asked side by side, in spaces and rollouts.
        """
        own = [key for key in self.coalescers if key[0] == purpose and key[1][0] == layout[0]]
        others = list(dict.fromkeys(key[1] for key in own if key[1] != layout))
        outlived = set(others[: max(0, len(others) + 1 - MAX_LAYOUTS)])
        for stale in [key for key in own if key[1] in outlived]:
            del self.coalescers[stale]

    async def call(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Make a call and learn from how it went. Raises ServiceError."""
        started_s = time.monotonic()
        self.health.started(started_s)
        try:
            result = await work()
        except grpc.aio.AioRpcError as error:
            now_s = time.monotonic()
            if error.code() in RETRIED:
                self.health.failed(now_s)
            elif error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                self.health.abandoned(now_s - started_s, now_s)
            else:
                self.health.refused(now_s)
            raise service_error_of(error) from error
        except BaseException as error:
            now_s = time.monotonic()
            self.health.abandoned(now_s - started_s, now_s)
            if isinstance(error, asyncio.CancelledError) and not _is_cancelled():
                # Not by the caller: the channel was closed under the call.
                raise ServiceError(
                    Reason.REASON_DRAINING, f"{self.id} has left the cluster: ask another one"
                ) from error
            raise
        now_s = time.monotonic()
        self.health.succeeded(now_s - started_s, now_s)
        return result


class Targets:
    """The instances of one role."""

    def __init__(self, chooser: Chooser) -> None:
        """Empty until `follow` is called."""
        self._targets: dict[str, Target] = {}
        self._chooser = chooser
        self._closing: set[asyncio.Task[None]] = set()

    def follow(self, addresses: Mapping[str, str]) -> None:
        """Take over the topology's instances; keep those that stay."""
        for id_, target in list(self._targets.items()):
            if addresses.get(id_) != target.address:
                del self._targets[id_]
                task = asyncio.create_task(_close_later(target))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        for id_, address in addresses.items():
            if id_ not in self._targets:
                self._targets[id_] = Target(id_, address)

    def get(self, instance_id: str) -> Target | None:
        """Find one."""
        return self._targets.get(instance_id)

    def all(self) -> list[Target]:
        """All of them."""
        return list(self._targets.values())

    def choose(
        self, ids: Sequence[str] | None = None, without: Collection[str] = ()
    ) -> Target | None:
        """Choose one among `ids`, or among all, leaving out some; None if none is left."""
        among = self.all() if ids is None else [self._targets[i] for i in ids if i in self._targets]
        return self._chooser.choose([each for each in among if each.id not in without])

    async def first_to_do(
        self,
        work: Callable[[Target], Awaitable[Result]],
        deadline: Deadline,
        ids: Sequence[str] | Callable[[], Sequence[str] | None] | None = None,
        *,
        rounds: int | None = None,
    ) -> tuple[Target, Result]:
        """Have one of the instances do something, and another if that one fails.

        Goes over all of them, again and again, until the deadline: one that was killed is back
        within seconds. `rounds` is for what is not worth waiting for; a fault that is likely to
        come back is met TRIES times, and nobody waits for instances that are all overloaded.
        ids: of those that may, or what says them before each try; None: all.
        Raises the last ServiceError, or TimeoutError if there was none.
        """
        failed: dict[str, ServiceError] = {}
        last: ServiceError | None = None
        tries = TRIES
        while not deadline.passed:
            target = self.choose(ids() if callable(ids) else ids, failed)
            if target is None:
                if failed and all(map(is_overload, failed.values())):
                    break
                if rounds is not None:
                    rounds -= 1
                    if rounds <= 0:
                        break
                failed.clear()
                await asyncio.sleep(min(ROUND_S, deadline.budget_s))
                continue
            try:
                return target, await work(target)
            except ServiceError as error:
                tries -= _comes_back(error)
                if error.failure.code not in RETRIED or tries == 0:
                    raise
                last = failed[target.id] = error
            except TimeoutError:
                break
        if last is not None:
            raise last
        raise TimeoutError

    async def close(self) -> None:
        """Close all connections."""
        closing = list(self._closing)
        for task in closing:
            task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)
        for target in self._targets.values():
            await target.channel.close()
        self._targets.clear()


def is_overload(error: ServiceError) -> bool:
    """True if the instance has as much work as it can finish, and says when to come back."""
    return error.failure.retry_delay_s is not None


def _comes_back(error: ServiceError) -> bool:
    """True if the same request is likely to fail again: a bug, or an answer too large to send."""
    failure = error.failure
    if failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return not is_overload(error)
    return failure.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _close_later(target: Target) -> None:
    try:
        await asyncio.sleep(CLOSE_GRACE_S)
    finally:
        await target.channel.close()
