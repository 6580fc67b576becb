"""Which documents match a filter? Filters of several selectivities, and what they mean in Python.

A condition is a filter's text and a function of a document's metadata, written beside each other
and by hand: they have nothing in common that could be wrong in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np

# As an index declares them. Documents also carry a `note` that nobody declares.
FIELDS: Final = {
    "lang": "string",
    "year": "integer",
    "price": "float",
    "draft": "boolean",
    "seen": "timestamp",
    "tags": "strings",
}
LANGS: Final = ("en", "de", "fr", 'a "b" \\ ü')
TAGS: Final = tuple(f"tag{at}" for at in range(12))
FIRST_YEAR, END_YEAR = 2000, 2030
# Part of the documents that lack a field, for each field; some of them have null instead.
_ABSENT: Final = 0.2

Metadata = Mapping[str, Any]


@dataclass(frozen=True)
class Condition:
    """A filter, and what it means."""

    text: str
    matches: Callable[[Metadata], bool]


def metadata(random: np.random.Generator) -> dict[str, Any]:
    """What a document says of itself."""
    month = int(random.integers(1, 13))
    values = {
        "lang": str(random.choice(LANGS[:3], p=[0.6, 0.3, 0.1])),
        "year": int(random.integers(FIRST_YEAR, END_YEAR)),
        "price": float(random.integers(0, 1000)) / 4,
        "draft": bool(random.random() < 0.3),
        "seen": f"2024-{month:02}-01T12:00:00Z",
        "tags": [str(each) for each in random.choice(TAGS, int(random.integers(0, 4)))],
    }
    if random.random() < 0.02:
        values["lang"] = LANGS[3]
    for field in FIELDS:
        if random.random() < _ABSENT:
            if random.random() < 0.5:
                values[field] = None
            else:
                del values[field]
    return values | {"note": f"note {random.integers(1000)}"}


def conditions(random: np.random.Generator) -> list[Condition]:
    """A filter of each form, from those that nearly all documents match to those that none does."""
    lang, tag, other = str(random.choice(LANGS)), *map(str, random.choice(TAGS, 2))
    year = int(random.integers(FIRST_YEAR, END_YEAR - 3))
    price, month = float(random.integers(0, 1000)) / 4, int(random.integers(1, 13))
    quoted = lang.replace("\\", "\\\\").replace('"', '\\"')
    moment = datetime.fromisoformat(f"2024-{month:02}-01T12:00:00+00:00")
    return [
        Condition(f'!("{tag}" in tags)', lambda it: not _holds(it, tag)),
        Condition("year < 1900", lambda it: _is(it, "year", lambda year: year < 1900)),
        Condition(
            "has(price) && !has(year)", lambda it: _has(it, "price") and not _has(it, "year")
        ),
        Condition(f'lang == "{quoted}"', lambda it: it.get("lang") == lang),
        Condition(f'lang != "{quoted}"', lambda it: _is(it, "lang", lambda its: its != lang)),
        Condition(
            f'!(lang == "{quoted}" || draft)',
            lambda it: not (it.get("lang") == lang or it.get("draft")),
        ),
        Condition(
            f"year >= {year} && year < {year + 3}",
            lambda it: _is(it, "year", lambda its: year <= its < year + 3),
        ),
        Condition(
            f"{year} == year && price > {price!r}",
            lambda it: it.get("year") == year and _is(it, "price", lambda its: its > price),
        ),
        Condition(f'"{tag}" in tags', lambda it: _holds(it, tag)),
        Condition(
            f'"{tag}" in tags && "{other}" in tags',
            lambda it: _holds(it, tag) and _holds(it, other),
        ),
        Condition(
            f'lang in ["de", "fr"] && (draft || "{tag}" in tags)',
            lambda it: (
                it.get("lang") in ("de", "fr") and (it.get("draft") is True or _holds(it, tag))
            ),
        ),
        Condition(
            f'seen >= timestamp("{moment.isoformat()}") && draft == false',
            lambda it: (
                it.get("draft") is False
                and _is(it, "seen", lambda its: datetime.fromisoformat(its) >= moment)
            ),
        ),
        Condition(
            f"price <= {price!r} || !has(tags)",
            lambda it: _is(it, "price", lambda its: its <= price) or not _has(it, "tags"),
        ),
    ]


def some(random: np.random.Generator, count: int) -> list[Condition]:
    """Some of them."""
    all_ = conditions(random)
    return [all_[at] for at in random.choice(len(all_), count, replace=False)]


def _has(it: Metadata, field: str) -> bool:
    return it.get(field) is not None


def _is(it: Metadata, field: str, test: Callable[[Any], bool]) -> bool:
    return _has(it, field) and test(it[field])


def _holds(it: Metadata, tag: str) -> bool:
    return _is(it, "tags", lambda tags: tag in tags)
