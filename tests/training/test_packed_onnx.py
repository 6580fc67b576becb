"""Are eight-bit ONNX weights read back as what they were made from?"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the training extra")
transformers = pytest.importorskip("transformers", reason="needs the training extra")
pytest.importorskip("onnx", reason="needs the training extra")

from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: E402
from shoal.training import msmarco, packed_onnx  # noqa: E402
from shoal.training.export import ExportError  # noqa: E402

pytestmark = [
    pytest.mark.training,
    # Of libraries, about themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
TOKENIZER = (
    Path(__file__).resolve().parents[2] / "deploy/bundles/all-minilm-l6-v2-int8/tokenizer.json"
)


@pytest.fixture(scope="module")
def original() -> Any:
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


@pytest.fixture(scope="module")
def packaged(original: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a package carries it: ONNX, quantised with one scale a matrix."""
    folder = tmp_path_factory.mktemp("packaged")
    names = ["input_ids", "attention_mask", "token_type_ids"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            original,
            (torch.ones((2, 8), dtype=torch.int64),) * 3,
            str(folder / "plain.onnx"),
            input_names=names,
            output_names=["logits"],
            opset_version=14,
            dynamo=False,
        )
    quantize_dynamic(folder / "plain.onnx", folder / "model.onnx", weight_type=QuantType.QInt8)
    (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    return folder


def test_the_weights_come_back(original: Any, packaged: Path, tmp_path: Path) -> None:
    packed_onnx.unpack(packaged, tmp_path / "weights")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "weights")
    assert again.config.num_hidden_layers == 2
    expected = original.state_dict()
    restored = again.state_dict()
    assert set(restored) == set(expected)
    for name, values in expected.items():
        # Half of a step of 8 bits at most.
        atol = float(values.abs().max()) / 127
        np.testing.assert_allclose(restored[name].numpy(), values.numpy(), atol=atol)


def test_another_file_is_refused(packaged: Path) -> None:
    with pytest.raises(packed_onnx.PackedWeightsError, match=r"plain\.onnx"):
        packed_onnx.read_tensors(packaged / "plain.onnx")


def test_without_the_package_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_onnx, "PACKAGE", "no_such_package")
    assert packed_onnx.packaged_folder() is None
    with pytest.raises(ExportError, match="no_such_package"):
        msmarco.build(tmp_path / "out", tmp_path, passages=10, questions=10, seed=1)
