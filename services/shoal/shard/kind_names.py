"""What are the kinds of segments called? The protos' names, as operators and manifests write them.

Imports nothing heavy: the controller and the command line name kinds and search none.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

from shoal.v1.search_pb2 import SearchKind

KindName = Literal["ivf-pq", "ivf-sq8", "hnsw", "ivf-rabitq"]
KIND_NAMES: Final[tuple[KindName, ...]] = get_args(KindName)
DEFAULT_KIND: Final[KindName] = "ivf-pq"

_PREFIX: Final = "SEARCH_KIND_"


def number_of(name: KindName | Literal["exact"]) -> SearchKind.ValueType:
    """The number of a kind that versions are built as, or of exact search."""
    return SearchKind.Value(_PREFIX + name.upper().replace("-", "_"))


def name_of(number: int) -> KindName | None:
    """The name of a kind that versions are built as; None for any other number."""
    return next((name for name in KIND_NAMES if number_of(name) == number), None)
