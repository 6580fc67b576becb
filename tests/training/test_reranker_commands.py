"""Do `shoal train reranker` and `shoal export reranker` leave bundles that rank?"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the training extra")
transformers = pytest.importorskip("transformers", reason="needs the training extra")
pytest.importorskip("onnx", reason="needs the training extra")

from shoal.bundle import RerankerModel, load_bundle  # noqa: E402
from shoal.cli import export  # noqa: E402
from shoal.cli.main import app  # noqa: E402
from shoal.training import blend_questions, msmarco, packed_onnx, reranker  # noqa: E402
from shoal.training.debian import Package  # noqa: E402
from shoal.training.manual_pages import ManualPage  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from tests.harness.packed_cross_encoder import TOKENIZER, pack, tiny_cross_encoder  # noqa: E402

pytestmark = [
    pytest.mark.training,
    # Of libraries, about themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
SUBJECTS = ("ale", "bread", "cloth", "glass", "honey", "ink", "maps", "salt")
DEEDS = ("counts", "draws", "finds", "mends", "sorts", "sells")
WORDS = ("old", "new", "wide", "deep", "quick", "slow", "red", "blue", "tall", "small", "late")


def _packages() -> list[Package]:
    rng = random.Random(5)
    found = []
    for deed in DEEDS:
        for subject in SUBJECTS:
            told = " ".join(
                f"It {deed} {subject} that is {rng.choice(WORDS)} and {rng.choice(WORDS)} daily."
                for _ in range(4)
            )
            name = f"{deed}-{subject}"
            description = f"This {deed} {subject} for whoever asks. {told}"
            found.append(Package(name, name, f"program that {deed} {subject}", description, "", ""))
    return found


def _pages() -> list[ManualPage]:
    return [
        ManualPage(
            name=f"{deed}-{subject}",
            purpose=f"show how one {deed} {subject} by hand",
            description=f"The command {deed} {subject}, as was done in old days. " * 2,
            related=tuple(f"{deed}-{other}" for other in SUBJECTS[:4] if other != subject),
        )
        for deed in DEEDS
        for subject in SUBJECTS
    ]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Debian machine with few packages and manual pages."""
    for module in (blend_questions, reranker):
        monkeypatch.setattr(module, "iter_packages", lambda: iter(_packages()))
    monkeypatch.setattr(blend_questions, "iter_manual_pages", lambda: iter(_pages()))
    for sections in ("manual_pairs", "documentation_pairs"):
        monkeypatch.setattr(blend_questions, sections, lambda: iter(()))


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny cross-encoder of random weights, packed as the package carries one."""
    folder = tmp_path_factory.mktemp("packed")
    pack(tiny_cross_encoder(), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_onnx, "packaged_folder", lambda: folder)
        yield folder


@pytest.fixture(scope="module")
def encoder_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny transformer to begin from."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=30_522,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return folder


def _shoal(*words: str) -> Any:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout[done.stdout.index("{") :])


def _ranks(bundle: Path) -> None:
    model = RerankerModel(load_bundle(bundle))
    scores = model.score([("who sells ale", "It sells ale."), ("who sells ale", "A map of salt.")])
    assert np.isfinite(scores).all()
    assert scores[0] != scores[1]


@pytest.mark.usefixtures("machine", "cross_encoder")
def test_a_published_one_is_exported_and_its_blend_chosen(tmp_path: Path) -> None:
    out = tmp_path / "published"
    said = _shoal(
        *("train", "reranker", str(out), "--passages", "100", "--questions", "10", "--json")
    )
    assert said["blend"]["read"] in {each.read for each in msmarco.SHAPES}
    assert "30 questions" in said["blend"]["chosen_on"]
    card = load_bundle(out).card
    assert card.blend is not None
    assert card.blend.model_dump(mode="json") == said["blend"]
    _ranks(out)


@pytest.mark.usefixtures("machine")
def test_one_is_trained(
    tmp_path: Path, encoder_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reranker, "resolve_weights", lambda _: encoder_weights)
    out = tmp_path / "trained"
    options = ("--start", "encoder", "--packages", "48", "--steps", "2", "--questions", "10")
    said = _shoal("train", "reranker", str(out), *options, "--json")
    assert said["blend"]["weight"] > 0
    card = load_bundle(out).card
    assert "2 steps" in card.source
    assert card.agreement is not None
    _ranks(out)


@pytest.mark.usefixtures("machine")
def test_too_few_packages_are_said_to_be(
    tmp_path: Path, encoder_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reranker, "resolve_weights", lambda _: encoder_weights)
    monkeypatch.setattr(reranker, "iter_packages", lambda: iter(_packages()[:3]))
    done = CliRunner().invoke(
        app, ["train", "reranker", str(tmp_path / "none"), "--start", "encoder"]
    )
    assert done.exit_code == 1
    assert "3 packages are too few" in " ".join(done.output.split())
    assert not (tmp_path / "none").exists()


@pytest.mark.usefixtures("cross_encoder")
def test_packed_weights_are_exported_by_the_packages_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "COMPARED", 8)
    out = tmp_path / "exported"
    blend = ("--blend-weight", "0.02", "--blend-chosen-on", "nothing", "--passage-tokens", "32")
    options = ("--max-length", "64", "--precision", "fp32", *blend, "--json")
    said = _shoal("export", "reranker", packed_onnx.PACKAGE, str(out), *options)
    assert said["card"]["agreement"]["mean"] > 0.999
    assert load_bundle(out).card.passage_tokens == 32
    _ranks(out)
