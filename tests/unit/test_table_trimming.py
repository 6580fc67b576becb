"""May what is trimmed go, whatever was written, and does every follower learn what it must?"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.table import Retention, Trimmed, plan_trim, slot_of, table_schema
from shoal.table.trimming import COLUMNS, NEVER_US

KEEP = Retention(superseded_us=10, tombstones_us=100)
ALL_SLOTS = (0, 1024)


@dataclass(frozen=True)
class Op:
    """An operation; its rows are of no interest."""

    document: str
    sequence: int
    at_us: int
    tombstone: bool = False
    expires_us: int = NEVER_US


def rows_of(ops, repeat=1):
    layout = table_schema(1)
    columns = {
        "document_id": [op.document for op in ops],
        "sequence": [op.sequence for op in ops],
        "tombstone": [op.tombstone for op in ops],
        "updated_at": [op.at_us for op in ops],
        "expires_at": [None if op.expires_us == NEVER_US else op.expires_us for op in ops],
    }
    return pa.table(
        {
            name: pa.chunked_array([pa.array(columns[name] * repeat, layout.field(name).type)])
            for name in COLUMNS
        }
    )


def trim(ops, now_us, retention=KEEP):
    return plan_trim(rows_of(ops), retention, now_us)


def test_what_was_replaced_goes_once_nobody_reads_it():
    ops = [Op("a", 0, 0), Op("a", 1, 5), Op("a", 2, 50), Op("b", 3, 50)]
    assert trim(ops, 14).superseded.tolist() == []
    assert trim(ops, 15).superseded.tolist() == [0]
    # Replaced again and again, each state goes by the time of the one after it.
    assert trim(ops, 59).superseded.tolist() == [0]
    assert trim(ops, 60).superseded.tolist() == [0, 1]
    assert plan_trim(rows_of(ops, repeat=3), KEEP, 60).superseded.tolist() == [0, 1]


def test_a_tombstone_goes_last_and_late():
    ops = [Op("a", 0, 0), Op("a", 1, 5, tombstone=True)]
    plan = trim(ops, 104)
    assert (plan.superseded.tolist(), plan.tombstones.tolist()) == ([0], [])
    assert trim(ops, 105).tombstones.tolist() == [1]
    # A clock that went back: what the tombstone hides is still needed, so it stays.
    ops = [Op("a", 0, 0), Op("a", 1, 200), Op("a", 2, 5, tombstone=True)]
    plan = trim(ops, 205)
    assert (plan.superseded.tolist(), plan.tombstones.tolist()) == ([1], [])
    # One that was written over is a replaced operation like any other.
    ops = [Op("a", 0, 0, tombstone=True), Op("a", 1, 5)]
    plan = trim(ops, 300)
    assert (plan.superseded.tolist(), plan.tombstones.tolist()) == ([0], [])


def test_what_has_expired_is_to_be_deleted_and_then_goes_at_once():
    ops = [Op("a", 0, 0, expires_us=7), Op("b", 1, 0, expires_us=8)]
    assert trim(ops, 7).expired == ("a",)
    assert set(trim(ops, 8).expired) == {"a", "b"}
    deleted = [*ops, Op("a", 2, 7, tombstone=True)]
    plan = trim(deleted, 7)
    assert (plan.superseded.tolist(), plan.expired) == ([0], ())
    # A newer state without an end is not expired.
    assert trim([*ops, Op("a", 2, 3)], 7).expired == ()


def test_nothing_is_planned_for_nothing():
    plan = trim([], 1000)
    assert (plan.superseded.tolist(), plan.tombstones.tolist(), plan.expired) == ([], [], ())


def test_a_record_of_what_is_trimmed_only_rises_and_survives_being_written():
    trimmed = Trimmed().within({3: 10, 700: 20})
    assert trimmed.highest == 20
    assert trimmed.passed(9, (0, 4))
    assert not trimmed.passed(10, (0, 4))
    assert not trimmed.passed(0, (4, 700))
    assert Trimmed.from_json(trimmed.to_json()) == trimmed
    raised = trimmed.everywhere(15)
    assert (raised.floor, dict(raised.slots)) == (15, {700: 20})
    assert raised.everywhere(3) == raised == raised.within({3: 12, 700: 19})
    assert raised.passed(14, (4, 5))
    assert Trimmed.from_json(None) == Trimmed()
    assert not Trimmed().passed(-1, ALL_SLOTS)


@dataclass
class Log:
    """A table, cleaned as the writer cleans it, and the truth about it."""

    ops: list[Op] = field(default_factory=list)
    present: dict[str, Op] = field(default_factory=dict)
    trimmed: Trimmed = field(default_factory=Trimmed)
    now_us: int = 0
    sequence: int = 0

    def write(self, document, tombstone=False, expires_us=NEVER_US):
        op = Op(document, self.sequence, self.now_us, tombstone, expires_us)
        self.sequence += 1
        self.ops.append(op)
        if tombstone:
            self.present.pop(document, None)
        else:
            self.present[document] = op

    def clean(self, until):
        """One cleaning, killed after `until` of its steps."""
        steps = 0

        def killed():
            nonlocal steps
            steps += 1
            return steps > until

        for document in trim(self.ops, self.now_us).expired:
            if killed():
                return
            self.write(document, tombstone=True)
        plan = trim(self.ops, self.now_us)
        if killed():
            return
        self.remove(plan.superseded)
        if len(plan.tombstones):
            if killed():
                return
            self.trimmed = self.trimmed.everywhere(int(plan.tombstones[-1]))
            if killed():
                return
            self.remove(plan.tombstones)

    def purge(self, document, until):
        self.write(document, tombstone=True)
        gone = [op.sequence for op in self.ops if op.document == document]
        if until > 0:
            self.trimmed = self.trimmed.within({slot_of(document): max(gone)})
        if until > 1:
            self.remove(np.array(gone))

    def remove(self, sequences):
        self.ops = [op for op in self.ops if op.sequence not in set(sequences.tolist())]

    def state(self, since=-1, before=None):
        """What a follower has who had `before`, at `since`."""
        found = dict(before or {})
        for op in sorted(self.ops, key=lambda op: op.sequence):
            if op.sequence > since:
                found.pop(op.document, None)
                if not op.tombstone:
                    found[op.document] = op
        return found

    def alive(self, state):
        return {key: op for key, op in state.items() if op.expires_us > self.now_us}

    def reach(self):
        return max([-1, self.trimmed.highest, *(op.sequence for op in self.ops)])


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from("abcd")),
        st.tuples(st.just("expiring"), st.sampled_from("abcd")),
        st.tuples(st.just("delete"), st.sampled_from("abcd")),
        st.tuples(st.just("purge"), st.sampled_from("abcd"), st.integers(0, 2)),
        st.tuples(st.just("clean"), st.integers(0, 6)),
        st.tuples(st.just("wait"), st.sampled_from([1, 10, 60, 120])),
        st.tuples(st.just("follow")),
    ),
    max_size=40,
)


def take(step, log, followers):
    match step:
        case ("write", document):
            log.write(document)
        case ("expiring", document):
            log.write(document, expires_us=log.now_us + 15)
        case ("delete", document):
            log.write(document, tombstone=True)
        case ("purge", document, until):
            log.purge(document, until)
        case ("clean", until):
            log.clean(until)
        case ("wait", us):
            log.now_us += us
        case _:
            followers.append((log.reach(), log.state()))


def check_follower(log, cursor, state):
    reached, present = log.alive(log.state(cursor, state)), log.alive(log.present)
    if not log.trimmed.passed(cursor, ALL_SLOTS):
        assert reached == present
    for document in "abcd":
        slot = slot_of(document)
        if not log.trimmed.passed(cursor, (slot, slot + 1)):
            assert reached.get(document) == present.get(document)


@settings(max_examples=400, deadline=None)
@given(steps)
def test_the_present_never_changes_by_cleaning_and_followers_reach_it_or_start_anew(script):
    log, followers = Log(), []
    for step in script:
        take(step, log, followers)
        assert log.alive(log.state()) == log.alive(log.present)
        # A writer that starts again goes on from here: no sequence is given twice.
        assert log.reach() == log.sequence - 1
        for cursor, state in followers:
            check_follower(log, cursor, state)
