"""Which kinds of segments are there? One entry a kind; nothing else lists them."""

from __future__ import annotations

from typing import Final

from shoal.shard.codes import Codebook
from shoal.shard.kind import Kind
from shoal.shard.kind_hnsw import HnswKind
from shoal.shard.kind_names import KindName
from shoal.shard.kind_pq import PqKind
from shoal.shard.kind_rabitq import RabitqKind
from shoal.shard.kind_sq8 import Sq8Kind

_KINDS: Final[dict[KindName, Kind]] = {
    each.name: each for each in (PqKind(), Sq8Kind(), HnswKind(), RabitqKind())
}


def named(name: KindName) -> Kind:
    """The kind of that name."""
    return _KINDS[name]


def kind_of(codebook: Codebook) -> Kind:
    """The kind that a codebook's segments are of."""
    return _KINDS[codebook.manifest.kind]
