"""What does InfoNCE lack in sentence-transformers: a temperature that moves, and a queue?

Both are added to its own losses. Similarities are cosines over a temperature t:

    loss = -log( exp(cos(q, p) / t) / sum over passages of exp(cos(q, .) / t) )

van den Oord and others 2018, https://arxiv.org/abs/1807.03748.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from shoal.training.momentum import MomentumQueue
from torch import Tensor, nn
from transformers import TrainerCallback

Schedule = Literal["fixed", "linear", "cosine", "learnable"]

# CLIP's bound: logits beyond 100 times the cosine make training unstable (Radford and others 2021,
# https://arxiv.org/abs/2103.00020, section 2.5).
LOWEST_TEMPERATURE: Final = 0.01
LOSS_FILE: Final = "loss.pt"


class Temperature(nn.Module):  # type: ignore[misc]
    """By what cosines are divided: fixed, on a schedule from start to end, or learnt.

    Learnt as the logarithm of its inverse, as CLIP does, so that a step changes it by a share.
    """

    def __init__(self, schedule: Schedule, start: float, end: float) -> None:
        """start, end: above 0. end: of a schedule only."""
        super().__init__()
        self.schedule, self._start, self._end = schedule, start, end
        self._now = start
        log_scale = torch.tensor(math.log(1.0 / start))
        self.log_scale = nn.Parameter(log_scale, requires_grad=schedule == "learnable")
        self.keep_above_floor()

    def scale(self) -> float | Tensor:
        """1 / t. A tensor with a gradient if it is learnt."""
        if self.schedule == "learnable":
            return self.log_scale.exp()
        return 1.0 / self._now

    def keep_above_floor(self) -> None:
        """Take a step beyond the floor back; to be called after each.

        The parameter is bounded, as in CLIP, not what is read of it: beyond a bound on what is read
        there is no gradient, and the temperature would never leave it again.
        """
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(1.0 / LOWEST_TEMPERATURE))

    def move_to(self, share: float) -> None:
        """Say how much of the training is over: 0 to 1. Matters to schedules alone."""
        if self.schedule == "linear":
            self._now = self._start + (self._end - self._start) * share
        elif self.schedule == "cosine":
            # Between the two along half a cosine wave, as learning rates are
            # (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983).
            bend = (1.0 - math.cos(math.pi * share)) / 2.0
            self._now = self._start + (self._end - self._start) * bend

    def value(self) -> float:
        """The temperature now."""
        with torch.no_grad():
            return 1.0 / float(self.scale())


class ContrastiveLoss(MultipleNegativesRankingLoss):  # type: ignore[misc]
    """InfoNCE over the batch and, if there is one, over a queue of passages of earlier batches."""

    def __init__(
        self,
        model: SentenceTransformer,
        temperature: Temperature,
        queue: MomentumQueue | None = None,
        *,
        gather: bool = False,
    ) -> None:
        """gather: the passages of all workers are each one's negatives."""
        super().__init__(model, gather_across_devices=gather)
        # Set after the superclass has set its own number, which the property below hides.
        self.moving_temperature = temperature
        self.queue = queue
        # The batch's passages by the momentum encoder.
        self._right: Tensor | None = None

    @property
    def scale(self) -> float | Tensor:
        """1 / t: read anew whenever the loss is computed."""
        return self.moving_temperature.scale()

    @scale.setter
    def scale(self, value: float) -> None:
        """Ignored: the superclass sets its default."""

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Compute the loss of a batch: queries, passages and perhaps negatives, tokenised."""
        features = list(sentence_features)
        if self.queue is not None and self.model.training:
            self._right = self.queue.remember(features[1])
        return super().forward(features, labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        """Compute the loss of vectors: the mean of that over the batch and that over the queue."""
        loss: Tensor = super().compute_loss_from_embeddings(embeddings, labels)
        if self.queue is None or self._right is None or not self.model.training:
            return loss
        queries = embeddings[0]
        # Under MatryoshkaLoss the batch's vectors are cut short; cosines scale the rest.
        keys = torch.cat([self._right, self.queue.keys()])[:, : queries.shape[1]]
        scores = self.similarity_fct(queries, keys.to(queries.dtype)) * self.scale
        right = torch.arange(len(queries), device=scores.device)
        return (loss + nn.functional.cross_entropy(scores, right)) / 2.0

    def get_config_dict(self) -> dict[str, Any]:
        """What the model's page says of the loss."""
        return {
            "temperature": round(self.moving_temperature.value(), 5),
            "schedule": self.moving_temperature.schedule,
            "queue": 0 if self.queue is None else self.queue.size,
        }


def make_loss(
    model: SentenceTransformer,
    temperature: Temperature,
    *,
    queue: MomentumQueue | None = None,
    cached_batch: int | None = None,
    matryoshka: tuple[int, ...] = (),
    gather: bool = False,
) -> tuple[nn.Module, ContrastiveLoss]:
    """Put a loss together: what the trainer gets, and InfoNCE inside it.

    cached_batch: pairs encoded at once, where the batch is larger than memory takes: GradCache, Gao
    and others 2021, https://arxiv.org/abs/2101.06983.
    matryoshka: dimensions that vectors can be cut to, Kusupati and others 2022,
    https://arxiv.org/abs/2205.13147.
    """
    inner = ContrastiveLoss(model, temperature, queue, gather=gather)
    loss: nn.Module = inner
    if cached_batch is not None:
        assert queue is None
        loss = CachedMultipleNegativesRankingLoss(
            model, mini_batch_size=cached_batch, gather_across_devices=gather
        )
        # It reads the temperature from the loss that it wraps.
        loss.loss = inner
    if matryoshka:
        loss = MatryoshkaLoss(model, loss, matryoshka_dims=list(matryoshka))
    return loss, inner


class LossState(TrainerCallback):  # type: ignore[misc]
    """Moves a loss along with the training, and keeps what it has learnt in the checkpoints.

    The trainer saves the model, its optimiser and its place in the data, but nothing of a loss.
    """

    def __init__(self, loss: ContrastiveLoss, resume: str | None = None) -> None:
        """resume: folder of the checkpoint that training goes on from."""
        self._loss, self._resume = loss, resume

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up what the checkpoint holds."""
        if self._resume is not None:
            stored = torch.load(f"{self._resume}/{LOSS_FILE}", weights_only=True)
            self._loss.moving_temperature.load_state_dict(stored["temperature"])
            if self._loss.queue is not None:
                self._loss.queue.load_state(stored["queue"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the schedule."""
        self._loss.moving_temperature.move_to(state.global_step / max(1, state.max_steps - 1))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Share the temperature's gradient: the trainer shares those of the model alone."""
        gradient = self._loss.moving_temperature.log_scale.grad
        if gradient is not None and torch.distributed.is_initialized():
            torch.distributed.all_reduce(gradient)
            gradient /= torch.distributed.get_world_size()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Bound the temperature, let the momentum encoder follow, and fill the queue."""
        self._loss.moving_temperature.keep_above_floor()
        if self._loss.queue is not None:
            self._loss.queue.follow(self._loss.model)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the temperature beside the loss."""
        if state.log_history and "loss" in state.log_history[-1]:
            state.log_history[-1]["temperature"] = self._loss.moving_temperature.value()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the loss's own state into the checkpoint."""
        if not state.is_world_process_zero:
            return
        queue = self._loss.queue
        torch.save(
            {
                "temperature": self._loss.moving_temperature.state_dict(),
                "queue": {} if queue is None else queue.state(),
            },
            f"{args.output_dir}/checkpoint-{state.global_step}/{LOSS_FILE}",
        )
