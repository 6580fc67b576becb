"""What does reranking cost, and what does it gain?

    python -m loadtest.rerank_curve --bundle FOLDER --judged FOLDER [--judged FOLDER] --out FILE.png

Finds hybrid candidates once for each judged set (BEIR's layout), reranks them in several ways, and
draws nDCG@10 gained on average over the sets against the milliseconds of a question, one question
at a time on two threads, the best of several runs, as other programs may be about. Only draws:
nothing is chosen here.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from shoal.bundle import BlendCard, Bundle, EncoderModel, RerankerModel, load_bundle
from shoal.training.blend_questions import DEPTH, Judged
from shoal.training.hybrid import HybridCorpus
from shoal.training.weighing import blend, ndcg, rerank

ENCODER: Final = Path(__file__).resolve().parents[1] / "deploy/bundles/all-minilm-l6-v2-int8"
THREADS: Final = 2
READS: Final = (2, 4, 8, 12, 20)
WIDTHS: Final = (32, 64)
# Questions that are timed, and how often each.
TIMED: Final = 10
RUNS: Final = 4


@dataclass(frozen=True)
class Point:
    """One way of reranking."""

    line: str
    label: str
    milliseconds: float
    """Of a question."""
    gained: dict[str, float]
    """nDCG@10 above the hybrid order, by set."""

    @property
    def mean(self) -> float:
        """Over the sets."""
        return float(np.mean(list(self.gained.values())))


def read_judged(folder: Path, encoder: EncoderModel, limit: int) -> list[Judged]:
    """Read a judged set, and search for each of its questions, `limit` evenly spread ones."""
    documents = list(_lines(folder, "corpus"))
    places = {each["_id"]: place for place, each in enumerate(documents)}
    relevant: dict[str, dict[int, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, score = line.split()
        if int(score) > 0:
            relevant.setdefault(query, {})[places[document]] = int(score)
    questions = [each for each in _lines(folder, "queries") if each["_id"] in relevant]
    chosen = np.unique(np.linspace(0, len(questions) - 1, min(limit, len(questions))).astype(int))
    texts = [
        f"{each['title']}. {each['text']}" if each.get("title") else each["text"]
        for each in documents
    ]
    corpus = HybridCorpus(texts, encoder)
    judged = []
    for question in (questions[at] for at in chosen):
        found = corpus.search(question["text"], DEPTH)
        passages = [texts[place] for place in found.places]
        name = folder.name if folder.name != "en" else folder.parent.name
        judged.append(Judged(name, question["text"], relevant[question["_id"]], found, passages))
    return judged


def _lines(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    plain = folder / f"{name}.jsonl"
    with plain.open() if plain.exists() else gzip.open(f"{plain}.gz", "rt") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def measure(bundle: Bundle, judged: Sequence[Judged]) -> Iterator[Point]:
    """Rerank all questions in several ways."""
    card = bundle.card.blend
    assert card is not None
    unread = [np.zeros(len(each.passages), dtype=np.float32) for each in judged]
    yield Point("company alone", "", 0.0, _gained(judged, unread, card))
    for width in WIDTHS:
        everything = _read_by(bundle, width, READS[-1])
        whole = [rerank(everything, each) for each in judged]
        for read in READS:
            model = _read_by(bundle, width, read)
            scores = [
                _first(each, read_first, model)
                for each, read_first in zip(judged, whole, strict=True)
            ]
            milliseconds = _milliseconds(model, judged)
            line, alone = f"windows of {width} tokens", card.model_copy(update={"affinity": 0.0})
            yield Point(line, f"{read}", milliseconds, _gained(judged, scores, alone))
            line += ", and company"
            yield Point(line, f"{read}", milliseconds, _gained(judged, scores, card))


def _read_by(bundle: Bundle, width: int, read: int) -> RerankerModel:
    """The bundle's model, reading so many candidates and so much of each."""
    assert bundle.card.blend is not None
    blended = bundle.card.blend.model_copy(update={"read": read})
    card = bundle.card.model_copy(update={"passage_tokens": width, "blend": blended})
    return RerankerModel(Bundle(bundle.folder, card, bundle.fingerprint), threads=THREADS)


def _first(
    question: Judged, scores: NDArray[np.float32], model: RerankerModel
) -> NDArray[np.float32]:
    """The scores of what `model` would have read."""
    kept = np.full_like(scores, np.nan)
    places = model.readable(question.found.scores)
    kept[places] = scores[places]
    return kept


def _gained(
    judged: Sequence[Judged], scores: Sequence[NDArray[np.float32]], card: BlendCard
) -> dict[str, float]:
    """nDCG@10 above the hybrid order, by set."""
    gains: dict[str, list[float]] = {}
    for each, read in zip(judged, scores, strict=True):
        ordered = blend(each, read, card.weight, card.affinity)
        gains.setdefault(each.kind, []).append(ndcg(each, ordered) - ndcg(each, each.found.scores))
    return {kind: round(float(np.mean(values)), 4) for kind, values in gains.items()}


def _milliseconds(model: RerankerModel, judged: Sequence[Judged]) -> float:
    """Of a question: the median over some, of the best of several runs each."""
    took_ms = []
    for question in judged[:: max(1, len(judged) // TIMED)]:
        runs = []
        for _ in range(RUNS):
            started_s = time.perf_counter()
            rerank(model, question)
            runs.append((time.perf_counter() - started_s) * 1e3)
        took_ms.append(min(runs))
    return round(float(np.median(took_ms)), 2)


def draw(points: Sequence[Point], out: Path, title: str) -> None:
    """Draw the curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for line in dict.fromkeys(each.line for each in points):
        own = [each for each in points if each.line == line]
        style = "o--" if "company" not in line else "o-"
        axes.plot([p.milliseconds for p in own], [p.mean for p in own], style, label=line, ms=4)
        for point in own:
            where = (point.milliseconds, point.mean)
            axes.annotate(point.label, where, xytext=(4, -9), textcoords="offset points", size=8)
    axes.axvline(60, color="grey", lw=1, ls=":")
    axes.set(xlabel="ms a question, two threads", ylabel="nDCG@10 gained over hybrid", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title=f"numbers: candidates read, of {DEPTH}")
    figure.savefig(out, dpi=120)


def main() -> None:
    """Read the command line, measure, write the picture and its numbers beside it."""
    parser = argparse.ArgumentParser(description="Draw what reranking costs and gains.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--judged", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=150, help="questions of each set, at most")
    options = parser.parse_args()
    encoder = EncoderModel(load_bundle(ENCODER), threads=THREADS)
    judged = [q for each in options.judged for q in read_judged(each, encoder, options.limit)]
    bundle = load_bundle(options.bundle)
    points = []
    for point in measure(bundle, judged):
        print(point, flush=True)
        points.append(point)
    sets = ", ".join(dict.fromkeys(each.kind for each in judged))
    draw(points, options.out, f"{bundle.card.name}, mean of {sets}")
    rows = [vars(each) | {"mean": round(each.mean, 4)} for each in points]
    document = {"model": bundle.model, "questions": len(judged), "points": rows}
    options.out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
