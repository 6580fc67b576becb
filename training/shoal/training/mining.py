"""Which wrong passages look right to an encoder, and which of them may be right after all?

sentence-transformers mines: passages near the question by the encoder, none nearer than a share of
the right one's score (the margin of NV-Retriever, de Souza Moreira and others 2024,
https://arxiv.org/abs/2407.15831), and, if there is a cross-encoder, judged by its score and not by
the encoder's (RocketQA, Qu and others 2021, https://arxiv.org/abs/2010.08191). What `shoal mine`
finds in a serving cluster is read by pair_files.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.cross_encoder import CrossEncoder
from sentence_transformers.util import mine_hard_negatives
from shoal.training.pairs import Pair


@dataclass(frozen=True)
class MiningSettings:
    """How to mine."""

    negatives: int = 4
    """To a record; records for which fewer are found are left out."""
    first_rank: int = 1
    """Ranks before it are skipped: the nearest are the likeliest to be right."""
    last_rank: int = 50
    """Ranks looked at."""
    margin: float = 0.05
    """A wrong passage's score is lower than the right one's by this share of it, or more."""
    batch: int = 64
    """Texts encoded at once."""


def mine(
    pairs: Sequence[Pair],
    model: SentenceTransformer,
    settings: MiningSettings,
    *,
    judge: CrossEncoder | None = None,
) -> list[Pair]:
    """Give each record wrong passages from among the others' right ones, hardest first.

    judge: a cross-encoder, whose scores then decide about the margin. Records that get fewer than
    they should are left out.
    """
    prompts = model.prompts
    found = mine_hard_negatives(
        Dataset.from_dict(
            {
                "anchor": [pair.query for pair in pairs],
                "positive": [pair.positive for pair in pairs],
            }
        ),
        model,
        cross_encoder=judge,
        range_min=settings.first_rank,
        range_max=settings.last_rank,
        relative_margin=settings.margin,
        num_negatives=settings.negatives,
        sampling_strategy="top",
        output_format="n-tuple",
        batch_size=settings.batch,
        query_prompt=prompts.get("query") or None,
        corpus_prompt=prompts.get("document") or None,
        verbose=False,
    )
    sources = {(pair.query, pair.positive): pair for pair in pairs}
    names = [name for name in found.column_names if name.startswith("negative")]
    columns = [found[name] for name in names]
    negatives = zip(*columns, strict=True) if columns else itertools.repeat(())
    return [
        replace(sources[query, positive], negatives=tuple(wrong))
        for query, positive, wrong in zip(
            found["anchor"], found["positive"], negatives, strict=False
        )
    ]
