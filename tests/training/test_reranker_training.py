"""Does the reranker's network find a question's words in a passage, and become a bundle?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the training extra")
transformers = pytest.importorskip("transformers", reason="needs the training extra")
pytest.importorskip("onnx", reason="needs the training extra")

from shoal.bundle import BlendCard, BundleTokenizer, RerankerModel, load_bundle  # noqa: E402
from shoal.training.export import ExportError, export_module, resolve_weights  # noqa: E402
from shoal.training.interaction import InteractionReranker  # noqa: E402
from shoal.training.reranker import feed  # noqa: E402

pytestmark = [
    pytest.mark.training,
    # Of libraries, about themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
ENCODER = Path(__file__).resolve().parents[2] / "deploy" / "bundles" / "all-minilm-l6-v2-int8"
PAIRS = [
    ("how do I brew ale", "Brewing. Ale is brewed from malt, hops and yeast."),
    ("how do I brew ale", "Sewing. A hem is folded twice and stitched."),
    ("how do I brew ale", ""),
    ("", "Sewing. A hem is folded twice and stitched."),
]


@pytest.fixture(scope="module")
def network() -> Any:
    """A tiny transformer of random weights: what is built in needs no training."""
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=30_522,
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=128,
        attn_implementation="eager",
    )
    return InteractionReranker(transformers.BertModel(config, add_pooling_layer=False)).eval()


@pytest.fixture(scope="module")
def tokenizer() -> BundleTokenizer:
    return BundleTokenizer(ENCODER / "tokenizer.json", 64)


def _score(network: Any, tokenizer: BundleTokenizer, pairs: list[tuple[str, str]]) -> Any:
    with torch.no_grad():
        return network(*feed(tokenizer, pairs))[:, 0].numpy()


def test_words_that_are_found_count(network: Any, tokenizer: BundleTokenizer) -> None:
    near, far, empty, unasked = _score(network, tokenizer, PAIRS)
    assert near > far
    assert near > empty
    assert np.isfinite([empty, unasked]).all()


def test_padding_changes_nothing(network: Any, tokenizer: BundleTokenizer) -> None:
    alone = [_score(network, tokenizer, [pair])[0] for pair in PAIRS]
    np.testing.assert_allclose(_score(network, tokenizer, PAIRS), alone, atol=1e-4)


def test_the_network_becomes_a_bundle(
    network: Any, tokenizer: BundleTokenizer, tmp_path: Path
) -> None:
    blend = BlendCard(weight=0.05, chosen_on="nothing")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tokenizer.json").write_bytes((ENCODER / "tokenizer.json").read_bytes())
    (tmp_path / "weights" / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer"}'
    )
    card = export_module(
        network,
        tmp_path / "weights",
        tmp_path / "bundle",
        name="tiny",
        pairs=PAIRS,
        blend=blend,
        max_length=64,
        source="a test",
        precision="fp32",
    )
    assert card.agreement is not None
    scores = RerankerModel(load_bundle(tmp_path / "bundle")).score(PAIRS)
    np.testing.assert_allclose(scores, _score(network, tokenizer, PAIRS), atol=1e-3)


def test_weights_that_are_not_there_are_named() -> None:
    with pytest.raises(ExportError, match="no-such-model"):
        resolve_weights("no-such-model")
