"""Does what was read agree with what was written, whoever did both at the same time?

A history is a log of writes and reads of keys, each with the time of its beginning and end, on one
clock. A write is acknowledged with a version; a read may ask for a version, and says which one it
was answered from. `violations` says which reads are wrong:

- a state that nobody had begun to write before the read ended;
- a state that was replaced or deleted at the version that was asked for, or answered from;
- a state that had expired before the read began;
- the absence of a state that the read had to find, and that was the only possible one.

It knows nothing of documents and clusters: a key is an id, and a state is whatever tells two states
of it apart, such as a content hash.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

State = Hashable
ABSENT: State = None
# What two clocks of one machine may differ by when times are converted.
_SLACK_S = 0.01


@dataclass(frozen=True)
class Write:
    """One operation on one key."""

    key: str
    # ABSENT for a deletion.
    state: State
    start_s: float
    # When it was acknowledged; infinity if it never was, so that it may take effect at any time.
    end_s: float
    # Version that holds it at the latest. None if it was not acknowledged.
    version: int | None
    # Place in its request: of two writes of one key in one request the later one wins.
    place: int = 0
    # From when on its state is absent without another write.
    expires_s: float = float("inf")

    def follows(self, other: Write) -> bool:
        """True if it takes effect after another one, whatever happened in between."""
        if self.start_s == other.start_s and self.end_s == other.end_s:
            return self.place > other.place
        return self.start_s >= other.end_s


@dataclass(frozen=True)
class Read:
    """What was seen of some keys."""

    start_s: float
    end_s: float
    # Version that it was answered from, which is no lower than the one that it asked for.
    version: int
    # A key may be seen in one state. ABSENT: it was looked up, and not there.
    seen: Mapping[str, State]
    # What it had to find unless there was a change: a key that is not seen at all is absent then.
    expected: Mapping[str, State] = field(default_factory=dict)
    # What it was, for whoever reads of a violation.
    name: str = "read"


class History:
    """Writes and reads, in any order."""

    def __init__(self) -> None:
        """Nothing was done yet."""
        self.writes: dict[str, list[Write]] = {}
        self.reads: list[Read] = []

    def write(self, *writes: Write) -> None:
        """Note writes; at the latest when somebody may have seen them and `violations` is asked."""
        for each in writes:
            self.writes.setdefault(each.key, []).append(each)

    def read(self, read: Read) -> None:
        """Note a read."""
        self.reads.append(read)

    def possible(self, key: str, read: Read) -> set[State]:
        """The states that a read may see of a key."""
        # Absent before the first write. A list that is not empty begins with what came before.
        before = Write(key, ABSENT, float("-inf"), float("-inf"), 0)
        begun = [before, *(each for each in self.writes.get(key, ()) if each.start_s <= read.end_s)]
        in_effect = [
            each for each in begun if each.version is not None and each.version <= read.version
        ]
        last = [each for each in begun if not any(later.follows(each) for later in in_effect)]
        return {
            *(each.state for each in last if read.start_s < each.expires_s + _SLACK_S),
            *(ABSENT for each in last if read.end_s > each.expires_s - _SLACK_S),
        }

    def violations(self) -> list[str]:
        """What is wrong, a sentence each. Empty if every read is right."""
        return [problem for read in self.reads for problem in self._problems(read)]

    def _problems(self, read: Read) -> Iterable[str]:
        when = f"{read.name} at version {read.version}, {read.start_s:.3f}-{read.end_s:.3f} s"
        for key, state in read.seen.items():
            if state not in (allowed := self.possible(key, read)):
                yield f"{when}: {key} was seen as {_shown(state)}, not {_all(allowed)}"
        for key, state in read.expected.items():
            if key not in read.seen and self.possible(key, read) == {state}:
                yield f"{when}: {key} was not found, and could only be {_shown(state)}"

    def save(self, path: Path) -> None:
        """Write it to a file, a line of JSON for each operation, by the time of its beginning."""
        writes = [("write", each) for listed in self.writes.values() for each in listed]
        reads = [("read", each) for each in self.reads]
        ordered = sorted([*writes, *reads], key=lambda each: each[1].start_s)
        with path.open("w", encoding="utf-8") as file:
            for kind, each in ordered:
                file.write(json.dumps({"kind": kind} | vars(each), default=_shown) + "\n")


def _all(states: Iterable[State]) -> str:
    return " or ".join(sorted(map(_shown, states)))


def _shown(state: object) -> str:
    return state.hex()[:12] if isinstance(state, bytes) else str(state)
