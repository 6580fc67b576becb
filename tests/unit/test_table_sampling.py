"""Does a sample of passages stand for all of them?"""

import numpy as np
from shoal.table import (
    DocumentRows,
    PassageSpan,
    PassageTable,
    Tombstone,
    build_batch,
    sampling,
)
from shoal.table.sampling import sample_passages


def rows(number):
    vector = np.array([[number, 1]], np.float32)
    spans = [PassageSpan(0, 4, f"text {number}")]
    return DocumentRows(f"d{number}", "", "", bytes(32), 0, spans, vector)


def test_every_passage_is_as_likely_to_be_drawn_and_none_without_a_vector(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "NUMBERS", sampling.NUMBERS._replace(batch_rows=16))
    table = PassageTable.create(str(tmp_path / "index" / "table.lance"), 2)
    assert sample_passages(table, 10, 0).texts == []
    written = [rows(number) for number in range(50)]
    for first, operations in ((0, written[:20]), (20, [*written[20:], Tombstone("gone")])):
        table.append(build_batch(operations, first_sequence=first, updated_at_us=0, dimension=2))
    everything = sample_passages(table, 100, 0)
    assert sorted(everything.texts) == sorted(f"text {number}" for number in range(50))
    counts = np.zeros(50)
    for seed in range(200):
        drawn = sample_passages(table, 10, seed)
        # The row that a deletion left may be among those that were drawn.
        assert 9 <= len(drawn.vectors) == len(drawn.document_ids) <= 10
        numbers = drawn.vectors[:, 0].astype(int)
        assert drawn.document_ids == [f"d{each}" for each in numbers]
        counts[numbers] += 1
    # 39 of each are expected; six deviations of a binomial are 34.
    assert np.abs(counts - 200 * 10 / 51).max() < 34
