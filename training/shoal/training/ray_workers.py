"""How do several workers, or GPUs, train one encoder? As workers of Ray Train.

Each has a copy of the model and a share of every batch; gradients are averaged, and the passages of
all are each one's negatives: https://docs.ray.io/en/latest/train/train.html. The folder that is
written to must be the same for all of them: a local one on one machine, a shared one on several.
A worker that dies is started again, with the others, from the last checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from shoal.training.dual_encoder import (
    CHECKPOINTS,
    Outcome,
    TrainingError,
    check,
    fit,
)
from shoal.training.pair_files import read_pairs, write_pairs
from shoal.training.pairs import Pair
from shoal.training.settings import EncoderSettings

# A worker that dies more often than this is broken, not unlucky.
MAX_FAILURES: Final = 2
_PAIRS: Final = "pairs.jsonl"
_DEV: Final = "dev.jsonl"
# Ray's own notes; what training goes on from are dual_encoder's checkpoints.
_RAY: Final = "ray"
_OUTCOME: Final = "outcome.json"


def train_on_ray(
    pairs: Sequence[Pair],
    dev: Sequence[Pair],
    out: Path,
    settings: EncoderSettings,
    *,
    workers: int,
    use_gpu: bool = False,
    resume: bool = False,
) -> Outcome:
    """Train as dual_encoder.train_encoder does, with `workers` workers; a step takes a batch each.

    Ray must have been started, or is started here. Raises TrainingError.
    """
    if settings.queue.size:
        raise TrainingError(
            "queue.size: with several workers, all passages are negatives for all; leave it at 0"
        )
    out = out.resolve()
    check(pairs, dev, out, settings, resume=resume, workers=workers)
    work = out / CHECKPOINTS
    # Anew when it goes on too: they are the same, and may have been cut short.
    write_pairs(pairs, work / _PAIRS)
    write_pairs(dev, work / _DEV)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"out": str(out), "settings": settings.model_dump(mode="json")},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker=None if use_gpu else {"CPU": settings.threads},
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(out / _RAY),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise TrainingError(f"a worker failed: {error}") from error
    found = Outcome(**json.loads((out / _RAY / _OUTCOME).read_text(encoding="utf-8")))
    shutil.rmtree(out / _RAY)
    return found


def _work(config: dict[str, Any]) -> None:
    """Train, as one worker."""
    out = Path(config["out"])
    settings = EncoderSettings.model_validate(config["settings"])
    # The first worker deletes the checkpoints when it is done; these are read before.
    pairs, dev = (read_pairs(out / CHECKPOINTS / name) for name in (_PAIRS, _DEV))
    found = fit(pairs, dev, out, settings)
    if ray.train.get_context().get_world_rank() == 0:
        # Ray hands back what is reported with a checkpoint of its own, of which there is none.
        (out / _RAY / _OUTCOME).write_text(json.dumps(asdict(found)), encoding="utf-8")
