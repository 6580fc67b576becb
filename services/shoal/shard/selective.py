"""How are codes searched for what a filter leaves?

Recall must not depend on the filter. Where many match, the codes are searched: each kind looks as
much further as it takes to be sure of what it finds (`Kind.narrowed_probe`). Where few match,
comparing the query with all of those is cheaper, and exact up to the wide code.

What is cheaper is decided by counting nanoseconds, with the prices that search parameters are
chosen by (`shoal.shard.codebook`): what the kind says that its search costs, reading a survivor's
wide code once for the queries of a block, and multiplying it with each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shoal.shard.codes import Manifest
from shoal.shard.kind import Kind
from shoal.shard.survivors import Part, count_of

# Measured at 384 numbers on one core.
_READ_NS: Final = 60.0
_COMPARED_NS: Final = 25.0


def is_narrow(
    kind: Kind, manifest: Manifest, top_k: int, query_count: int, parts: Sequence[Part]
) -> bool:
    """True if comparing each query with all that matches is cheaper than searching codes.

    manifest: the codebook's, with the search parameters that are in force.
    """
    exact_ns = count_of(parts) * (_READ_NS / query_count + _COMPARED_NS)
    return exact_ns <= kind.narrowed_ns(manifest, top_k, parts)
