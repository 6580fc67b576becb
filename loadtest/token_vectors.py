"""What vectors do the tokens of a text have, how small can they be kept, and how are they compared?

An encoder's vector is the mean of its tokens' vectors. Late interaction keeps the tokens' own and
compares a question's with a passage's one by one: Khattab and Zaharia 2020 (ColBERT,
arXiv:2004.12832). Compression by a matrix and eight-bit numbers is after Santhanam et al. 2022
(ColBERTv2, arXiv:2112.01488), who keep residuals of centroids in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from shoal.bundle import Bundle
from shoal.bundle.session import batches

# Outputs of a layer of BERT, as torch's exporter names them.
_HIDDEN: Final = "/model/encoder/layer.{}/output/LayerNorm/LayerNormalization_output_0"
_BATCH_TOKENS: Final = 2048
_LEAST: Final = 1e-9

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text, without special ones; one of nothing if it has none."""

    ids: NDArray[np.int64]
    hidden: dict[int, Vectors]
    """By how many layers before the last: float32 [tokens, dimension], as the layer made them."""


class TokenEncoder:
    """An encoder bundle that gives its tokens' vectors, of several layers."""

    def __init__(self, bundle: Bundle, layers: Sequence[int], threads: int) -> None:
        """layers: how many before the last, 0 is the last itself. Changes no file."""
        model = onnx.load(str(bundle.model_path))
        last = (
            sum(
                node.name.endswith("/output/LayerNorm/LayerNormalization")
                for node in model.graph.node
            )
            // 2
            - 1
        )
        inner = {back: _HIDDEN.format(last - back) for back in layers if back}
        model.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for name in inner.values()
        )
        self._outputs = {back: inner.get(back, model.graph.output[0].name) for back in layers}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = bundle.tokenizer()

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[int, Tokens, Vectors]]:
        """Encode texts: of each its position, its tokens, and the mean of all of the last layer.

        In an order that makes full batches. The mean, float32 [dimension] of unit length, is the
        text's own vector in a bundle that pools by it.
        """
        encodings = self._tokenizer.encode(texts)
        for batch in batches([len(each.ids) for each in encodings], _BATCH_TOKENS):
            yield from zip(batch, *self._run([encodings[at] for at in batch]), strict=True)

    def _run(self, encodings: Sequence[Any]) -> tuple[list[Tokens], list[Vectors]]:
        counts = [len(each.ids) for each in encodings]
        ids = np.zeros((len(counts), max(counts)), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, each in enumerate(encodings):
            ids[row, : counts[row]], mask[row, : counts[row]] = each.ids, 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        outputs = self._session.run(list(self._outputs.values()), feeds)
        hidden = dict(zip(self._outputs, outputs, strict=True))
        tokens, means = [], []
        for row, count in enumerate(counts):
            # The first and the last are special, and all there is of an empty text.
            kept = slice(1, max(count - 1, 2))
            own = {back: each[row, kept].copy() for back, each in hidden.items()}
            tokens.append(Tokens(ids[row, kept].copy(), own))
            means.append(unit(outputs[0][row, :count].mean(axis=0)))
        return tokens, means


@dataclass(frozen=True)
class Space:
    """What is kept of a token's hidden state: its direction, in so many numbers."""

    name: str
    layer: int
    """How many before the last."""
    mean: Vectors
    """Taken away first: float32 [hidden]."""
    matrix: Vectors | None
    """float32 [hidden, dimension]; None: as it is."""
    eight_bit: bool = False
    """Passages' numbers are kept as int8, scaled by the greatest of each token's."""

    def question(self, tokens: Tokens) -> Vectors:
        """Unit vectors of a question's tokens: float32 [tokens, dimension]."""
        vectors: Vectors = np.subtract(tokens.hidden[self.layer], self.mean)
        if self.matrix is not None:
            vectors = np.matmul(vectors, self.matrix)
        return unit(vectors)

    def passage(self, tokens: Tokens) -> Vectors:
        """Vectors of a passage's tokens as they come back from where they are kept."""
        vectors = self.question(tokens)
        return restored(*squeezed(vectors)) if self.eight_bit else vectors

    @property
    def token_bytes(self) -> int:
        """That a token takes: half-precision numbers, or eight-bit ones and their scale."""
        dimension = len(self.mean) if self.matrix is None else self.matrix.shape[1]
        return dimension + 2 if self.eight_bit else 2 * dimension


def unit(vectors: Vectors) -> Vectors:
    """Scale vectors to unit length."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, _LEAST), dtype=np.float32)


def squeezed(vectors: Vectors) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Eight-bit numbers [tokens, dimension], and the scale of each token's [tokens, 1]."""
    scales = (np.abs(vectors).max(axis=1, keepdims=True) / 127).astype(np.float16)
    numbers = np.rint(vectors / np.maximum(scales.astype(np.float32), _LEAST))
    return np.clip(numbers, -127, 127).astype(np.int8), scales


def restored(numbers: NDArray[np.int8], scales: NDArray[np.float16]) -> Vectors:
    """Vectors of what was squeezed."""
    return numbers.astype(np.float32) * scales.astype(np.float32)


def principal(hidden: Vectors, dimension: int, *, centred: bool) -> tuple[Vectors, Vectors]:
    """Mean (zero, unless `centred`) and principal directions [hidden, dimension] of tokens."""
    mean = hidden.mean(axis=0) if centred else np.zeros(hidden.shape[1], dtype=np.float32)
    centre = hidden - mean
    _, directions = np.linalg.eigh(centre.T.astype(np.float64) @ centre)
    return mean, directions[:, ::-1][:, :dimension].astype(np.float32)


def closest(question: Vectors, passages: Vectors, starts: NDArray[np.intp]) -> Vectors:
    """How near each token of a question comes to each passage: float32 [tokens, passages].

    question: float32 [tokens, dimension]. passages: their tokens one after another, float32 [all
    tokens, dimension]; starts: where each passage begins, ascending; none may be empty.
    """
    near: Vectors = np.maximum.reduceat(question @ passages.T, starts, axis=1)
    return near


def max_sim(
    question: Vectors, weights: Vectors, passages: Vectors, starts: NDArray[np.intp]
) -> Vectors:
    """Weighted means of what is closest: float32 [passages]. weights: of the question's tokens."""
    return np.asarray(
        weights @ closest(question, passages, starts) / max(float(weights.sum()), _LEAST),
        dtype=np.float32,
    )
