"""How do the passages that are there get the vectors of another model?

    plan ──> encode rows a to b ─┐
        ├──> encode rows c to d ─┼──> the writer takes them into the table ──> plan: none is left
        └──> ...                ─┘

Each step is a function that can run in a process of its own, on any machine that reaches the table,
the bundle and the folder for vectors, and may be repeated. What it has encoded it leaves in blocks
(shoal.table.vector_blocks), so that a kill costs one block at most, in a later build too.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from shoal.table import PassageTable, schema
from shoal.table.reading import read_whole
from shoal.table.vector_blocks import held_rows, write_block
from shoal.writer.encoding_job import BundleFacts, EncodingJob, EncodingProgress, RowRange
from shoal.writer.shown import ShownTexts
from shoal.writer.tokens import load_measure

_log = logging.getLogger(__name__)

# Rows of a step: four minutes of a core with a small model in int8, beside a second for loading it.
STEP_ROWS: Final = 16_384
# Rows that are encoded between two blocks, and so lost to a kill at most.
BLOCK_ROWS: Final = 512
# Most tokens of one run of the model, padding included. Longer runs gain nothing on a core.
RUN_TOKENS: Final = 2048


def inspect_bundle(folder: str) -> BundleFacts:
    """Read and verify a bundle on this machine. Raises BundleError."""
    # Here, as bundles bring the machinery of models along, which writers do without.
    from shoal.bundle import load_bundle
    from shoal.bundle.errors import BundleInvalidError

    bundle = load_bundle(folder)
    if bundle.card.kind != "encoder" or bundle.card.dimension is None:
        raise BundleInvalidError(f"{bundle.folder} is a {bundle.card.kind}, not an encoder")
    return BundleFacts(bundle.model, bundle.card.dimension)


def plan_encoding(job: EncodingJob) -> list[RowRange]:
    """Divide what is to be encoded: present passages that neither table nor blocks have."""
    missing = _missing(job, PassageTable.open(job.table_uri))
    return [
        RowRange(int(rows[0]), int(rows[-1]), len(rows))
        for rows in (missing[at : at + STEP_ROWS] for at in range(0, len(missing), STEP_ROWS))
    ]


def encode_rows(job: EncodingJob, rows: RowRange) -> int:
    """Encode the passages of a range that are still to be encoded; returns how many.

    Raises BundleError, also if the bundle is not of the model that the build began with.
    """
    from shoal.bundle import EncoderModel, load_bundle
    from shoal.bundle.errors import BundleInvalidError

    table = PassageTable.open(job.table_uri)
    missing = _missing(job, table)
    missing = missing[(missing >= rows.first) & (missing <= rows.last)]
    measure = load_measure(Path(job.tokenizer) if job.tokenizer else None)
    shown = ShownTexts(measure, job.title_tokens, job.title_chars)
    progress = EncodingProgress(Path(job.progress_folder), rows.first)
    if len(missing) == 0:
        progress.report(rows.count, 0.0)
        return 0
    bundle = load_bundle(job.bundle)
    if bundle.model != job.model:
        # It was another one when the build began, or is another one on this machine.
        raise BundleInvalidError(
            f"{bundle.folder} is {bundle.model}, and the build is of {job.model}: put that bundle "
            "there on every machine, and build again"
        )
    encoder = EncoderModel(bundle, threads=job.threads, batch_tokens=RUN_TOKENS)
    kept = max(0, rows.count - len(missing))
    started_s = time.monotonic()
    for first in range(0, len(missing), BLOCK_ROWS):
        ids = missing[first : first + BLOCK_ROWS]
        found, texts = _texts(table, ids, shown)
        if texts:
            write_block(Path(job.vectors_folder), found, encoder.encode(texts, "passage"), table)
        done = min(first + BLOCK_ROWS, len(missing))
        progress.report(kept + done, done / max(time.monotonic() - started_s, 1e-6))
    progress.report(rows.count, 0.0)
    return len(missing)


def _missing(job: EncodingJob, table: PassageTable) -> NDArray[np.uint64]:
    missing = read_whole(table, lambda: table.missing(job.model))
    return np.setdiff1d(missing, held_rows(Path(job.vectors_folder)))


def _texts(
    table: PassageTable, ids: NDArray[np.uint64], shown: ShownTexts
) -> tuple[NDArray[np.uint64], list[str]]:
    """What the encoder is to read of some rows, and the ids of those that are still there."""

    def read() -> tuple[NDArray[np.uint64], list[str]]:
        rows = table.take(ids, (schema.TITLE, schema.TEXT))
        titles, texts = rows.column(schema.TITLE), rows.column(schema.TEXT)
        made = [
            shown.passage(shown.title(title or "")[0], text or "")
            for title, text in zip(titles.to_pylist(), texts.to_pylist(), strict=True)
        ]
        return rows.column(schema.ROW_ID).to_numpy().astype(np.uint64), made

    return read_whole(table, read)
