"""What has moved between a reference and now, and what is to be said of it?

Each of questions and passages is compared along the reference's principal components (stability
index), as a whole (discrepancy), by script, and by words that the tokenizer does not know;
questions by their best hit's score too, and answers by how often something in them was chosen.
Thresholds are the same everywhere: see `shoal.drift.stability`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.drift.discrepancy import discrepancy
from shoal.drift.samples import NO_SCRIPT, Sampled
from shoal.drift.stability import (
    CHANCE,
    Components,
    Shift,
    counts_of,
    edges_of,
    shift,
    shift_of_rates,
)
from shoal.drift.texts import SCRIPTS

# Fewer say nothing: with 200 an index of 0.25 is just beyond chance.
MIN_SAMPLE: Final = 200
# Answers that feedback came on.
MIN_ANSWERS: Final = 50
COMPONENTS: Final = 8
# Share of the kernel's mean from which a discrepancy is major. With large samples chance explains
# none, be it as small as it may; it grows as the square of the part that has moved.
MAJOR_DISCREPANCY: Final = 0.05
# Points in a picture.
MAX_POINTS: Final = 400
# Things that are named in an alert.
_NAMED: Final = 3
_COMPONENT: Final = "component"

QUERY: Final = "query"
PASSAGE: Final = "passage"

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """Something that was compared."""

    subject: str
    name: str
    alarming: bool
    before: float
    """A mean or a share."""
    now: float
    shift: Shift | None = None
    """None for the discrepancy."""
    discrepancy: float | None = None
    p_value: float | None = None
    bins: tuple[str, ...] = ()
    before_counts: tuple[float, ...] = ()
    now_counts: tuple[float, ...] = ()

    def shown(self) -> str:
        """For a person: what moved, and how far."""
        if self.p_value is not None:
            return f"{self.name}: discrepancy {self.discrepancy:.3f}, p {self.p_value:.1g}"
        assert self.shift is not None
        said = f"{self.name}: stability index {self.shift.index:.2f}"
        if self.is_component:
            return said  # Its numbers mean nothing to anybody.
        return f"{said}, {self.before:.2f} to {self.now:.2f}"

    @property
    def is_component(self) -> bool:
        """True for a principal component."""
        return self.name.startswith(_COMPONENT)


@dataclass(frozen=True)
class Points:
    """Where some lie in the plane of the reference's two strongest components: float64 [n, 2]."""

    subject: str
    reference: bool
    places: _Floats


def compare(
    subject: str, before: Sampled, now: Sampled, seed: int = 0
) -> tuple[list[Measure], list[Points]]:
    """Compare two samples, each of at least `MIN_SAMPLE`. About 0.3 s for a thousand of each.

    seed: of what is drawn at random.
    """
    old, new = before.vectors.astype(np.float64), now.vectors.astype(np.float64)
    found = Components.of(old, COMPONENTS)
    old_places, new_places = found.project(old), found.project(new)
    count = old_places.shape[1]
    measures = [_vectors(subject, old, new, seed)]
    measures += [
        _numbers(subject, f"{_COMPONENT} {at + 1}", old_places[:, at], new_places[:, at], count)
        for at in range(count)
    ]
    measures += [
        each
        for each in (
            _best_scores(subject, before, now),
            _scripts(subject, before, now),
            _unknown_words(subject, before, now),
        )
        if each is not None
    ]
    points = [
        Points(subject, reference, _thinned(places)[:, :2])
        for reference, places in ((True, old_places), (False, new_places))
    ]
    return measures, points


def _thinned(places: _Floats) -> _Floats:
    """No more than `MAX_POINTS` of them, of all times: they stand in the order they came in."""
    chosen = np.linspace(0, len(places) - 1, min(len(places), MAX_POINTS)).astype(np.int64)
    thinned: _Floats = places[chosen]
    return thinned


def compare_choices(before: tuple[int, int], now: tuple[int, int]) -> Measure | None:
    """Compare how often something in an answer was chosen: (answers with a choice, all); or not."""
    if min(before[1], now[1]) < MIN_ANSWERS:
        return None
    moved = shift_of_rates(before, now)
    return Measure(
        QUERY,
        "choices",
        moved.alarming,
        before[0] / before[1],
        now[0] / now[1],
        moved,
        bins=("chosen", "nothing chosen"),
        before_counts=(float(before[0]), float(before[1] - before[0])),
        now_counts=(float(now[0]), float(now[1] - now[0])),
    )


def alert_of(measures: Sequence[Measure], since: str) -> str:
    """What an operator has to know, and to do; empty if all is well. since: of the reference."""
    said = []
    for subject, name in ((QUERY, "questions"), (PASSAGE, "passages")):
        alarming = [each for each in measures if each.alarming and each.subject == subject]
        # First what says more than that something has moved.
        alarming.sort(key=lambda each: each.is_component)
        if alarming:
            more = f"; and {len(alarming) - _NAMED} more" if alarming[_NAMED:] else ""
            said.append(f"{name} ({'; '.join(each.shown() for each in alarming[:_NAMED])}{more})")
    if not said:
        return ""
    return (
        f"drift since {since}: {', '.join(said)}. `shoal drift INDEX --report FOLDER` shows it; "
        "judge the ranking on such questions, and train a model or build a version for them; or, "
        "if that is how it is to be from now on, `shoal drift INDEX --set-reference`"
    )


def _vectors(subject: str, before: _Floats, now: _Floats, seed: int) -> Measure:
    found = discrepancy(before, now, seed)
    return Measure(
        subject,
        "vectors",
        found.share >= MAJOR_DISCREPANCY and found.p_value <= CHANCE,
        0.0,
        found.squared,
        discrepancy=found.squared,
        p_value=found.p_value,
    )


def _numbers(subject: str, name: str, before: _Floats, now: _Floats, tests: int = 1) -> Measure:
    edges = edges_of(before)
    old, new = counts_of(before, edges), counts_of(now, edges)
    moved = shift(old, new, tests)
    return Measure(
        subject,
        name,
        moved.alarming,
        float(before.mean()),
        float(now.mean()),
        moved,
        bins=tuple(f"{each:.3f}" for each in edges),
        before_counts=tuple(old.tolist()),
        now_counts=tuple(new.tolist()),
    )


def _best_scores(subject: str, before: Sampled, now: Sampled) -> Measure | None:
    old = before.best_scores[np.isfinite(before.best_scores)].astype(np.float64)
    new = now.best_scores[np.isfinite(now.best_scores)].astype(np.float64)
    if min(len(old), len(new)) < MIN_SAMPLE:
        return None
    return _numbers(subject, "best score", old, new)


def _scripts(subject: str, before: Sampled, now: Sampled) -> Measure | None:
    def counts(sample: Sampled) -> _Floats:
        told = sample.scripts[sample.scripts != NO_SCRIPT]
        return np.bincount(told, minlength=len(SCRIPTS)).astype(np.float64)

    old, new = counts(before), counts(now)
    if min(old.sum(), new.sum()) < MIN_SAMPLE:
        return None
    moved, main = shift(old, new), int(old.argmax())
    used = np.flatnonzero(old + new)
    return Measure(
        subject,
        "script",
        moved.alarming,
        float(old[main] / old.sum()),
        float(new[main] / new.sum()),
        moved,
        bins=tuple(SCRIPTS[at].lower() for at in used),
        before_counts=tuple(old[used].tolist()),
        now_counts=tuple(new[used].tolist()),
    )


def _unknown_words(subject: str, before: Sampled, now: Sampled) -> Measure | None:
    def with_unknown(sample: Sampled) -> tuple[int, int]:
        told = sample.words > 0
        return int((sample.unknown[told] > 0).sum()), int(told.sum())

    old, new = with_unknown(before), with_unknown(now)
    if min(old[1], new[1]) < MIN_SAMPLE:
        return None
    # By text and not by word: the words of one text stand or fall together.
    moved = shift_of_rates(old, new)
    return Measure(
        subject,
        "unknown words",
        moved.alarming,
        float(before.unknown.sum() / before.words.sum()),
        float(now.unknown.sum() / now.words.sum()),
        moved,
        bins=("texts with some", "without"),
        before_counts=(float(old[0]), float(old[1] - old[0])),
        now_counts=(float(new[0]), float(new[1] - new[0])),
    )
