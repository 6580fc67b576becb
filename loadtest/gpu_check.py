"""Does Shoal's GPU path work on this machine, and what is it worth?

One script, for a machine with an NVIDIA GPU and Shoal installed with its extra `gpu`:

    python -m loadtest.gpu_check [--encoder FOLDER] [--reranker FOLDER]

It runs the encoder's and the reranker's bundles by ONNX Runtime's CUDA provider and compares them
with the same on the processor, then searches with the shards' FAISS index on the GPU and compares
it with exact search and with the processor. Prints a JSON object. Exit status: 0 all is well; 1 a
result differs; 2 there is no usable GPU, or something is missing, and the message says what.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

try:
    from shoal.bundle import BundleError, EncoderModel, RerankerModel, load_bundle
    from shoal.rpc.errors import ServiceError
    from shoal.shard.codebook import train_codebook
    from shoal.shard.codes import load_codebook
    from shoal.shard.gpu import check_gpu

    from loadtest import machine
    from loadtest.bench_table import ensure_table
    from loadtest.shard_indexes import ShardIndex
    from loadtest.vectors import Vectors, VectorSet
except ImportError as error:
    sys.stderr.write(f"gpu_check: install Shoal with its extra `gpu` first: {error}\n")
    raise SystemExit(2) from error

BUNDLES: Final = Path(__file__).parents[1] / "deploy/bundles"
TEXT_COUNT: Final = 512
TOP_K: Final = 10
# Reduced precision and another order of sums: what must still hold of a unit vector, and of a
# ranking.
MIN_COSINE: Final = 0.99
MIN_RANK_CORRELATION: Final = 0.98
MIN_RECALL: Final = 0.95
# What a GPU's index may lose against the processor's.
RECALL_MARGIN: Final = 0.02


def fail(message: str) -> NoReturn:
    """End with the status for a machine that cannot run the check."""
    sys.stderr.write(f"gpu_check: {message}\n")
    raise SystemExit(2)


def require_gpu() -> list[str]:
    """Name the GPUs, as the driver does; end with a precise message if there is none."""
    query = "--query-gpu=name,memory.total,driver_version"
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except FileNotFoundError:
        fail("there is no nvidia-smi: this machine has no NVIDIA driver, so no GPU to check")
    except subprocess.CalledProcessError as error:
        reason = (error.stdout + error.stderr).strip()
        fail(f"nvidia-smi failed, so there is no usable GPU: {reason}")
    except subprocess.TimeoutExpired:
        fail("nvidia-smi does not answer: the driver hangs")
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def texts() -> list[str]:
    """Texts of 5 to 120 words, always the same."""
    random = np.random.default_rng(11)
    words = ["shard", "query", "vector", "passage", "index", "recall", "broker", "table", "commit"]
    lengths = random.integers(5, 120, size=TEXT_COUNT)
    return [" ".join(random.choice(words, size=length)) for length in lengths]


def best_of(work: Callable[[], object], repeats: int = 3) -> float:
    """Seconds that the fastest of some runs takes, after one that does not count."""
    work()
    taken = []
    for _ in range(repeats):
        started_s = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started_s)
    return min(taken)


def rank_correlation(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Spearman's: 1 if both put things into the same order."""
    ranks = [np.argsort(np.argsort(scores)).astype(np.float64) for scores in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def check_encoder(folder: Path) -> dict[str, Any]:
    """The encoder's vectors on GPU and processor, and its speed on both."""
    bundle, batch = load_bundle(folder), texts()
    cpu = EncoderModel(bundle, threads=os.cpu_count() or 1, device="cpu", batch_tokens=16_384)
    gpu = EncoderModel(bundle, threads=1, device="cuda", batch_tokens=16_384)
    expected, found = cpu.encode(batch, "passage"), gpu.encode(batch, "passage")
    lowest = float((expected * found).sum(axis=1).min())
    cpu_s = best_of(lambda: cpu.encode(batch, "passage"), repeats=1)
    gpu_s = best_of(lambda: gpu.encode(batch, "passage"))
    return {
        "bundle": bundle.card.name,
        "lowest_cosine": lowest,
        "cpu_texts_per_s": len(batch) / cpu_s,
        "gpu_texts_per_s": len(batch) / gpu_s,
        "gpu_over_cpu": cpu_s / gpu_s,
        "ok": lowest >= MIN_COSINE,
    }


def check_reranker(folder: Path) -> dict[str, Any]:
    """The reranker's scores on GPU and processor, and its speed on both."""
    bundle, batch = load_bundle(folder), texts()
    pairs = [(batch[number % 7], text) for number, text in enumerate(batch)]
    cpu = RerankerModel(bundle, threads=os.cpu_count() or 1, device="cpu", batch_tokens=16_384)
    gpu = RerankerModel(bundle, threads=1, device="cuda", batch_tokens=16_384)
    expected, found = cpu.score(pairs), gpu.score(pairs)
    correlation = rank_correlation(expected, found)
    cpu_s = best_of(lambda: cpu.score(pairs), repeats=1)
    gpu_s = best_of(lambda: gpu.score(pairs))
    return {
        "bundle": bundle.card.name,
        "rank_correlation": correlation,
        "largest_difference": float(np.abs(expected - found).max()),
        "cpu_pairs_per_s": len(pairs) / cpu_s,
        "gpu_pairs_per_s": len(pairs) / gpu_s,
        "gpu_over_cpu": cpu_s / gpu_s,
        "ok": correlation >= MIN_RANK_CORRELATION,
    }


def check_shards(cache: Path, vector_count: int) -> dict[str, Any]:
    """Recall and speed of a shard's search, its lists on the processor and on the GPU."""
    vectors = Vectors(VectorSet(count=vector_count), cache)
    folder, threads = vectors.folder / "codebook", os.cpu_count() or 1
    manifest = train_codebook(str(ensure_table(vectors)), folder, threads=threads)
    index = ShardIndex(load_codebook(folder), vectors.rows, np.arange(vector_count))
    nearest, queries = vectors.nearest(len(vectors.queries), TOP_K), vectors.queries
    cpu_recall = _recall(index.search(queries, TOP_K)[1], nearest)
    cpu_s = best_of(lambda: index.search(queries, TOP_K))
    index.move_to_gpu()
    gpu_recall = _recall(index.search(queries, TOP_K)[1], nearest)
    gpu_s = best_of(lambda: index.search(queries, TOP_K))
    return {
        "vectors": vector_count,
        "factory": manifest.factory,
        "cpu_recall": cpu_recall,
        "gpu_recall": gpu_recall,
        "cpu_queries_per_s": len(queries) / cpu_s,
        "gpu_queries_per_s": len(queries) / gpu_s,
        "gpu_over_cpu": cpu_s / gpu_s,
        "ok": gpu_recall >= max(MIN_RECALL, cpu_recall - RECALL_MARGIN),
    }


def _recall(found: NDArray[np.int64], nearest: NDArray[np.int64]) -> float:
    pairs = zip(found.tolist(), nearest.tolist(), strict=True)
    return sum(len(set(one) & set(other)) for one, other in pairs) / nearest.size


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--encoder", type=Path, default=BUNDLES / "all-minilm-l6-v2-int8", help="bundle's folder")
    add("--reranker", type=Path, default=BUNDLES / "reranker-minilm-l12-int8", help="the same")
    add("--vectors", type=int, default=500_000, help="vectors to search among")
    add("--cache", type=Path, help="folder for the vectors; default: a temporary one")
    return parser.parse_args(arguments)


def main() -> None:
    """Check one after the other, and print what was found."""
    chosen = parse()
    gpus = require_gpu()
    found: dict[str, Any] = {"machine": machine.facts(), "gpus": gpus}
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as temporary:
        cache = chosen.cache or Path(temporary)
        checks: dict[str, Callable[[], dict[str, Any]]] = {
            "encoder": lambda: check_encoder(chosen.encoder),
            "reranker": lambda: check_reranker(chosen.reranker),
            "shards": lambda: check_shards(cache, chosen.vectors),
        }
        try:
            # At once, as the shards' check comes last and takes minutes to get to the GPU.
            check_gpu()
            for name, check in checks.items():
                found[name] = check()
                print(json.dumps({name: found[name]}), file=sys.stderr)
        except (BundleError, ServiceError, OSError, ValueError) as error:
            # Bundles and FAISS say themselves what is missing and what to do.
            fail(str(error))
    print(json.dumps(found, indent=2))
    if not all(found[name]["ok"] for name in checks):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
