"""How much does fine-tuning on package descriptions help, and what is forgotten for it?

`python -m shoal.training.debian_study OUT BUNDLE...` judges encoder bundles, as they are served:
which share of 2,000 held-out summaries find their description among the first ten of all there are
on this machine (about 60,000), and nDCG@10 and Recall@10 on a judged set in BEIR's layout that
training had nothing of. What was encoded is kept in OUT, so that a run that was cut off goes on.
`--train WEIGHTS` fine-tunes an encoder on the packages that are not held out, to be exported.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from ir_measures import RR, Qrel, R, ScoredDoc, calc_aggregate, nDCG
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from shoal.bundle import EncoderModel, load_bundle
from shoal.training.debian import iter_packages
from shoal.training.pair_files import read_beir_judged
from shoal.training.pairs import Pair, distinct, split
from shoal.training.title_bodies import package_pairs

HELD_OUT_QUERIES: Final = 2_000
# Passages are cut to this many tokens, before and after alike, as encoding 60,000 takes its time.
STUDY_TOKENS: Final = 32
SEED: Final = 13
# Small enough for two cores: about 3 seconds a step on busy ones.
SETTINGS: Final = {
    "steps": 150,
    "batch": 32,
    "max_tokens": STUDY_TOKENS,
    "rate": 3e-5,
    "temperature.schedule": "cosine",
    "check_every": 25,
    "dev_queries": 200,
    "dev_passages": 400,
    "seed": SEED,
}
_CHUNK: Final = 2_048
_JUDGED_DEPTH: Final = 100
MEASURES: Final = (nDCG @ 10, R @ 10, RR @ 10)

Report = Callable[[str], None]


def debian_sides() -> tuple[list[Pair], list[Pair]]:
    """Give the records of this machine's package lists: to learn from, and held out, both shuffled.

    Always the same ones for the same lists.
    """
    sides = split(distinct(package_pairs(iter_packages())))
    rng = random.Random(SEED)
    rng.shuffle(sides.train)
    rng.shuffle(sides.dev)
    return sides.train, sides.dev


def load_encoder(folder: Path, tokens: int | None, threads: int) -> EncoderModel:
    """Load a bundle that reads at most `tokens` tokens of a text. None: as many as it can."""
    bundle = load_bundle(folder)
    length = min(tokens or bundle.card.max_length, bundle.card.max_length)
    card = bundle.card.model_copy(update={"max_length": length})
    return EncoderModel(dataclasses.replace(bundle, card=card), threads=threads)


def encode_all(
    encoder: EncoderModel, texts: Sequence[str], folder: Path, report: Report = lambda _: None
) -> NDArray[np.float32]:
    """Encode passages, a file of `folder` a chunk: float32 [count, dimension], unit length.

    Chunks whose file is there are read and not encoded again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        path = folder / f"{start}-{start + len(chunk)}.npy"
        if not path.is_file():
            report(f"encoding passage {start:,} of {len(texts):,}")
            # Written whole or not at all, under a name that is its own.
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                np.save(file, encoder.encode(chunk, "passage"))
            part.replace(path)
        parts.append(np.load(path))
    return np.concatenate(parts)


def recall_at_ten(
    queries: NDArray[np.float32], passages: NDArray[np.float32], right: Sequence[int]
) -> float:
    """Share of questions whose right passage is among the ten nearest, exactly searched."""
    found = 0
    for start in range(0, len(queries), 256):
        scores = queries[start : start + 256] @ passages.T
        own = scores[np.arange(len(scores)), right[start : start + 256]]
        found += int(((scores > own[:, None]).sum(axis=1) < 10).sum())
    return found / len(queries)


def judged_measures(encoder: EncoderModel, folder: Path) -> dict[str, float]:
    """Judge an encoder by exact search on a set in BEIR's layout (its part `test`)."""
    queries, corpus, qrels = read_beir_judged(folder)
    passages = encoder.encode(list(corpus.values()), "passage")
    names = list(corpus)
    run = []
    for name, vector in zip(queries, encoder.encode(list(queries.values()), "query"), strict=True):
        scores = passages @ vector
        nearest = np.argsort(-scores, kind="stable")[:_JUDGED_DEPTH]
        run += [ScoredDoc(name, names[at], float(scores[at])) for at in nearest]
    judged = [Qrel(query, document, score) for query, document, score in qrels]
    return {
        str(name): float(value) for name, value in calc_aggregate(MEASURES, judged, run).items()
    }


def train(folder: Path, threads: int, report: Report) -> Any:
    """Fine-tune an encoder on what is not held out. Returns dual_encoder.Outcome.

    Goes on where it was cut off.
    """
    # Judging bundles needs no torch.
    from shoal.training.dual_encoder import CHECKPOINTS, train_encoder
    from shoal.training.settings import read_settings

    return train_encoder(
        *debian_sides(),
        folder,
        read_settings(None, SETTINGS | {"threads": threads}),
        resume=(folder / CHECKPOINTS).exists(),
        report=lambda step, doing: report(f"step {step}: {doing}"),
    )


def study(
    bundle: Path, out: Path, judged: Path, threads: int, report: Report, count: int | None = None
) -> dict[str, Any]:
    """Judge a bundle; its figures are kept in OUT, and read from there the next time.

    count: passages that are searched, the held-out ones first. None: all.
    """
    model = load_encoder(bundle, STUDY_TOKENS, threads)
    name = f"{model.bundle.card.name}-{model.bundle.fingerprint[:12]}"
    kept = out / f"{name}-{count or 'all'}.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    train, dev = debian_sides()
    asked = dev[:HELD_OUT_QUERIES]
    texts = [pair.positive for pair in [*dev, *train]][:count]
    passages = encode_all(model, texts, out / name, report)
    queries = model.encode([pair.query for pair in asked], "query")
    report("judging")
    whole = load_encoder(bundle, None, threads)
    figures = {
        "bundle": name,
        "passages": len(passages),
        "queries": len(asked),
        "tokens": STUDY_TOKENS,
        "recall@10": recall_at_ten(queries, passages, range(len(asked))),
        "judged": judged_measures(whole, judged),
    }
    kept.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge bundles and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("out", type=Path, help="Folder for what was encoded, and for figures.")
    parser.add_argument("bundles", type=Path, nargs="*", help="Encoder bundles.")
    parser.add_argument("--train", type=Path, metavar="WEIGHTS", help="Folder to train into.")
    parser.add_argument("--judged", type=Path, default=Path("deploy/corpora/xquad-en"))
    parser.add_argument("--passages", type=int, help="To search. None: all there are.")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_intermixed_args(arguments)
    console = Console()
    if options.train:
        console.print(train(options.train, options.threads, console.print))
    rows = Table(
        "bundle", "passages", "Debian Recall@10", *(f"judged {each}" for each in map(str, MEASURES))
    )
    for bundle in options.bundles:
        figures = study(
            bundle, options.out, options.judged, options.threads, console.print, options.passages
        )
        judged = (f"{figures['judged'][str(each)]:.4f}" for each in MEASURES)
        searched = f"{figures['passages']:,}"
        rows.add_row(figures["bundle"], searched, f"{figures['recall@10']:.4f}", *judged)
    if options.bundles:
        console.print(rows)


if __name__ == "__main__":
    main()
