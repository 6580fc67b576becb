"""Are eight-bit ONNX weights read back as what they were made from?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the training extra")
transformers = pytest.importorskip("transformers", reason="needs the training extra")
pytest.importorskip("onnx", reason="needs the training extra")

from shoal.training import msmarco, packed_onnx  # noqa: E402
from shoal.training.export import ExportError  # noqa: E402

from tests.harness.packed_cross_encoder import pack, tiny_cross_encoder  # noqa: E402

pytestmark = [
    pytest.mark.training,
    # Of libraries, about themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def original() -> Any:
    return tiny_cross_encoder()


@pytest.fixture(scope="module")
def packaged(original: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packaged")
    pack(original, folder)
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
