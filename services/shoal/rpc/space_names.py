"""What may a vector space be called, and how many may an index have?

Checked where a caller's request comes in, and again by the writer, which others may call.
"""

from __future__ import annotations

import re
from typing import Final

from shoal.rpc.errors import InvalidFieldError

# Every index has it: what promotions and rollouts are of.
DEFAULT_SPACE: Final = "default"
# Beside the default one. Each costs vectors in the table, memory in the shards, and encoders.
MAX_SPACES: Final = 4

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")


def check_space_name(name: str, path: str = "space") -> str:
    """Check the name of a space beside the default one. Raises InvalidFieldError."""
    if not _NAME.fullmatch(name):
        raise InvalidFieldError(
            path,
            f"{name!r} is no name for a vector space: a lower-case letter, then up to 62 "
            "lower-case letters, digits, - and _",
        )
    if name == DEFAULT_SPACE:
        raise InvalidFieldError(path, f"is {name!r}, the space that an index has anyhow")
    return name
