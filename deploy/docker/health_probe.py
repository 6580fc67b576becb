"""Does the service at an address say that it serves?

`python -m health_probe [HOST:PORT]` asks by gRPC's own health protocol and exits with 0 if the
answer is SERVING, else with 1 and the reason. For Docker's HEALTHCHECK, Kubernetes and scripts.
"""

from __future__ import annotations

import os
import sys
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ADDRESS_VARIABLE: Final = "SHOAL_PROBE_ADDRESS"
DEFAULT_ADDRESS: Final = "127.0.0.1:7600"
# Shorter than the timeout of whoever runs this, so that the reason is printed.
TIMEOUT_S: Final = 3.0


def problem_at(address: str, timeout_s: float = TIMEOUT_S) -> str:
    """Say why the service at `host:port` does not serve; an empty string if it does."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout_s
            )
        except grpc.RpcError as error:
            return f"{address}: {error.code().name}: {error.details()}"
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        return f"{address} says {name}"
    return ""


def main() -> None:
    """Ask the address on the command line, or the one in the environment."""
    default = os.environ.get(ADDRESS_VARIABLE, DEFAULT_ADDRESS)
    problem = problem_at(sys.argv[1] if len(sys.argv) > 1 else default)
    if problem:
        raise SystemExit(problem)


if __name__ == "__main__":
    main()
