"""How is an encoder fine-tuned on pairs?

With sentence-transformers' own trainer and losses: InfoNCE over the batch, GradCache for batches
that do not fit, Matryoshka dimensions, prefixes, batches without a text twice. What is ours is in
contrastive.py (a temperature that moves) and momentum.py (a queue). Everything goes by the seed,
and training that was stopped goes on from its last checkpoint as if it had not been.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset
from datasets.utils import logging as dataset_logging
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.training_args import BatchSamplers
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from shoal.training.augmentation import ThesaurusError, augmented
from shoal.training.contrastive import LossState, Temperature, make_loss
from shoal.training.curves import write_curves
from shoal.training.export import ExportError, resolve_weights
from shoal.training.momentum import MomentumQueue
from shoal.training.pairs import Pair, repeated, with_negatives
from shoal.training.settings import EncoderSettings
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging

Report = Callable[[int, str], None]

CHECKPOINTS: Final = "checkpoints"
SETTINGS_FILE: Final = "training.json"
# What training was begun with besides its settings.
BEGUN_FILE: Final = "begun.json"
# The column of whole passages: for the choice of batches alone.
WHOLE: Final = "whole"
# What the held-out records gave before the first step: the trainer's log begins after it.
BEFORE_FILE: Final = "before.json"


class TrainingError(Exception):
    """Training that cannot begin or go on; the message says why and what to do."""


@dataclass(frozen=True)
class Outcome:
    """What training came to."""

    steps: int
    loss: float
    """Mean of the last tenth of the steps."""
    before: dict[str, float]
    """Of the held-out records, before the first step: recall@10, ndcg@10, mrr@10."""
    after: dict[str, float]


def train_encoder(
    pairs: Sequence[Pair],
    dev: Sequence[Pair],
    out: Path,
    settings: EncoderSettings,
    *,
    resume: bool = False,
    report: Report = lambda *_: None,
    stop_at: int | None = None,
) -> Outcome:
    """Fine-tune, and write a folder in sentence-transformers' layout with the curves beside it.

    dev: records that share no source with `pairs`. resume: go on from the last checkpoint in `out`.
    report: told the step and what is done. stop_at: give up after this step, as if cut off; its
    checkpoint stays. Raises TrainingError.
    """
    check(pairs, dev, out, settings, resume=resume)
    try:
        return fit(pairs, dev, out, settings, report=report, stop_at=stop_at)
    except (ExportError, ThesaurusError, TrainingError) as error:
        # What cannot begin leaves nothing behind that would have to be deleted.
        if _last_checkpoint(out) is None:
            shutil.rmtree(out / CHECKPOINTS)
        raise TrainingError(str(error)) from error


def check(
    pairs: Sequence[Pair],
    dev: Sequence[Pair],
    out: Path,
    settings: EncoderSettings,
    *,
    resume: bool,
    workers: int = 1,
) -> None:
    """Refuse what cannot be trained; begin the folder of checkpoints. Raises TrainingError."""
    begun = {"records": _fingerprint(pairs, dev), "workers": workers}
    if not dev:
        raise TrainingError("there are no held-out records: give more sources")
    shared = {pair.source for pair in pairs} & {pair.source for pair in dev}
    if shared:
        raise TrainingError(f"sources on both sides, such as {min(shared)}: divide by source")
    kept = _kept_settings(out)
    if resume and kept is None:
        raise TrainingError(f"there is no checkpoint in {out} to go on from")
    if resume and kept != settings:
        raise TrainingError(
            f"{out} was begun with other settings: go on with those, or begin in another folder"
        )
    if resume:
        _check_begun(out, begun)
    if not resume and (out / CHECKPOINTS).exists():
        raise TrainingError(f"{out} holds an unfinished training: --resume, or delete it")
    if not resume:
        (out / CHECKPOINTS).mkdir(parents=True)
        (out / CHECKPOINTS / BEGUN_FILE).write_text(json.dumps(begun))
        # Last: by it a training is known to have begun.
        (out / CHECKPOINTS / SETTINGS_FILE).write_text(settings.model_dump_json())


def fit(
    pairs: Sequence[Pair],
    dev: Sequence[Pair],
    out: Path,
    settings: EncoderSettings,
    *,
    report: Report = lambda *_: None,
    stop_at: int | None = None,
) -> Outcome:
    """Do what train_encoder does, once it has checked everything; also one of several workers.

    Goes on from the last checkpoint in `out` if there is one.
    """
    set_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    _hush()
    model, read_tokens = load_model(settings)
    checkpoint = _last_checkpoint(out)
    trainer = make_trainer(model, pairs, dev, out, settings, report, checkpoint)
    before = _look_before(trainer, out, checkpoint)
    if stop_at is not None:
        trainer.add_callback(_StopAt(stop_at))
    trainer.train(resume_from_checkpoint=checkpoint)
    history = [{"step": 0, **before}, *trainer.state.log_history]
    if trainer.is_world_process_zero() and trainer.state.global_step >= settings.steps:
        model.max_seq_length = read_tokens
        save_model(model, out, settings)
        write_curves(history, out)
        shutil.rmtree(out / CHECKPOINTS)
    return outcome(history, trainer.state.global_step)


def load_model(settings: EncoderSettings) -> tuple[SentenceTransformer, int]:
    """Load the weights as the settings want them. Returns it, and the tokens it can read."""
    model = SentenceTransformer(
        str(resolve_weights(settings.weights)),
        device="cpu" if not torch.cuda.is_available() else None,
        local_files_only=True,
        prompts=_given_prompts(settings),
    )
    read_tokens = int(model.max_seq_length)
    model.max_seq_length = min(settings.max_tokens, read_tokens)
    transformer = model[0].auto_model
    if not hasattr(transformer, "embeddings") or not hasattr(transformer, "encoder"):
        raise TrainingError(f"{type(transformer).__name__}: only BERT and its kin are trained here")
    layers = transformer.encoder.layer
    if settings.layers is not None:
        if settings.layers > len(layers):
            raise TrainingError(f"layers: the weights have {len(layers)}, not {settings.layers}")
        transformer.encoder.layer = layers[: settings.layers]
        transformer.config.num_hidden_layers = settings.layers
    if settings.freeze_embeddings:
        transformer.embeddings.requires_grad_(requires_grad=False)
    transformer.encoder.layer[: settings.freeze_layers].requires_grad_(requires_grad=False)
    # Never used: the mean of the tokens is the vector, and workers wait for gradients in vain.
    if getattr(transformer, "pooler", None) is not None:
        transformer.pooler.requires_grad_(requires_grad=False)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = settings.dropout
    return model, read_tokens


def make_trainer(
    model: SentenceTransformer,
    pairs: Sequence[Pair],
    dev: Sequence[Pair],
    out: Path,
    settings: EncoderSettings,
    report: Report = lambda *_: None,
    checkpoint: str | None = None,
) -> Any:
    """Put the trainer together. checkpoint: that it will go on from."""
    gather = several_workers()
    temperature = settings.temperature
    queue = settings.queue
    loss, inner = make_loss(
        model,
        Temperature(temperature.schedule, temperature.start, temperature.end),
        queue=MomentumQueue(model, queue.size, queue.momentum) if queue.size else None,
        cached_batch=settings.cached_batch,
        matryoshka=_dimensions(model, settings),
        gather=gather,
    )
    records = table(augmented(pairs, settings.augmentation, settings.seed), settings)
    trainer = _Trainer(
        whole=records[WHOLE][:],
        model=model,
        args=training_arguments(out, settings, prefixes(model)),
        train_dataset=records.remove_columns(WHOLE),
        loss=loss,
        evaluator=dev_evaluator(dev, settings, prefixes(model)),
        callbacks=[LossState(inner, checkpoint), _Reporter(report)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def prefixes(model: SentenceTransformer) -> tuple[str, str]:
    """What the model has in front of queries, and of passages."""
    prompts = model.prompts
    return prompts.get("query") or "", prompts.get("passage") or prompts.get("document") or ""


def several_workers() -> bool:
    """Whether this process is one of several that train together."""
    return bool(torch.distributed.is_available() and torch.distributed.is_initialized())


def training_arguments(
    out: Path, settings: EncoderSettings, prompts: tuple[str, str]
) -> SentenceTransformerTrainingArguments:
    """Say it all in the trainer's words. prompts: in front of queries, and of passages."""
    columns = {"anchor": prompts[0], "positive": prompts[1]}
    columns |= {f"negative_{at}": prompts[1] for at in range(settings.negatives)}
    learnt = settings.temperature.schedule == "learnable"
    return SentenceTransformerTrainingArguments(
        output_dir=str(out / CHECKPOINTS),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=settings.batch,
        learning_rate=settings.rate,
        learning_rate_mapping={"log_scale": settings.temperature.rate} if learnt else {},
        warmup_steps=round(settings.warmup * settings.steps),
        lr_scheduler_type="linear",
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=not torch.cuda.is_available(),
        ddp_backend="gloo" if several_workers() and not torch.cuda.is_available() else None,
        # A text twice in a batch would be right and wrong for one question; so would a passage and
        # a part of it: see _Trainer.
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        prompts={column: prompt for column, prompt in columns.items() if prompt} or None,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=settings.check_every,
        save_strategy="steps",
        save_steps=settings.check_every,
        save_total_limit=2,
        disable_tqdm=True,
        report_to="none",
    )


def table(pairs: Sequence[Pair], settings: EncoderSettings) -> Dataset:
    """Make the trainer's table: columns anchor, positive, negative_0, negative_1, ...; WHOLE."""
    kept = with_negatives(pairs, settings.negatives)
    # No passage is in a batch twice, nor parts of one.
    passages = len({pair.whole for pair in kept})
    if passages < settings.batch:
        raise TrainingError(
            f"{len(kept)} records with {settings.negatives} negatives or more, of {passages} "
            f"passages, are less than one batch of {settings.batch}: mine more, or ask for fewer"
        )
    kept = repeated(kept, settings.seed)
    columns = {
        "anchor": [pair.query for pair in kept],
        "positive": [pair.positive for pair in kept],
        WHOLE: [pair.whole for pair in kept],
    }
    for at in range(settings.negatives):
        columns[f"negative_{at}"] = [pair.negatives[at] for pair in kept]
    return Dataset.from_dict(columns)


def dev_evaluator(
    dev: Sequence[Pair], settings: EncoderSettings, prompts: tuple[str, str]
) -> InformationRetrievalEvaluator:
    """Look for the right passages of the first questions among those of more records."""
    passages = {str(at): pair.positive for at, pair in enumerate(dev[: settings.dev_passages])}
    asked = range(min(settings.dev_queries, len(passages)))
    return InformationRetrievalEvaluator(
        queries={str(at): dev[at].query for at in asked},
        corpus=passages,
        relevant_docs={str(at): {str(at)} for at in asked},
        mrr_at_k=[10],
        ndcg_at_k=[10],
        accuracy_at_k=[1],
        precision_recall_at_k=[1, 10],
        map_at_k=[10],
        batch_size=settings.batch,
        name="dev",
        write_csv=False,
        query_prompt=prompts[0] or None,
        corpus_prompt=prompts[1] or None,
    )


def save_model(model: SentenceTransformer, out: Path, settings: EncoderSettings) -> None:
    """Write the weights, in sentence-transformers' layout, and how they were trained."""
    model.save_pretrained(str(out), create_model_card=False)
    text = json.dumps(settings.model_dump(mode="json"), indent=2)
    (out / SETTINGS_FILE).write_text(text + "\n", encoding="utf-8")


def outcome(history: Sequence[dict[str, Any]], steps: int) -> Outcome:
    """Read the trainer's log."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    recent = losses[-max(1, len(losses) // 10) :]
    checks = [_measures(entry) for entry in history if "eval_dev_cosine_recall@10" in entry]
    if not losses or not checks:
        raise TrainingError("the trainer's log holds no loss or no look at the held-out records")
    return Outcome(steps, sum(recent) / len(recent), checks[0], checks[-1])


def _measures(entry: dict[str, Any]) -> dict[str, float]:
    return {
        name: round(float(entry[f"eval_dev_cosine_{name}"]), 4)
        for name in ("recall@10", "ndcg@10", "mrr@10")
    }


def _kept_settings(out: Path) -> EncoderSettings | None:
    path = out / CHECKPOINTS / SETTINGS_FILE
    return EncoderSettings.model_validate_json(path.read_text()) if path.is_file() else None


def _fingerprint(pairs: Sequence[Pair], dev: Sequence[Pair]) -> str:
    """Tell records from others, and from the same in another order: SHA-256, in hex."""
    digest = hashlib.sha256()
    for side in (pairs, dev):
        for pair in side:
            known = asdict(pair)
            # Of what augmentation makes, which follows from the settings.
            del known["made_from"]
            digest.update(json.dumps(known).encode() + b"\n")
        digest.update(b"\n")
    return digest.hexdigest()


def _check_begun(out: Path, begun: dict[str, Any]) -> None:
    """Refuse to go on with anything that would make it another training."""
    path = out / CHECKPOINTS / BEGUN_FILE
    kept = json.loads(path.read_text()) if path.is_file() else {}
    if "workers" in kept and kept["workers"] != begun["workers"]:
        raise TrainingError(
            f"{out} was begun with --workers {kept['workers']}: go on with as many, or begin in "
            "another folder"
        )
    if kept != begun:
        raise TrainingError(
            f"{out} was begun with other records: go on with those, or begin in another folder"
        )


def _last_checkpoint(out: Path) -> str | None:
    """Find the last whole checkpoint; None if training was cut off before the first."""
    whole = [
        path
        for path in (out / CHECKPOINTS).glob("checkpoint-*")
        # Written last but for the loss's state, which is ours.
        if (path / "trainer_state.json").is_file() and (path / "loss.pt").is_file()
    ]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def _look_before(trainer: Any, out: Path, checkpoint: str | None) -> dict[str, float]:
    """Look at the held-out records before the first step; training that goes on has done so."""
    path = out / CHECKPOINTS / BEFORE_FILE
    if checkpoint is not None:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    # All workers take part, one of them writes.
    found: dict[str, float] = trainer.evaluate()
    if trainer.is_world_process_zero():
        path.write_text(json.dumps(found), encoding="utf-8")
    return found


def _given_prompts(settings: EncoderSettings) -> dict[str, str]:
    given = {
        "query": settings.query_prefix,
        # Both names: sentence-transformers looks for the second, Shoal's cards for either.
        "passage": settings.passage_prefix,
        "document": settings.passage_prefix,
    }
    return {name: prompt for name, prompt in given.items() if prompt is not None}


def _dimensions(model: SentenceTransformer, settings: EncoderSettings) -> tuple[int, ...]:
    if not settings.matryoshka:
        return ()
    whole = int(model.get_embedding_dimension())
    if any(each > whole for each in settings.matryoshka):
        raise TrainingError(f"matryoshka: the weights have {whole} dimensions, none beyond them")
    return tuple(sorted({whole, *settings.matryoshka}, reverse=True))


def _hush() -> None:
    """Keep other libraries' bars and notes out of ours."""
    dataset_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    for name in ("transformers", "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


class _Trainer(SentenceTransformerTrainer):  # type: ignore[misc]
    """Keeps records that were made from one passage out of one batch.

    What is left of a passage without a sentence answers the questions of the whole, and the whole
    those of the part: among a batch's negatives, mined ones too, either would be wrong and right.
    """

    def __init__(self, *, whole: Sequence[str], **arguments: Any) -> None:
        """whole: the passage that each record was made from."""
        self._whole = list(whole)
        super().__init__(**arguments)

    def get_batch_sampler(self, dataset: Dataset, **arguments: Any) -> Any:
        """As the arguments say, of the table with its whole passages: the sampler compares all."""
        return super().get_batch_sampler(dataset.add_column(WHOLE, self._whole), **arguments)


class _StopAt(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop."""
        if state.global_step >= self._step:
            control.should_training_stop = True


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """Says how far it is."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the loss, or what a look at the held-out records gave."""
        entry = state.log_history[-1]
        if "loss" in entry:
            self._report(state.global_step, f"loss {entry['loss']:.3f}")
        elif "eval_dev_cosine_recall@10" in entry:
            found = _measures(entry)
            self._report(state.global_step, f"held-out recall@10 {found['recall@10']:.3f}")
