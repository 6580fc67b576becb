"""Does the validator of histories find every kind of wrong read, and no right one wrong?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.history import ABSENT, History, Read, Write

FOREVER = float("inf")


def write(state, start_s, end_s, version, key="a", place=0):
    return Write(key, state, start_s, end_s, version, place)


def problems(writes, read):
    history = History()
    history.write(*writes)
    history.read(read)
    return history.violations()


FIRST, SECOND = write("one", 1, 2, 10), write("two", 5, 6, 20)
DELETED = write(ABSENT, 5, 6, 20)
EXPIRING = Write("a", "one", 1, 2, 10, expires_s=5)


@pytest.mark.parametrize(
    ("writes", "read"),
    [
        # Each begins before a write ends, or is answered from before it.
        ([FIRST], Read(0, 1.5, 0, {"a": "one"})),
        ([FIRST], Read(0, 1.5, 0, {"a": ABSENT})),
        ([FIRST, SECOND], Read(5, 7, 10, {"a": "one"})),
        ([FIRST, SECOND], Read(5, 7, 10, {"a": "two"})),
        ([FIRST, SECOND], Read(9, 9, 10, {"a": "one"})),
        ([FIRST, SECOND], Read(9, 9, 20, {"a": "two"}, {"a": "two"})),
        ([FIRST, DELETED], Read(9, 9, 20, {})),
        ([FIRST, DELETED], Read(5, 9, 10, {}, {"a": "one"})),
        # Nobody knows whether it was written.
        ([FIRST, write("two", 5, FOREVER, None)], Read(90, 91, 10, {"a": "two"})),
        ([FIRST, write("two", 5, FOREVER, None)], Read(90, 91, 10, {"a": "one"})),
        # Two at once: either may have come last.
        ([FIRST, write("two", 1, 3, 11)], Read(9, 9, 11, {"a": "one"})),
        ([FIRST, write("two", 1, 3, 11)], Read(9, 9, 11, {"a": "two"})),
        ([FIRST, write("two", 1, 2, 10, place=1)], Read(9, 9, 10, {"a": "two"})),
        # It expires before, while and after it is read.
        ([EXPIRING], Read(6, 7, 10, {"a": ABSENT})),
        ([EXPIRING], Read(4, 6, 10, {"a": ABSENT})),
        ([EXPIRING], Read(4, 6, 10, {}, {"a": "one"})),
        ([EXPIRING], Read(4, 6, 10, {"a": "one"})),
        ([EXPIRING], Read(3, 4, 10, {"a": "one"}, {"a": "one"})),
        ([EXPIRING, write("two", 3, 4, 20)], Read(6, 7, 20, {"a": "two"}, {"a": "two"})),
    ],
)
def test_right_reads(writes, read):
    assert problems(writes, read) == []


@pytest.mark.parametrize(
    ("writes", "read", "said"),
    [
        ([FIRST], Read(0, 0.5, 0, {"a": "one"}), "seen as one, not None"),
        ([FIRST], Read(3, 4, 10, {"a": ABSENT}), "seen as None, not one"),
        ([FIRST], Read(3, 4, 10, {"a": "other"}), "seen as other, not one"),
        ([FIRST], Read(3, 4, 10, {}, {"a": "one"}), "a was not found, and could only be one"),
        ([FIRST, DELETED], Read(7, 8, 20, {"a": "one"}), "seen as one, not None"),
        ([FIRST, SECOND], Read(7, 8, 20, {"a": "one"}), "seen as one, not two"),
        ([FIRST, SECOND], Read(7, 8, 20, {"b": "one"}), "b was seen as one, not None"),
        ([EXPIRING], Read(6, 7, 10, {"a": "one"}), "seen as one, not None"),
        ([EXPIRING], Read(3, 4, 10, {"a": ABSENT}), "seen as None, not one"),
        (
            [FIRST, replace(EXPIRING, start_s=3, end_s=4, version=20)],
            Read(6, 7, 20, {"a": "one"}),
            "not None",
        ),
        (
            [FIRST, write("two", 1, 2, 10, place=1)],
            Read(9, 9, 10, {"a": "one"}),
            "seen as one, not two",
        ),
        (
            [FIRST, DELETED, write("two", 7, FOREVER, None)],
            Read(8, 9, 20, {"a": "one"}),
            "seen as one, not None or two",
        ),
    ],
)
def test_wrong_reads(writes, read, said):
    (problem,) = problems(writes, read)
    assert said in problem


@given(seed=st.integers(0, 2**32), lag=st.booleans())
def test_a_true_run_has_no_violation_and_a_stale_one_has(seed, lag):
    """A register that is written in order; reads take what it held at the version they name."""
    random = np.random.default_rng(seed)
    history, held = History(), [(0, ABSENT)]
    now_s = 0.0
    for version in range(1, 20):
        state = ABSENT if random.random() < 0.3 else f"state {version}"
        history.write(write(state, now_s, now_s + 1, version))
        held.append((version, state))
        now_s += 1
        at, seen = held[int(random.integers(0, len(held)))] if lag else held[-1]
        history.read(Read(now_s, now_s + 1, at, {"a": seen}))
        now_s += 1
    assert history.violations() == []
    history.read(Read(now_s, now_s, 19, {"a": "state 0"}))
    assert len(history.violations()) == 1


def test_it_is_saved_in_order(tmp_path: Path):
    history = History()
    history.write(SECOND, write(b"\x01\x02", 1, 2, 10))
    history.read(Read(3, 4, 10, {"a": b"\x01\x02"}))
    path = tmp_path / "history.jsonl"
    history.save(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [each["kind"] for each in lines] == ["write", "read", "write"]
    assert lines[0]["state"] == "0102"
