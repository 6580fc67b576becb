"""Who calls, and is it one of those that a canary has chosen?

A caller names itself in the metadata `shoal-caller`; one that does not is known by its address. The
same callers are chosen by every broker, and by every later call: a larger share adds some and takes
none away. Another candidate chooses others.
"""

from __future__ import annotations

from typing import Any, Final

import grpc
import xxhash

METADATA_KEY: Final = "shoal-caller"
# Longer names are cut: they are hashed for every search.
MAX_NAME_CHARS: Final = 256
_HASHES: Final = 1 << 64


def caller_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Name the caller of an RPC."""
    for key, value in context.invocation_metadata() or ():
        if key == METADATA_KEY and value:
            name = value if isinstance(value, str) else bytes(value).decode("latin-1")
            return name[:MAX_NAME_CHARS]
    # `ipv4:10.0.0.7:51234`: the port is another one for each connection.
    return str(context.peer()).rpartition(":")[0]


def is_chosen(caller: str, index_uid: str, candidate_version: int, share: float) -> bool:
    """True for a share of all callers, 0 to 1, that the index and the candidate decide on."""
    name = f"{index_uid}/{candidate_version}/{caller}"
    return bool(xxhash.xxh3_64_intdigest(name.encode()) < share * _HASHES)
