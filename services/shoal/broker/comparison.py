"""How alike are two rankings? Pure functions over lists of ids, best first, each id once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

# How deep rank-biased overlap looks: the weight of rank r is PERSISTENCE ** (r - 1), and the first
# ten ranks have 86% of it.
PERSISTENCE: Final = 0.9


def overlap(first: Sequence[str], second: Sequence[str]) -> float:
    """Part of the ids that both have, of as many as the longer one has; 1 if both are empty."""
    longer = max(len(first), len(second))
    return len(set(first) & set(second)) / longer if longer else 1.0


def rank_biased_overlap(
    first: Sequence[str], second: Sequence[str], persistence: float = PERSISTENCE
) -> float:
    """Extrapolated rank-biased overlap, 0 to 1: agreement at the top counts most.

    Webber, Moffat and Zobel, "A similarity measure for indefinite rankings", ACM TOIS 28(4), 2010,
    equation 32, which takes rankings of different length.
    """
    if not first or not second:
        return 1.0 if not first and not second else 0.0
    short, long_ = sorted((first, second), key=len)
    at_short = len(set(short) & set(long_[: len(short)]))
    seen_short: set[str] = set()
    seen_long: set[str] = set()
    common, total = 0, 0.0
    for depth in range(1, len(long_) + 1):
        added = {long_[depth - 1]}
        seen_long |= added
        if depth <= len(short):
            added.add(short[depth - 1])
            seen_short.add(short[depth - 1])
        common += sum(each in seen_short and each in seen_long for each in added)
        total += common / depth * persistence**depth
        if depth > len(short):
            missing = at_short * (depth - len(short)) / (len(short) * depth)
            total += missing * persistence**depth
    tail = (common - at_short) / len(long_) + at_short / len(short)
    return (1 - persistence) / persistence * total + tail * float(persistence ** len(long_))


def kendall_tau(first: Sequence[str], second: Sequence[str]) -> float:
    """Kendall's tau over the ids that both have, -1 to 1; NaN if these are fewer than two.

    Kendall, "A new measure of rank correlation", Biometrika 30, 1938: pairs in the same order less
    those in the other one, of all. There are no ties, as ranks have none.
    """
    places = {each: place for place, each in enumerate(second)}
    order = [places[each] for each in first if each in places]
    pairs = len(order) * (len(order) - 1) // 2
    if pairs == 0:
        return math.nan
    same = sum(a < b for at, a in enumerate(order) for b in order[at + 1 :])
    return 2 * same / pairs - 1
