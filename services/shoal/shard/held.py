"""What does a shard server hold, and in which state is each part?

       segments, other shards, table         caught up
    wanted ───────────────────────> loaded ─────────────> ready ──> (dropped when not wanted)
       ^                              │                     │
       └───── after a pause ──────────┴──── it failed ──────┘

Threads share these objects; each attribute is replaced as a whole, and says who writes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from shoal.internal.v1.shard_pb2 import LayoutKey, ShardState
from shoal.shard.codes import Codebook
from shoal.shard.fill import write_time
from shoal.shard.live_recall import LiveRecall
from shoal.shard.shard import Main, Shard, View
from shoal.table.trimming import NEVER_US

_LOADING: Final = "it is being loaded"


@dataclass(frozen=True)
class LayoutId:
    """One way of dividing an index into shards."""

    index_uid: str
    index_version: int
    shard_count: int

    @classmethod
    def of(cls, key: LayoutKey) -> LayoutId:
        """Read it from a message."""
        return cls(key.index_uid, key.index_version, key.shard_count)

    def to_proto(self) -> LayoutKey:
        """The same as a message."""
        return LayoutKey(
            index_uid=self.index_uid,
            index_version=self.index_version,
            shard_count=self.shard_count,
        )


@dataclass(frozen=True)
class LayoutPlan:
    """What a server should hold of a layout."""

    codebook_uri: str
    shards: frozenset[int]


@dataclass(frozen=True)
class IndexPlan:
    """What a server should hold of an index, of one model."""

    table_uri: str
    dimension: int
    layouts: dict[LayoutId, LayoutPlan]
    # Whose vectors its layouts hold; empty: those of the model that the table was made with.
    model: str = ""
    # Layouts of the index that the server holds beside them, of other models.
    others: frozenset[LayoutId] = frozenset()


@dataclass(eq=False)
class HeldShard:
    """A shard that the server holds, or is about to."""

    number: int
    # Set by the load; removed by the follower if it cannot be followed.
    shard: Shard | None = None
    # Set by the follower, once the shard has caught up.
    ready: bool = False
    # Why it is not ready.
    message: str = _LOADING
    # What is wrong although it can be searched, such as a disk that takes no segment any more.
    note: str = ""
    # True while the background works on it: one load, fold or snapshot at a time.
    busy: bool = False
    # The main segment that was saved last, and when.
    saved: Main | None = None
    saved_s: float = float("-inf")
    # Not to be loaded before.
    retry_s: float = float("-inf")

    def fail(self, message: str, retry_s: float) -> None:
        """Take it out of service until it has been loaded again."""
        self.shard, self.ready, self.message, self.retry_s = None, False, message, retry_s


@dataclass(eq=False)
class HeldLayout:
    """The shards of a layout that the server holds."""

    id: LayoutId
    codebook_uri: str
    dimension: int
    # Set by the first load; None in a layout that is searched exactly.
    codebook: Codebook | None = None
    # Replaced, never changed, by the follower of the topology.
    shards: dict[int, HeldShard] = field(default_factory=dict)
    # What is known of its live queries; None in a layout that is searched exactly.
    live: LiveRecall | None = None
    # Whose vectors it holds; empty: those of the model that the table was made with.
    model: str = ""

    @property
    def effort(self) -> float:
        """Times as hard as its codebook's measured parameters that it is searched."""
        return 1.0 if self.live is None else self.live.effort

    @property
    def exact(self) -> bool:
        """True if it has no codebook."""
        return not self.codebook_uri and self.codebook is None

    def states(self) -> list[ShardState]:
        """States of all shards."""
        return [self.state(number) for number in sorted(self.shards)]

    def state(self, number: int) -> ShardState:
        """State of one shard, which need not be on this server."""
        state = ShardState(layout=self.id.to_proto(), shard=number)
        held = self.shards.get(number)
        if held is None:
            state.message = f"shard {number} is not on this server"
            return state
        shard = held.shard
        if shard is None or not held.ready:
            why = f"{held.message}; {held.note}" if held.note else held.message
            state.message = f"shard {number}: {why}"
            return state
        view = shard.view
        state.ready = True
        state.message = held.note
        state.table_version = view.cursor.version
        state.document_count = view.document_count
        state.passage_count = view.passage_count
        state.kind = view.main.segment.kind
        state.tail_count = view.tail_live.live_count
        state.memory_bytes = view.memory_bytes
        write_next_expiry(view, state)
        if self.live is not None:
            _add_live(state, self.live)
        return state


def write_next_expiry(view: View, state: ShardState) -> None:
    """Write until when a view holds into a shard's state."""
    state.ClearField("next_expiry")
    if view.next_expiry_us < NEVER_US:
        write_time(view.next_expiry_us, state.next_expiry)


def _add_live(state: ShardState, live: LiveRecall) -> None:
    state.search_effort = live.effort
    known = live.shards.get(state.shard)
    if known is not None:
        state.recall, state.recall_query_count, state.recall_neighbour_count = known
    if live.alert:
        state.message = f"{state.message}; {live.alert}" if state.message else live.alert
