"""A tiny cross-encoder, and the form that a package carries one in."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from onnxruntime.quantization import QuantType, quantize_dynamic

TOKENIZER = (
    Path(__file__).resolve().parents[2] / "deploy/bundles/all-minilm-l6-v2-int8/tokenizer.json"
)


def tiny_cross_encoder() -> Any:
    """Make one of random weights, always the same."""
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=30_522,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=12,
        intermediate_size=64,
        num_labels=1,
        attn_implementation="eager",
        return_dict=False,
    )
    return transformers.BertForSequenceClassification(config).eval()


def pack(network: Any, folder: Path) -> None:
    """Write model.onnx, quantised with one scale a matrix, plain.onnx and the tokenizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.ones((2, 8), dtype=torch.int64),) * 3,
            str(folder / "plain.onnx"),
            input_names=["input_ids", "attention_mask", "token_type_ids"],
            output_names=["logits"],
            opset_version=14,
            dynamo=False,
        )
    quantize_dynamic(folder / "plain.onnx", folder / "model.onnx", weight_type=QuantType.QInt8)
    (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
