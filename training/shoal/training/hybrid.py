"""Which candidates does a hybrid search find in a list of passages?

The search of a cluster with its defaults, in a few lines of NumPy, to choose on what comes after
it: cosine of the encoder's vectors and BM25, both divided by their greatest, summed by weight.
`shoal.broker.fusion` and `shoal.shard.bm25` say why.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.bundle import EncoderModel
from shoal.lexical.analysis import DEFAULT_ANALYZER, analyzer_of

LEXICAL_WEIGHT: Final = 0.4
# Of either kind.
CANDIDATES: Final = 50
_K1, _B = 1.2, 0.75


@dataclass(frozen=True)
class Found:
    """The best candidates of a question, best first."""

    places: NDArray[np.intp]
    """Positions of the passages."""
    scores: NDArray[np.float32]
    """Fused."""
    similarities: NDArray[np.float32]
    """Inner products of their vectors with one another."""


class HybridCorpus:
    """Passages that can be searched."""

    def __init__(self, passages: Sequence[str], encoder: EncoderModel) -> None:
        """Encodes and analyses all passages, which takes about 10 ms each."""
        self.passages, self._encoder = passages, encoder
        self._vectors = encoder.encode(passages, "passage")
        analyzer = analyzer_of(DEFAULT_ANALYZER)
        assert analyzer is not None
        self._terms = analyzer.terms
        counts = [Counter(self._terms(passage)) for passage in passages]
        lengths = np.array([each.total() for each in counts], dtype=np.float64)
        mean = lengths.sum() / max(len(lengths), 1)
        self._damping = _K1 * (1 - _B + _B * lengths / max(mean, 1.0))
        postings: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for place, each in enumerate(counts):
            for term, frequency in each.items():
                postings[term].append((place, frequency))
        self._postings = {term: np.array(found).T for term, found in postings.items()}

    def search(self, question: str, count: int) -> Found:
        """The best `count` candidates of a question."""
        dense = self._vectors @ self._encoder.encode([question], "query")[0]
        lexical = self._bm25(question)
        by_words = np.argsort(-lexical, kind="stable")[:CANDIDATES]
        places = np.union1d(
            np.argsort(-dense, kind="stable")[:CANDIDATES], by_words[lexical[by_words] > 0]
        )
        greatest, most = max(float(dense[places].max()), 1e-3), float(lexical[places].max()) or 1.0
        fused = (1 - LEXICAL_WEIGHT) * np.maximum(dense[places], 0.0) / greatest
        fused += LEXICAL_WEIGHT * lexical[places] / most
        best = np.argsort(-fused, kind="stable")[:count]
        vectors = self._vectors[places[best]]
        scores = (fused[best] * greatest).astype(np.float32)
        return Found(places[best], scores, vectors @ vectors.T)

    def _bm25(self, question: str) -> NDArray[np.float64]:
        scores = np.zeros(len(self.passages))
        for term, count in Counter(self._terms(question)).items():
            if (found := self._postings.get(term)) is not None:
                places, frequencies = found
                rarity = np.log1p((len(scores) - len(places) + 0.5) / (len(places) + 0.5))
                scores[places] += (
                    count * rarity * frequencies / (frequencies + self._damping[places])
                )
        return scores
