"""How does one service reach another?"""

from __future__ import annotations

from typing import Final

import grpc

# Large enough for 256 vector queries of 4,096 dimensions, or for 1,000 passages with their text.
MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024

OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A peer that was killed is back within two seconds: look for it that often.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # In spite of its name, how long one attempt to connect may take (measured: it does not delay
    # the next one after a refusal). A peer whose machine is busy needs a while to answer.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    # A machine that vanishes sends no reset: notice within about 15 seconds.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Each target gets a connection of its own, also when two channels name the same address.
    ("grpc.use_local_subchannel_pool", 1),
    # Internal calls never leave for a proxy that the environment names.
    ("grpc.enable_http_proxy", 0),
)


def open_channel(address: str) -> grpc.aio.Channel:
    """Open a channel to `host:port`. It connects on first use, and again by itself."""
    return grpc.aio.insecure_channel(address, options=OPTIONS)
