"""Does late interaction earn a stage: what does it gain on what a hybrid search found, and cost?

    python -m loadtest.late_interaction --bundle FOLDER --judged FOLDER [--judged FOLDER] \
        --out FILE.json

Compares the tokens of a question with those of each candidate (token_vectors.py), beside the same
candidates as the hybrid search orders them and as the reranker of `--bundle` does. Which layer, how
much of it is kept, how tokens are weighed and how the score is blended is chosen on the questions
that choose the reranker's blend (blend_questions.py), and by the same rule; judged sets (BEIR's
layout) are only judged. Times are of one question at a time on NumPy's and ONNX Runtime's threads,
the best of several runs, as other programs may be about; what it takes to fetch stored vectors is
not among them. `--cache` keeps what takes minutes, to go on from.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import pickle
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from shoal.bundle import BlendCard, EncoderModel, RerankerModel, load_bundle
from shoal.training.blend_questions import Judged, build_questions, machine_sources
from shoal.training.debian import iter_packages
from shoal.training.interaction import rarity_of_tokens
from shoal.training.leakage import JudgedTexts
from shoal.training.title_bodies import manual_pairs, package_pairs
from shoal.training.weighing import TOLERANCE, blend, choose, means, ndcg, rerank

from loadtest.rerank_curve import ENCODER, RUNS, THREADS, TIMED, read_judged
from loadtest.token_vectors import (
    Space,
    TokenEncoder,
    Tokens,
    Vectors,
    max_sim,
    principal,
    restored,
    squeezed,
)

LAYERS: Final = (0, 1, 2)
DIMENSIONS: Final = (128, 64)
# Passages that principal directions are learnt on: some 150,000 tokens.
LEARNT_ON: Final = 1_200
# As the blend of the reranker that ships was chosen (shoal.training.msmarco).
PASSAGES: Final = 3_000
SEED: Final = 13
_VOCABULARY: Final = 30_522
_RARITY: Final = rarity_of_tokens(_VOCABULARY).numpy()

Made = TypeVar("Made")
Scores = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Near:
    """A question's tokens, and how near they come to its candidates."""

    ids: NDArray[np.int64]
    closest: Vectors
    """The greatest cosines: float32 [spaces, tokens, candidates]."""


@dataclass(frozen=True)
class Option:
    """A way of comparing tokens, with the blend that suits it best."""

    space: Space
    number: int
    """Of the space."""
    rare: bool
    """Tokens weigh by their rarity, not alike."""
    scale: float
    """Brings the scores to the reranker's spread, for which the weights to choose from are made."""
    chosen: BlendCard
    gained: float
    """nDCG@10 over the hybrid order, mean over the kinds of question."""

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return f"{self.space.name}, {'rarity' if self.rare else 'alike'}"


def learn_spaces(encoder: TokenEncoder, questions: Sequence[Judged]) -> list[Space]:
    """Learn what may be kept of tokens, on training texts that share no words with `questions`."""
    right = [
        text
        for each in questions
        for place, passage in zip(each.found.places, each.passages, strict=True)
        if int(place) in each.relevant
        for text in (each.text, passage)
    ]
    rng = random.Random(SEED)
    pairs = [*package_pairs(iter_packages()), *manual_pairs()]
    pairs = JudgedTexts(right).without(rng.sample(pairs, min(2 * LEARNT_ON, len(pairs))))
    texts = [each.positive for each in pairs[:LEARNT_ON]]
    hidden: dict[int, list[Vectors]] = defaultdict(list)
    for _, tokens, _ in encoder.encode(texts):
        for layer, vectors in tokens.hidden.items():
            hidden[layer].append(vectors)
    return [space for layer in LAYERS for space in _spaces(layer, np.concatenate(hidden[layer]))]


def _spaces(layer: int, hidden: Vectors) -> Iterator[Space]:
    for centred in (False, True):
        kind = f"{layer} before the last{', centred' if centred else ''}"
        mean, directions = principal(hidden, max(DIMENSIONS), centred=centred)
        yield Space(f"layer {kind}, {hidden.shape[1]} fp16", layer, mean, None)
        for dimension in DIMENSIONS:
            name = f"layer {kind}, {dimension} int8"
            yield Space(name, layer, mean, directions[:, :dimension], eight_bit=True)


def interact(
    questions: Sequence[Judged], encoder: TokenEncoder, spaces: Sequence[Space]
) -> tuple[list[Near], float]:
    """Compare each question with its candidates. Returns that, and a passage's mean tokens.

    Nothing is stored: each passage is compared with all questions that found it, in turn.
    """
    asked = _encoded(encoder, [each.text for each in questions])
    turned = [[space.question(tokens) for tokens in asked] for space in spaces]
    askers: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, each in enumerate(questions):
        for place, passage in enumerate(each.passages):
            askers[passage].append((number, place))
    found = [
        np.zeros((len(spaces), len(tokens.ids), len(each.passages)), dtype=np.float32)
        for tokens, each in zip(asked, questions, strict=True)
    ]
    passages, count = list(askers), 0
    for at, tokens, _ in encoder.encode(passages):
        count += len(tokens.ids)
        theirs = askers[passages[at]]
        near = np.stack(
            [
                (
                    np.concatenate([of_space[number] for number, _ in theirs])
                    @ space.passage(tokens).T
                ).max(axis=1)
                for space, of_space in zip(spaces, turned, strict=True)
            ]
        )
        cuts = np.cumsum([len(asked[number].ids) for number, _ in theirs])[:-1]
        for (number, place), part in zip(theirs, np.split(near, cuts, axis=1), strict=True):
            found[number][:, :, place] = part
    nears = [Near(tokens.ids, each) for tokens, each in zip(asked, found, strict=True)]
    return nears, count / max(len(passages), 1)


def _encoded(encoder: TokenEncoder, texts: Sequence[str]) -> list[Tokens]:
    found = {at: tokens for at, tokens, _ in encoder.encode(texts)}
    return [found[at] for at in range(len(texts))]


def weights_of(ids: NDArray[np.int64], *, rare: bool) -> Vectors:
    """How much each token of a question weighs: float32 [tokens]; one of nothing but marks, too."""
    return np.asarray(_RARITY[ids] + 1e-3 if rare else np.ones(len(ids)), dtype=np.float32)


def scores_of(nears: Sequence[Near], number: int, *, rare: bool) -> Scores:
    """MaxSim of each question's candidates: means over its tokens, float32 [candidates] each."""
    found = []
    for each in nears:
        weights = weights_of(each.ids, rare=rare)
        found.append((weights @ each.closest[number] / weights.sum()).astype(np.float32))
    return found


def spread_of(scores: Scores) -> float:
    """The standard deviation over a question's candidates that have a score, mean of questions."""
    return float(np.mean([np.nanstd(each) for each in scores]))


def choose_option(
    card: BlendCard,
    questions: Sequence[Judged],
    nears: Sequence[Near],
    spaces: Sequence[Space],
    spread: float,
) -> tuple[Option, list[Option]]:
    """Choose the least bytes among the options that are as good as the best; and all of them.

    spread: of the reranker's scores.
    """
    options = []
    for (number, space), rare in itertools.product(enumerate(spaces), (False, True)):
        scores = scores_of(nears, number, rare=rare)
        scale = spread / spread_of(scores)
        chosen = choose(card, questions, [scale * each for each in scores])
        options.append(Option(space, number, rare, scale, chosen.blend, chosen.gained))
        print(f"  {options[-1].name}: nDCG@10 +{chosen.gained:.4f}", flush=True)
    enough = max(each.gained for each in options) - TOLERANCE
    good = [each for each in options if each.gained >= enough]
    return min(good, key=lambda each: (each.space.token_bytes, -each.gained)), options


@dataclass(frozen=True)
class Scored:
    """Questions, and what late interaction and the reranker make of their candidates."""

    questions: Sequence[Judged]
    late: Scores
    """Brought to the reranker's spread."""
    read: Scores
    after: Sequence[Judged]
    """The questions as late interaction hands them on."""
    read_after: Scores
    """By the reranker, of what stands first after late interaction."""


@dataclass(frozen=True)
class Contest:
    """The ways of ordering candidates that are compared, all chosen on development questions."""

    card: BlendCard
    """Of the reranker."""
    option: Option
    company: BlendCard
    """For candidates that nothing has read."""
    both: BlendCard
    """For the reranker after late interaction."""

    def orders(self, scored: Scored) -> dict[str, Scores]:
        """What each way orders the candidates of questions by."""
        unread = [np.zeros_like(each) for each in scored.late]
        return {
            "hybrid": [each.found.scores for each in scored.questions],
            "company alone": _blended(scored.questions, unread, self.company),
            "reranker": _blended(scored.questions, scored.read, self.card),
            "late interaction": _blended(scored.questions, scored.late, self.option.chosen),
            "late interaction, then reranker": _blended(scored.after, scored.read_after, self.both),
        }


def score(
    reranker: RerankerModel,
    option: Option,
    questions: Sequence[Judged],
    nears: Sequence[Near],
    number: int,
) -> Scored:
    """Score the candidates of questions. number: of the option's space in `nears`."""
    late = [option.scale * each for each in scores_of(nears, number, rare=option.rare)]
    read = [rerank(reranker, each) for each in questions]
    weight = np.float32(option.chosen.weight)
    after = [
        replace(each, found=replace(each.found, scores=each.found.scores + weight * scores))
        for each, scores in zip(questions, late, strict=True)
    ]
    return Scored(questions, late, read, after, [rerank(reranker, each) for each in after])


def _blended(questions: Sequence[Judged], scores: Scores, card: BlendCard) -> Scores:
    return [
        blend(each, read, card.weight, card.affinity)
        for each, read in zip(questions, scores, strict=True)
    ]


def compare(contest: Contest, scored: Scored) -> dict[str, object]:
    """nDCG@10 by way and kind, and how far late interaction is above the reranker, by kind."""
    questions = scored.questions
    by_way, gains = {}, {}
    for way, scores in contest.orders(scored).items():
        gains[way] = np.array([ndcg(*each) for each in zip(questions, scores, strict=True)])
        by_way[way] = {kind: round(value, 4) for kind, value in means(questions, scores).items()}
    kinds = np.array([each.kind for each in questions])
    apart = gains["late interaction"] - gains["reranker"]
    margins = {kind: margin(apart[kinds == kind]) for kind in dict.fromkeys(kinds.tolist())}
    return {"ndcg": by_way, "late above reranker": margins}


def margin(differences: NDArray[np.float64]) -> list[float]:
    """Mean of paired differences, and half of its 95% interval."""
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return [round(float(differences.mean()), 4), round(float(1.96 * error), 4)]


def time_stages(
    questions: Sequence[Judged], encoder: TokenEncoder, option: Option, reranker: RerankerModel
) -> dict[str, float]:
    """Milliseconds of a question, of late interaction and of the reranker.

    Of the former: the question's hidden states are there from encoding it, its projection and the
    unpacking of the candidates' eight-bit numbers count.
    """
    space, rare = option.space, option.rare
    took: dict[str, list[float]] = defaultdict(list)
    for each in questions[:: max(1, len(questions) // TIMED)]:
        (asked,) = _encoded(encoder, [each.text])
        kept = [space.question(tokens) for tokens in _encoded(encoder, each.passages)]
        starts = np.cumsum([0, *map(len, kept)])[:-1]
        packed = squeezed(np.concatenate(kept))

        def late(
            asked: Tokens = asked,
            packed: tuple[NDArray[np.int8], NDArray[np.float16]] = packed,
            starts: NDArray[np.intp] = starts,
        ) -> None:
            weights = weights_of(asked.ids, rare=rare)
            max_sim(space.question(asked), weights, restored(*packed), starts)

        took["late interaction"].append(_best_ms(late))
        took["reranker"].append(_best_ms(functools.partial(rerank, reranker, each)))
    return {stage: round(float(np.median(times)), 2) for stage, times in took.items()}


def _best_ms(work: Callable[[], object]) -> float:
    runs = []
    for _ in range(RUNS):
        started_s = time.perf_counter()
        work()
        runs.append((time.perf_counter() - started_s) * 1e3)
    return min(runs)


def kept(folder: Path | None, name: str, make: Callable[[], Made]) -> Made:
    """Read what was made before, or make it and keep it."""
    path = None if folder is None else folder / f"{name}.pickle"
    if path is not None and path.exists():
        found: Made = pickle.loads(path.read_bytes())
        return found
    made = make()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(made))
    return made


def main() -> None:
    """Read the command line, choose, judge, write the figures."""
    parser = argparse.ArgumentParser(description="Measure late interaction.")
    parser.add_argument("--bundle", type=Path, required=True, help="of the reranker")
    parser.add_argument("--judged", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=300, help="of each kind, to choose on")
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    bundle = load_bundle(ENCODER)
    model, encoder = EncoderModel(bundle, THREADS), TokenEncoder(bundle, LAYERS, THREADS)
    reranker = RerankerModel(load_bundle(options.bundle), threads=THREADS)

    def build() -> list[Judged]:
        sizes = {"passage_count": PASSAGES, "question_count": options.questions, "seed": SEED}
        return build_questions(machine_sources(), model, **sizes, progress=print)

    questions = kept(options.cache, "questions", build)
    spaces = kept(options.cache, "spaces", lambda: learn_spaces(encoder, questions))
    nears, tokens = kept(options.cache, "near", lambda: interact(questions, encoder, spaces))
    card, read = reranker.bundle.card.blend, [rerank(reranker, each) for each in questions[::6]]
    assert card is not None
    option, tried = choose_option(card, questions, nears, spaces, spread_of(read))
    scored = score(reranker, option, questions, nears, option.number)
    company = choose(card, questions, [np.zeros_like(each) for each in scored.late]).blend
    both = choose(card, scored.after, scored.read_after).blend
    contest = Contest(card, option, company, both)
    document: dict[str, object] = {
        "chosen": _told(option, tokens),
        "development": compare(contest, scored),
    }
    for folder in options.judged:
        judged = read_judged(folder, model, limit=10_000)
        nears, tokens = interact(judged, encoder, [option.space])
        document[judged[0].kind] = {
            "questions": len(judged),
            "bytes a passage": round(tokens * option.space.token_bytes),
            **compare(contest, score(reranker, option, judged, nears, 0)),
            "ms a question": time_stages(judged, encoder, option, reranker),
        }
    document["tried"] = {each.name: round(each.gained, 4) for each in tried}
    print(json.dumps(document, indent=1))
    options.out.write_text(json.dumps(document, indent=1) + "\n")


def _told(option: Option, tokens: float) -> dict[str, object]:
    return {
        "what": option.name,
        "weight": round(option.chosen.weight * option.scale, 4),
        "affinity": option.chosen.affinity,
        "tokens a passage": round(tokens, 1),
        "bytes a passage": round(tokens * option.space.token_bytes),
    }


if __name__ == "__main__":
    main()
