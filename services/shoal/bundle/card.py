"""What does a bundle say of itself?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from shoal.bundle.errors import BundleFileMissingError, BundleInvalidError

CARD_FILE: Final = "card.json"

# Kinds of text: sentences, source code, what describes a picture.
Modality = Literal["prose", "code", "captions"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Agreement(_Frozen):
    """How near the bundle's vectors or scores are to those of the weights it was exported from."""

    texts: int
    """Texts, or pairs, that were compared."""
    mean: float
    """Mean cosine of the vectors; for a reranker, Pearson's correlation of the scores."""
    lowest: float
    """Lowest cosine; for a reranker, Spearman's correlation of the scores."""
    source: str
    """Which texts they were."""


class BlendCard(_Frozen):
    """How a reranker's score and the dense score become the score that hits are ordered by.

    score = first_score + weight * rerank_score, and + affinity * nearness to the best by that
    score (shoal.bundle.affinity). first_score is what the passages are ordered by before: the fused
    one, or the dense one where words were not looked at. It carries over to texts unlike those that
    the cross-encoder was trained on, so the logit is added, not put in its place.
    """

    weight: float = Field(gt=0.0)
    """Chosen on held-out training data."""
    affinity: float = Field(default=0.0, ge=0.0)
    """Chosen likewise."""
    read: int | None = Field(default=None, ge=1)
    """Passages of a question that the cross-encoder reads: the first ones by first_score. The
    others stand after those until affinity has its say. None: all."""
    chosen_on: str
    """Which data that was."""


class BundleCard(_Frozen):
    """A bundle's card."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    """Names the model in answers, together with the fingerprint of its files."""
    kind: Literal["encoder", "reranker"]
    """encoder: text to vector; reranker: pair to score."""
    dimension: int | None = Field(default=None, ge=1, le=4096)
    """Numbers in a vector. Encoders only."""
    pooling: Literal["mean", "cls", "none"] = "mean"
    """How the vectors of the tokens become one; none: the model does it itself."""
    normalize: bool = True
    """Whether vectors are scaled to unit length. Shoal needs them so."""
    max_length: int = Field(ge=8, le=32_768)
    """Tokens that the model reads, its special tokens included; what exceeds them is cut off."""
    query_prefix: str = ""
    """Put in front of a query."""
    passage_prefix: str = ""
    """Put in front of a passage."""
    passage_tokens: int | None = Field(default=None, ge=8)
    """Most tokens that a reranker reads of a passage, its best window. None: from its beginning on,
    as far as the maximum length reaches."""
    model_file: str = "model.onnx"
    """The ONNX file, relative to the bundle."""
    tokenizer_file: str = "tokenizer.json"
    """The tokenizer, in the format of the tokenizers library."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """Of the weights."""
    languages: tuple[str, ...] = ()
    """ISO 639 codes of the languages it was made for."""
    modality: Modality = "prose"
    """Kind of text that it was made for. Cards of before do not say: theirs is prose."""
    licence: str
    """SPDX identifier."""
    source: str
    """Where the weights come from, and how they became this file."""
    agreement: Agreement | None = None
    """How near it is to its source."""
    blend: BlendCard | None = None
    """How its score is blended. Rerankers only."""
    checksums: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each file but the card, by name."""

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if self.kind == "encoder" and self.dimension is None:
            raise ValueError("an encoder's card must state its dimension")
        if self.kind == "reranker" and self.blend is None:
            raise ValueError("a reranker's card must state its blend")
        if self.passage_tokens is not None and self.passage_tokens + 8 > self.max_length:
            raise ValueError("passage_tokens must leave 8 tokens of max_length to the question")
        return self


def read_card(folder: Path) -> BundleCard:
    """Read a bundle's card. Raises BundleFileMissingError or BundleInvalidError."""
    path = folder / CARD_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BundleFileMissingError(path, "it describes the bundle") from None
    return parse_card(text, path)


def parse_card(text: str | dict[str, Any], path: Path) -> BundleCard:
    """Check a card. Raises BundleInvalidError naming every field that is wrong."""
    try:
        if isinstance(text, str):
            return BundleCard.model_validate_json(text)
        return BundleCard.model_validate(text)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(str(part) for part in each['loc']) or 'the card'}: {each['msg']}"
            for each in error.errors()
        )
        raise BundleInvalidError(f"{path}: {wrong}") from error
