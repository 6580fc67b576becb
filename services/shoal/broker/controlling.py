"""How does the broker reach the controller?"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from shoal.broker.targets import Target, Targets
from shoal.internal.v1.topology_pb2_grpc import ControllerServiceStub
from shoal.rpc.deadline import Deadline
from shoal.rpc.errors import ServiceError
from shoal.v1.errors_pb2 import Reason

Response = TypeVar("Response")

CONTROLLER_SHARE: Final = 0.8
AWAY: Final = (
    "the controller does not answer; it is restarted by itself, and queries go on meanwhile"
)


async def reach_controller(
    controllers: Targets, work: Callable[[Any, float], Awaitable[Response]], deadline: Deadline
) -> Response:
    """Call the controller, again and again while it is away, until the deadline.

    work: takes the stub and the seconds left; may be repeated. Raises CONTROLLER_UNAVAILABLE, or
    what the controller refuses the call with.
    """
    # What is left is for the answer to travel.
    deadline = deadline.share(CONTROLLER_SHARE)

    async def once(target: Target) -> Response:
        stub = ControllerServiceStub(target.channel)
        return await target.call(lambda: work(stub, deadline.budget_s))

    try:
        _, response = await controllers.first_to_do(once, deadline)
    except (ServiceError, TimeoutError) as error:
        away = (Reason.REASON_UNSPECIFIED, Reason.REASON_DEADLINE_EXCEEDED)
        if isinstance(error, ServiceError) and error.reason not in away:
            raise
        raise ServiceError(Reason.REASON_CONTROLLER_UNAVAILABLE, f"{AWAY}: try again") from error
    return response
