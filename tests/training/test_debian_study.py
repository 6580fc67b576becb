"""Are encoders judged as they are said to be, and is nothing encoded twice?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from shoal.training.debian_study import (
    encode_all,
    judged_measures,
    load_encoder,
    main,
    recall_at_ten,
)

ROOT = Path(__file__).resolve().parents[2] / "deploy"
BUNDLE = ROOT / "bundles" / "all-minilm-l6-v2-int8"


def test_recall_counts_the_first_ten() -> None:
    passages = np.eye(64, dtype=np.float32)
    queries = np.tile(np.linspace(1.0, 0.0, 64, dtype=np.float32), (64, 1))
    # Passages 0 to 9 are the nearest to every question.
    assert recall_at_ten(queries, passages, range(64)) == 10 / 64


def test_what_was_encoded_is_read(tmp_path: Path) -> None:
    encoder = load_encoder(BUNDLE, tokens=8, threads=1)
    texts = ["mail servers", "maps of the stars", "a very long text of many words " * 20]
    once = encode_all(encoder, texts, tmp_path)
    assert once.shape == (3, 384)
    assert encoder.count_tokens(texts)[2] == 8
    (kept,) = tmp_path.iterdir()
    np.save(kept, once[::-1])
    assert (encode_all(encoder, texts, tmp_path) == once[::-1]).all()


def test_a_judged_set_is_judged(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    texts = ["Ale is brewed from malt.", "A hem is stitched.", "Maps show the way."]
    lines = [f'{{"_id": "d{at}", "text": "{text}"}}' for at, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    (folder / "queries.jsonl").write_text(
        '{"_id": "q", "text": "how do I brew beer"}\n{"_id": "unasked", "text": "nothing"}\n'
    )
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\n")
    found = judged_measures(load_encoder(BUNDLE, tokens=16, threads=1), folder)
    assert found == {"nDCG@10": pytest.approx(1.0), "R@10": 1.0, "RR@10": 1.0}


def test_figures_are_kept_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = load_encoder(BUNDLE, tokens=8, threads=1).bundle
    figures = {
        "bundle": "kept",
        "passages": 4096,
        "recall@10": 0.1234,
        "judged": {"nDCG@10": 0.5, "R@10": 0.6, "RR@10": 0.7},
    }
    path = tmp_path / f"{bundle.card.name}-{bundle.fingerprint}-4096.json"
    path.write_text(json.dumps(figures))
    main([str(tmp_path), "--threads", "1", "--passages", "4096", str(BUNDLE)])
    shown = capsys.readouterr().out
    assert "4,096" in shown
    assert "0.1234" in shown
