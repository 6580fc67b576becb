"""Does the load test of a living index know what is right, and say so?"""

import math

import numpy as np
import pytest

from loadtest.living import Plan, judge_all, parse
from loadtest.living_report import print_living
from loadtest.oracle import Asked, Oracle
from loadtest.phases import (
    REST,
    Figures,
    Phase,
    Targets,
    figures_of,
    judge,
    undisturbed,
    window_means,
)
from loadtest.resident import by_part, per_vector
from loadtest.traffic import Kept, Outcome, WriteTally
from loadtest.vectors import Vectors, VectorSet, unit
from loadtest.witness import Standstill, Witness, merged

TOP_K = 3
RANDOM = np.random.default_rng(8)
BASE = unit(RANDOM.standard_normal((200, 8)))
QUERIES = unit(RANDOM.standard_normal((5, 8)))
# The first are as close to the queries as can be.
FURTHER = np.concatenate([QUERIES, unit(RANDOM.standard_normal((95, 8)))])


def an_oracle() -> Oracle:
    return Oracle(BASE, FURTHER, QUERIES, TOP_K)


def nearest(vectors: dict[int, np.ndarray], query: int, count: int = TOP_K) -> list[int]:
    """The right documents of a state, by comparing everything."""
    ranked = sorted(vectors, key=lambda document: -float(vectors[document] @ QUERIES[query]))
    return ranked[:count]


def asked(vectors, query, known_s, done_s, documents=None) -> Asked:
    documents = nearest(vectors, query) if documents is None else documents
    scores = [float(vectors[each] @ QUERIES[query]) for each in documents]
    return Asked(query, known_s, done_s, documents, scores)


def test_random_histories_are_judged_as_by_comparing_everything():
    for seed in range(20):
        random = np.random.default_rng(seed)
        oracle, state = an_oracle(), dict(enumerate(BASE))
        answers = []
        for step in range(90):
            now_s = 10.0 * step
            document = int(random.integers(230))
            if random.random() < 0.3:
                write = oracle.begin(document, None, now_s)
                state.pop(document, None)
            else:
                write = oracle.begin(document, step, now_s)
                state[document] = FURTHER[step]
            oracle.acknowledge(write, now_s + 1.0)
            answers.append(asked(dict(state), step % 5, now_s + 2.0, now_s + 3.0))
        assert [(each.recall, each.outdated) for each in oracle.judge(answers)] == [(1.0, 0)] * 90


def test_recall_is_the_share_of_the_right_documents():
    state = dict(enumerate(BASE))
    best = nearest(state, 0, 10)
    found = [best[0], best[1], best[9]]
    (judged,) = an_oracle().judge([asked(state, 0, 1.0, 2.0, found)])
    assert judged.recall == pytest.approx(2 / 3)
    assert judged.outdated == 0


def test_while_a_write_is_under_way_either_state_is_right_and_later_only_one():
    before = dict(enumerate(BASE))
    best = nearest(before, 1)[0]
    after = {document: vector for document, vector in before.items() if document != best}
    oracle = an_oracle()
    write = oracle.begin(best, None, 100.0)
    oracle.acknowledge(write, 110.0)
    judged = oracle.judge(
        [
            asked(before, 1, 90.0, 95.0),
            asked(after, 1, 90.0, 95.0),  # Gone before anybody had said so.
            asked(before, 1, 99.0, 105.0),
            asked(after, 1, 99.0, 105.0),
            asked(after, 1, 111.0, 112.0),
            asked(before, 1, 111.0, 112.0),  # It came back.
        ]
    )
    assert [each.recall == 1.0 for each in judged] == [True, False, True, True, True, False]
    assert [each.outdated for each in judged] == [0, 0, 0, 0, 0, 1]


def test_a_replaced_vector_that_is_still_found_is_outdated():
    before = dict(enumerate(BASE))
    best = nearest(before, 2)[0]
    other = int(np.argmin(FURTHER @ QUERIES[2]))
    oracle = an_oracle()
    write = oracle.begin(best, other, 100.0)
    oracle.acknowledge(write, 110.0)
    judged = oracle.judge(
        [asked(before, 2, 105.0, 109.0), asked(before, 2, 111.0, 112.0)],
    )
    assert [each.outdated for each in judged] == [0, 1]
    assert judged[0].recall == 1.0
    assert judged[1].recall < 1.0


def test_a_replaced_document_must_be_found_as_one_of_its_vectors():
    before = dict(enumerate(BASE))
    best = nearest(before, 3)[0]
    oracle = an_oracle()
    oracle.begin(best, 3, 100.0)  # Never acknowledged.
    without = {document: vector for document, vector in before.items() if document != best}
    judged = oracle.judge([asked(without, 3, 200.0, 201.0), asked(before, 3, 200.0, 201.0)])
    assert [each.recall for each in judged] == [pytest.approx(2 / 3), 1.0]


def test_a_document_that_was_never_written_is_outdated():
    found = Asked(0, 1.0, 2.0, [5_000], [0.9])
    assert an_oracle().judge([found])[0].outdated == 1


def test_candidates_that_died_are_replaced_by_further_ones():
    oracle, state = an_oracle(), dict(enumerate(BASE))
    for document in nearest(state, 4, 150):
        write = oracle.begin(document, None, 1.0)
        oracle.acknowledge(write, 2.0)
        del state[document]
    (judged,) = oracle.judge([asked(state, 4, 3.0, 4.0)])
    assert judged.recall == 1.0


def an_outcome(due_s: float, latency_ms: float = 10.0, **changes) -> Outcome:
    values = {"query": 0, "due_s": due_s, "sent_s": due_s, "fresh": False}
    return Outcome(**(values | {"done_s": due_s + latency_ms / 1e3} | changes))


def test_windows_cover_all_and_the_last_takes_the_rest():
    values = [(0.0, 1.0), (9.9, 0.0), (10.0, 0.5), (21.0, 0.7), (24.9, 0.3)]
    assert window_means(values, 10.0) == [0.5, pytest.approx(0.5)]
    assert window_means([(0.5, 0.25)], 10.0) == [0.25]
    assert window_means([], 10.0) == []


def test_figures_are_of_the_queries_that_were_due_in_the_phase():
    from loadtest.oracle import Judged

    judged = [
        (an_outcome(9.9, 500.0), Judged(0.0, 5)),
        (an_outcome(10.0, 10.0), Judged(1.0, 0)),
        (an_outcome(19.0, 30.0, fresh=True), Judged(0.8, 1)),
        (an_outcome(19.5, failure="UNAVAILABLE: gone"), Judged(0.0, 0)),
        (an_outcome(29.9, 20.0, complete=False), Judged(0.9, 0)),
        (an_outcome(30.0, 500.0), Judged(0.0, 5)),
    ]
    found = figures_of(Phase("build", 10.0, 30.0, 12.0, "n"), judged, window_s=10.0)
    assert (found.queries, found.failed, found.incomplete, found.outdated) == (4, 1, 1, 1)
    assert found.recall == pytest.approx(0.9)
    assert found.lowest_recall == pytest.approx(0.9)
    assert (found.p50_ms, found.p99_ms) == (pytest.approx(20.0), pytest.approx(30.0))
    assert found.fresh_p99_ms == pytest.approx(30.0)
    assert (found.failure, found.note, found.took_s) == ("UNAVAILABLE: gone", "n", 12.0)
    empty = figures_of(Phase("build", 90.0, 91.0), judged, window_s=10.0)
    assert math.isnan(empty.lowest_recall)


def test_what_fell_into_a_standstill_is_told_apart():
    from loadtest.oracle import Judged

    slow, after = an_outcome(12.17, 400.0), an_outcome(12.7, 300.0)
    # Long before it, and slow of itself: it counts.
    own = an_outcome(12.0, 100.0)
    outcomes = [an_outcome(10.0), own, slow, after, an_outcome(13.5, 20.0)]
    # Half a second, in two parts, and a quarter for what had queued up.
    standstills = merged([(12.2, 12.3), (12.4, 12.7)])
    assert standstills == [Standstill(12.2, pytest.approx(12.95))]
    assert undisturbed(outcomes, standstills) == [outcomes[0], own, outcomes[4]]
    judged = [(each, Judged(1.0, 0)) for each in outcomes]
    phase = Phase("build", 10.0, 30.0)
    found = figures_of(phase, judged, window_s=10.0, standstills=standstills)
    assert (found.p99_ms, found.undisturbed_p99_ms) == (pytest.approx(400), pytest.approx(100))
    assert found.disturbed == 2
    unknown = figures_of(phase, judged, window_s=10.0)
    assert (unknown.undisturbed_p99_ms, unknown.disturbed) == (None, None)


def test_standstills_far_from_each_other_are_several():
    assert merged([(1.0, 1.1), (2.0, 2.1)]) == [
        Standstill(1.0, pytest.approx(1.35)),
        Standstill(2.0, pytest.approx(2.35)),
    ]


def test_a_witness_says_what_it_saw_or_that_it_may_not_watch():
    witness = Witness()
    with witness:
        assert witness.standstills is None
    assert witness.standstills is None or all(
        each.from_s < each.until_s for each in witness.standstills
    )


def some_figures(phase: str, **changes) -> Figures:
    values = {
        "phase": phase,
        "seconds": 30.0,
        "took_s": 1.0,
        "queries": 100,
        "failed": 0,
        "incomplete": 0,
        "outdated": 0,
        "recall": 0.96,
        "lowest_recall": 0.945,
        "p50_ms": 5.0,
        "p99_ms": 20.0,
        "worst_ms": 30.0,
        "fresh_p99_ms": 20.0,
    }
    return Figures(**(values | changes))


def verdict_of(figures, tally=None, kept=None, wanted_writes=100.0):
    return judge(
        figures,
        resting_ms=[5.0] * 98 + [10.0] * 2,
        writes=tally or WriteTally(upserts=90, deletes=10),
        wanted_writes=wanted_writes,
        kept=kept or Kept(100, 0, 0),
        targets=Targets(),
    )


def test_a_run_that_meets_every_target_ends_with_zero():
    verdict = verdict_of([some_figures(REST, p99_ms=900.0), some_figures("build")])
    assert verdict.ratios == {"build": 2.0}
    assert verdict.undisturbed_ratios is None
    assert all(verdict.met.values())
    assert verdict.exit_code == 0


def test_ratios_of_the_undisturbed_are_told_and_decide_nothing():
    figures = [some_figures(REST), some_figures("build", p99_ms=20.1, undisturbed_p99_ms=6.0)]
    verdict = judge(
        figures,
        resting_ms=[10.0] * 100,
        undisturbed_ms=[4.0] * 100,
        writes=WriteTally(upserts=90, deletes=10),
        wanted_writes=100.0,
        kept=Kept(100, 0, 0),
        targets=Targets(),
    )
    assert verdict.undisturbed_ratios == {"build": 1.5}
    assert verdict.exit_code == 1


@pytest.mark.parametrize(
    ("figures", "tally", "kept"),
    [
        ([some_figures("build", failed=1)], None, None),
        ([some_figures("build", incomplete=1)], None, None),
        ([some_figures("build", outdated=1)], None, None),
        ([some_figures("build", lowest_recall=0.9399)], None, None),
        ([some_figures("build", lowest_recall=math.nan)], None, None),
        ([some_figures("build", p99_ms=20.1)], None, None),
        ([some_figures("build")], WriteTally(upserts=99, failed=1), None),
        ([some_figures("build")], WriteTally(upserts=94), None),
        ([some_figures("build")], None, Kept(100, 1, 0)),
        ([some_figures("build")], None, Kept(100, 0, 1)),
    ],
)
def test_each_target_that_is_missed_is_one_and_ends_with_one(figures, tally, kept):
    verdict = verdict_of(figures, tally, kept)
    assert list(verdict.met.values()).count(False) == 1
    assert verdict.exit_code == 1


def test_a_run_without_a_change_or_a_write_proves_nothing():
    assert verdict_of([some_figures(REST)]).exit_code == 1
    assert verdict_of([some_figures("build")], kept=Kept(0, 0, 0)).exit_code == 1


def test_only_queries_that_named_a_version_must_have_seen_the_last_second():
    state = dict(enumerate(BASE))
    best = nearest(state, 0)
    oracle = an_oracle()
    write = oracle.begin(best[0], None, 10.0)
    oracle.acknowledge(write, 10.5)
    scores = tuple(float(state[each] @ QUERIES[0]) for each in best)
    outcomes = [
        an_outcome(11.0, fresh=fresh, documents=tuple(best), scores=scores)
        for fresh in (False, True)
    ]
    outcomes.append(an_outcome(11.0, failure="UNKNOWN: x"))
    judged = judge_all(Plan(slack_s=1.0), outcomes, oracle)
    assert [(outcome.fresh, worth.outdated) for outcome, worth in judged] == [
        (False, 0),
        (True, 1),
        (False, 0),
    ]


def test_further_vectors_are_of_the_same_clouds_and_none_is_in_the_table(tmp_path):
    vectors = Vectors(VectorSet(count=2_000, dimension=16, cluster_count=20), tmp_path)
    further = vectors.more(300, seed=1)
    assert further.shape == (300, 16)
    scores = (further @ np.asarray(vectors.rows).T).max(axis=1)
    assert scores.max() < 0.9999
    assert np.median(scores) > 0.7
    np.testing.assert_array_equal(further, vectors.more(300, seed=1))
    assert not np.array_equal(further, vectors.more(300, seed=2))


def test_resident_memory_is_told_apart_by_file():
    lines = [
        "7f00-7f10 r--s 00000000 fe:00 17    /x/shard-0000.000001/lists.bin\n",
        "Size:               4096 kB\n",
        "Rss:                1024 kB\n",
        "7f10-7f20 r--s 00000000 fe:00 18    /x/shard-0000.000001/wide.npy (deleted)\n",
        "Rss:                  64 kB\n",
        "Pss:                   1 kB\n",
        "7f20-7f30 rw-p 00000000 00:00 0 \n",
        "Rss:                   8 kB\n",
        "7f30-7f40 r--s 00000000 fe:00 19    /x/ids.arrow\n",
        "Rss:                   4 kB\n",
    ]
    found = by_part(lines)
    assert {part: size // 1024 for part, size in found.items()} == {
        "codes and ids": 1024,
        "wide codes": 64,
        "directory": 4,
        "process": 8,
    }
    each = per_vector(found, {"process": 4096}, 1024)
    assert each == {"codes and ids": 1024, "wide codes": 64, "directory": 4, "process": 4}


def test_command_line_states_the_issue_s_setting_by_default(tmp_path):
    chosen = parse(["--cache", str(tmp_path)])
    assert (chosen.vectors, chosen.upserts_per_s, chosen.deletes_per_s) == (1_000_000, 200, 20)
    with pytest.raises(SystemExit):
        parse([])


def test_the_report_names_what_was_missed(capsys):
    results = {
        "plan": {
            "vectors": {"count": 1_000, "dimension": 8},
            "queries_per_s": 40.0,
            "upserts_per_s": 200,
            "deletes_per_s": 20,
        },
        "phases": [vars(some_figures("build", failure="UNAVAILABLE: gone", failed=1))],
        "ratios": {"build": 2.5},
        "undisturbed_ratios": {"build": 1.75},
        "writes": {
            "upserts": 10,
            "deletes": 1,
            "per_s": 11.0,
            "failed": 0,
            "checked": 11,
            "lost": 0,
            "resurrected": 0,
        },
        "met": {"queries that failed: 0": False, "writes that failed: 0": True},
    }
    print_living(results)
    printed = capsys.readouterr().out
    assert "NOT MET: queries that failed: 0" in printed
    assert "met: writes that failed: 0" in printed
    assert "UNAVAILABLE: gone" in printed
    assert "2.50" in printed
    assert "1.75" in printed
