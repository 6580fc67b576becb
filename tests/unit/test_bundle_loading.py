"""Is a bundle that is not whole refused, with words that say which file and why?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from shoal.bundle import (
    BundleDamagedError,
    BundleError,
    BundleFileMissingError,
    BundleInvalidError,
    DeviceUnavailableError,
    EncoderModel,
    load_bundle,
)
from shoal.bundle.session import batches

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "deploy" / "bundles" / "all-minilm-l6-v2-int8"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))


def _change_card(folder: Path, **fields: object) -> None:
    path = folder / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "card.json"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleFileMissingError, match=name):
        load_bundle(copy)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_damaged_file_is_named_with_both_checksums(copy: Path, name: str) -> None:
    expected = load_bundle(copy).card.checksums[name]
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleDamagedError, match=name) as caught:
        load_bundle(copy)
    assert expected in str(caught.value)


def test_an_unknown_field_of_the_card_is_refused(copy: Path) -> None:
    _change_card(copy, dimensoin=384)
    with pytest.raises(BundleInvalidError, match="dimensoin"):
        load_bundle(copy)


def test_an_encoder_without_dimension_is_refused(copy: Path) -> None:
    _change_card(copy, dimension=None)
    with pytest.raises(BundleInvalidError, match="dimension"):
        load_bundle(copy)


def test_a_path_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleFileMissingError, match="no such folder"):
        load_bundle(tmp_path / "nothing")


def test_the_fingerprint_follows_what_decides_the_vectors(copy: Path) -> None:
    same = load_bundle(copy).fingerprint
    assert same == load_bundle(BUNDLE).fingerprint
    _change_card(copy, licence="MIT")
    assert load_bundle(copy).fingerprint == same
    _change_card(copy, max_length=128)
    assert load_bundle(copy).fingerprint != same


def test_a_card_says_what_kind_of_text_it_is_for_and_an_old_one_means_prose(copy: Path) -> None:
    before = load_bundle(copy)
    assert before.card.modality == "prose"  # The card in the repository does not say.
    _change_card(copy, modality="code")
    after = load_bundle(copy)
    assert (after.card.modality, after.model) == ("code", before.model)
    _change_card(copy, modality="music")
    with pytest.raises(BundleInvalidError, match="modality: Input should be 'prose', 'code'"):
        load_bundle(copy)


def _publish(folder: Path, **modules: str) -> Path:
    """Lay the bundle out as sentence-transformers publishes it."""
    (folder / "onnx").mkdir(parents=True)
    (folder / "1_Pooling").mkdir()
    shutil.copy(BUNDLE / "model.onnx", folder / "onnx" / "model_qint8_avx512_vnni.onnx")
    shutil.copy(BUNDLE / "tokenizer.json", folder)
    names = ["Transformer", "Pooling", "Normalize", *modules.values()]
    listed = [
        {"idx": n, "name": str(n), "type": f"sentence_transformers.models.{name}"}
        for n, name in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    pooling = {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 256}))
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


def test_a_published_folder_is_a_bundle(tmp_path: Path) -> None:
    bundle = load_bundle(_publish(tmp_path / "all-MiniLM"))
    assert bundle.card.name == "all-minilm"
    assert (bundle.card.query_prefix, bundle.card.passage_prefix) == ("query: ", "passage: ")
    own = EncoderModel(load_bundle(BUNDLE)).encode(["query: a question"], "query")
    published = EncoderModel(bundle).encode(["a question"], "query")
    assert float((own * published).sum()) > 0.999


def test_a_published_folder_with_an_unknown_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalidError, match="Dense"):
        load_bundle(_publish(tmp_path / "model", extra="Dense"))


def test_a_file_of_a_published_folder_can_be_chosen(tmp_path: Path) -> None:
    folder = _publish(tmp_path / "model")
    with pytest.raises(BundleFileMissingError, match="model_O4"):
        load_bundle(folder, model_file="onnx/model_O4.onnx")


def test_a_repository_out_of_reach_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BundleError, match="sentence-transformers/none"):
        load_bundle("sentence-transformers/none")


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceUnavailableError, match="gpu"):
        EncoderModel(load_bundle(BUNDLE), device="cuda")


def test_a_file_that_is_no_model_is_refused(copy: Path) -> None:
    (copy / "model.onnx").write_bytes(b"not a model")
    _change_card(copy, checksums={})
    with pytest.raises(BundleInvalidError, match="ONNX Runtime"):
        EncoderModel(load_bundle(copy))


def test_batches_are_bounded_by_tokens_with_their_padding() -> None:
    lengths = [5, 200, 7, 6, 3, 90, 300]
    found = list(batches(lengths, 100))
    assert sorted(position for batch in found for position in batch) == list(range(len(lengths)))
    for batch in found:
        longest = max(lengths[position] for position in batch)
        assert len(batch) == 1 or len(batch) * longest <= 100
