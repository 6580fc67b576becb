"""Which question does a caller ask next?

Real questions, chosen as people choose them: a few often, most hardly ever. The share of the k-th
most popular one is proportional to 1 / k^exponent.
"""

from __future__ import annotations

import bisect
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ZipfianChoice(Generic[Item]):
    """Chooses among items, which a seed has put into an order of popularity."""

    def __init__(self, items: Sequence[Item], *, exponent: float, seed: int) -> None:
        """Exponent: 0 chooses all alike; 1 is usual for queries; above, ever fewer items count.

        seed: the same seed makes the same items popular, and the same choices.
        """
        if not items:
            raise ValueError("there is nothing to choose from")
        if exponent < 0:
            raise ValueError(f"the exponent is {exponent}: it must be 0 or more")
        self._random = random.Random(seed)
        self._items = list(items)
        # The order of a file says nothing about popularity: neighbours are about one passage.
        self._random.shuffle(self._items)
        weights = (rank**-exponent for rank in range(1, len(items) + 1))
        self._cumulative = list(itertools.accumulate(weights))

    def reseed(self, seed: int) -> None:
        """Go on with other choices among the same popular items."""
        self._random.seed(seed)

    def next(self) -> Item:
        """Choose an item."""
        at = self._random.random() * self._cumulative[-1]
        # Rounding may put `at` on the very end.
        position = min(bisect.bisect_right(self._cumulative, at), len(self._items) - 1)
        return self._items[position]


def read_questions(path: Path) -> list[str]:
    """Read the texts of a BEIR-style queries.jsonl.

    Raises ValueError, naming the line, for one that has no text.
    """
    questions = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: no question here: {error!r}") from error
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{path}:{number}: the text is empty")
            questions.append(text)
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions
