"""How does a client reach the brokers?

With deadlines on every call, and retries by gRPC itself for the calls that the protos mark as free
of side effects. Several brokers are used in turn; one that dies is left out until it is back.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.descriptor_pb2 import MethodOptions
from shoal.v1 import cluster_pb2, documents_pb2, indexes_pb2, search_pb2

DEFAULT_ENDPOINT: Final = "127.0.0.1:7600"

Options = Sequence[tuple[str, Any]]

# 1,000 hits with their text and metadata, in ordinary sizes.
_MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024

# gRPC allows no more than five. With these pauses a call outlives about 1.5 seconds without any
# broker, which is what the restart of one takes.
_RETRY_POLICY: Final = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}

_OPTIONS: Final[dict[str, Any]] = {
    "grpc.max_receive_message_length": _MAX_MESSAGE_BYTES,
    "grpc.max_send_message_length": _MAX_MESSAGE_BYTES,
    # A broker that was killed is back within two seconds: look for it that often.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1_000,
    # In spite of its name, how long one attempt to connect may take: a busy machine needs a while.
    "grpc.min_reconnect_backoff_ms": 5_000,
    # A machine that vanishes sends no reset: notice within about 15 seconds of a call.
    "grpc.keepalive_time_ms": 10_000,
    "grpc.keepalive_timeout_ms": 5_000,
    # Brokers are inside: neither loopback nor they are to be reached by the environment's proxy.
    "grpc.enable_http_proxy": 0,
    "grpc.enable_retries": 1,
}

# Of the metadata of a call.
_CALLER_KEY: Final = "shoal-caller"


def channel_options(extra: Options = ()) -> list[tuple[str, Any]]:
    """The options of a channel; `extra` wins over ours."""
    return list({**_OPTIONS, "grpc.service_config": service_config(), **dict(extra)}.items())


def service_config() -> str:
    """Retries for every method that is marked NO_SIDE_EFFECTS, and brokers taken in turn."""
    files = (search_pb2, documents_pb2, indexes_pb2, cluster_pb2)
    names = [
        {"service": service.full_name, "method": method.name}
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
    ]
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [{"name": names, "retryPolicy": _RETRY_POLICY}],
            # When most calls fail, retrying only adds to the load: half of the tokens must be left.
            "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
        }
    )


def target_of(endpoints: str | Sequence[str]) -> str:
    """The gRPC target of one endpoint or several.

    One is passed on as it is: `host:port`, or any target that gRPC knows, such as
    `dns:///brokers.example:7600`, whose addresses gRPC follows. Several are looked up once, here.
    Raises ValueError for an endpoint without a port or whose host is unknown.
    """
    listed = [endpoints] if isinstance(endpoints, str) else list(endpoints)
    if not listed:
        raise ValueError("no endpoint: name at least one broker as host:port")
    if len(listed) == 1:
        return listed[0]
    addresses = [_resolve(endpoint) for endpoint in listed]
    if all("[" not in address for address in addresses):
        return "ipv4:" + ",".join(addresses)
    if all("[" in address for address in addresses):
        return "ipv6:" + ",".join(addresses)
    raise ValueError(f"{', '.join(listed)}: use IPv4 or IPv6 addresses, not both")


def _resolve(endpoint: str) -> str:
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ValueError(f"{endpoint!r} is not host:port")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"{endpoint!r}: cannot look up the host: {error}") from None
    # IPv4 first: what listens on `localhost` listens there.
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    return f"{address[0]}:{port}" if family == socket.AF_INET else f"[{address[0]}]:{port}"


def caller_metadata(caller: str) -> tuple[tuple[str, str], ...] | None:
    """What tells a broker who calls; None if that is not said."""
    return ((_CALLER_KEY, caller),) if caller else None
