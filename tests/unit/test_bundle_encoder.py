"""Does the shipped encoder give the vectors that its weights give, whatever text it is given?"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shoal.bundle import BundleInvalidError, EncoderModel, RerankerModel, load_bundle

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "deploy" / "bundles" / "all-minilm-l6-v2-int8"
GOLDEN = ROOT / "tests" / "golden" / "minilm-vectors.json"


@pytest.fixture(scope="module")
def model() -> EncoderModel:
    return EncoderModel(load_bundle(BUNDLE), threads=1)


def test_vectors_agree_with_the_fp32_weights(model: EncoderModel) -> None:
    # Made once with the fp32 weights in torch; int8 keeps a cosine of 0.93 at the very least.
    golden = json.loads(GOLDEN.read_text())
    vectors = model.encode(list(golden), "passage")
    for vector, expected in zip(vectors, golden.values(), strict=True):
        assert float(vector @ np.asarray(expected, dtype=np.float32)) > 0.93


def test_vectors_have_unit_length_and_the_card_s_dimension(model: EncoderModel) -> None:
    vectors = model.encode(["a", "two words", "three words here " * 300], "passage")
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)


def test_meaning_decides_nearness(model: EncoderModel) -> None:
    question, near, far = model.encode(
        [
            "how do I back up a database",
            "Dumping PostgreSQL regularly protects you from losing data.",
            "The recipe asks for two eggs and a cup of sugar.",
        ],
        "query",
    )
    assert question @ near > question @ far + 0.2


def test_a_text_keeps_its_vector_in_any_batch(model: EncoderModel) -> None:
    # int8 activations are scaled over a batch, so a little changes: the cosine stays above 0.97.
    texts = [
        f"sentence number {n} speaks of {w}" for n, w in enumerate(["ships", "tea", "law"] * 9)
    ]
    together = model.encode(texts, "passage")
    alone = np.concatenate([model.encode([text], "passage") for text in texts])
    assert (together * alone).sum(axis=1).min() > 0.97


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\x00\x01\x02",
        "a\x00b",
        "x" * 1_048_576,
        "语" * 300_000,
        "\U0001f600" * 50,
        "\ufeff",
    ],
    ids=["empty", "space", "controls", "nul", "1MB", "chinese", "emoji", "bom"],
)
def test_any_text_has_a_vector(model: EncoderModel, text: str) -> None:
    (vector,) = model.encode([text], "passage")
    assert np.isfinite(vector).all()
    assert abs(float(np.linalg.norm(vector)) - 1.0) < 1e-4


def test_every_script_has_a_vector(model: EncoderModel) -> None:
    texts = [
        "Ποιος κέρδισε το Super Bowl;",
        "Кто выиграл Суперкубок?",
        "من فاز بالسوبر بول؟",
        "सुपर बाउल किसने जीता?",
        "ใครชนะซูเปอร์โบวล์",
        "谁赢得了超级碗?",
        "Ai đã thắng Super Bowl?",
    ]
    vectors = model.encode(texts, "query")
    assert np.isfinite(vectors).all()
    assert np.linalg.matrix_rank(vectors) == len(texts)


def test_text_beyond_the_maximum_length_is_not_read(model: EncoderModel) -> None:
    start = "word " * 300
    one, other = model.encode([start + "about ships", start + "about tea"], "passage")
    assert one @ other > 0.999
    assert model.count_tokens([start, "word"]) == [256, 3]


def test_a_bundle_of_the_other_kind_is_refused(model: EncoderModel) -> None:
    with pytest.raises(BundleInvalidError, match="not a reranker"):
        RerankerModel(model.bundle)


def test_offsets_name_the_characters_of_each_token(model: EncoderModel) -> None:
    text = "Café\x00 über 東京"
    words = [text[start:end] for start, end in model.bundle.tokenizer().offsets(text)]
    assert words == ["Café", "über", "東", "京"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux does")
def test_no_more_threads_run_than_the_budget_allows() -> None:
    # In a process of its own, as thread pools stay. The caller's thread is the first of the budget.
    code = """
import os, sys
from shoal.bundle import EncoderModel, load_bundle
bundle, started = load_bundle(sys.argv[1]), len(os.listdir("/proc/self/task"))
for threads, expected in ((1, 0), (3, 2)):
    model = EncoderModel(bundle, threads=threads)
    model.encode(["one text", "and another"] * 40, "passage")
    assert len(os.listdir("/proc/self/task")) - started <= expected, threads
    del model
"""
    command = [sys.executable, "-c", code, str(BUNDLE)]
    assert subprocess.run(command, check=False).returncode == 0


def test_serving_does_not_import_torch() -> None:
    code = "import sys, shoal.bundle; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_xquad_is_ranked_as_well_as_measured(model: EncoderModel) -> None:
    # Over 120 of the questions, to be quick; the demo evaluates all 1,190.
    corpus = _read("corpus")
    questions = _read("queries")[::10]
    passages = model.encode([f"{each['title']}. {each['text']}" for each in corpus], "passage")
    scores = model.encode([each["text"] for each in questions], "query") @ passages.T
    lines = (ROOT / "deploy/corpora/xquad-en/qrels/test.tsv").read_text().splitlines()[1:]
    relevant = dict(line.split("\t")[:2] for line in lines)
    ids = [each["_id"] for each in corpus]
    top = [[ids[i] for i in np.argsort(-row)[:10]] for row in scores]
    found = [relevant[q["_id"]] in hits for q, hits in zip(questions, top, strict=True)]
    assert np.mean(found) > 0.97


def _read(name: str) -> list[dict[str, str]]:
    path = ROOT / "deploy" / "corpora" / "xquad-en" / f"{name}.jsonl"
    packed = path.with_suffix(".jsonl.gz")
    with gzip.open(packed, "rt") if packed.exists() else path.open() as lines:
        return [json.loads(line) for line in lines]
