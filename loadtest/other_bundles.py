"""How does one get another encoder, to try a rollout with? From the one that is shipped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHIPPED = Path(__file__).parents[1] / "deploy" / "bundles" / "all-minilm-l6-v2-int8"


def same_model(folder: Path, name: str) -> Path:
    """A bundle that makes the same vectors, and goes by another name: so it is another model."""
    shutil.copytree(SHIPPED, folder)
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"name": name}))
    return folder


def scrambled(folder: Path, name: str, *, noise: float, seed: int = 0) -> Path:
    """A bundle whose vectors are moved by what looks like chance: a worse model.

    noise: 0 leaves the vectors as they are. Each number of each token's output is moved by the sine
    of a random sum of all of them, so that texts that are alike are moved in different ways.
    """
    same_model(folder, name)
    model = onnx.load(str(folder / "model.onnx"))
    graph = model.graph
    output = graph.output[0]
    dimension = 384
    random = np.random.default_rng(seed)
    mixing = (200.0 * random.standard_normal((dimension, dimension))).astype(np.float32)
    inner = f"{output.name}_before"
    for node in graph.node:
        node.output[:] = [inner if each == output.name else each for each in node.output]
        node.input[:] = [inner if each == output.name else each for each in node.input]
    graph.initializer.append(numpy_helper.from_array(mixing, "scramble_mixing"))
    graph.initializer.append(
        numpy_helper.from_array(np.array(noise, dtype=np.float32), "scramble_noise")
    )
    graph.node.extend(
        [
            helper.make_node("MatMul", [inner, "scramble_mixing"], ["scramble_sum"]),
            helper.make_node("Sin", ["scramble_sum"], ["scramble_sine"]),
            helper.make_node("Mul", ["scramble_sine", "scramble_noise"], ["scramble_move"]),
            helper.make_node("Add", [inner, "scramble_move"], [output.name]),
        ]
    )
    assert output.type.tensor_type.elem_type == TensorProto.FLOAT
    onnx.save(model, str(folder / "model.onnx"))
    card = json.loads((folder / "card.json").read_text())
    card["checksums"] = {}
    (folder / "card.json").write_text(json.dumps(card))
    return folder
