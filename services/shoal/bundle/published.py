"""How is a model read that sentence-transformers published?

Its folder holds modules.json, which lists what a text passes through; 1_Pooling/config.json;
sentence_bert_config.json with the maximum length; tokenizer.json; and ONNX files below onnx/. See
https://sbert.net/docs/sentence_transformer/usage/efficiency.html for the latter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from shoal.bundle.card import BundleCard, parse_card
from shoal.bundle.errors import BundleError, BundleFileMissingError, BundleInvalidError

_TRANSFORMER: Final = "sentence_bert_config.json"
_KNOWN_MODULES: Final = ("Transformer", "Pooling", "Normalize")


def is_published(folder: Path) -> bool:
    """True if the folder is in the layout that sentence-transformers publishes."""
    return (folder / "modules.json").is_file()


def card_of_published(folder: Path, model_file: str | None = None) -> BundleCard:
    """Put together the card of a published encoder. Raises BundleError.

    The published files carry no checksums; the fingerprint is made from what is there.
    """
    modules = [
        str(each.get("type", "")).rpartition(".")[2] for each in _read(folder, "modules.json")
    ]
    unknown = [name for name in modules if name not in _KNOWN_MODULES]
    if unknown:
        raise BundleInvalidError(
            f"{folder}/modules.json: cannot serve a model with {', '.join(unknown)}; only "
            f"{', '.join(_KNOWN_MODULES)} are understood"
        )
    pooling = _read(folder, "1_Pooling/config.json")
    prompts = _read_optional(folder, "config_sentence_transformers.json").get("prompts") or {}
    name = folder.resolve().name.lower()
    chosen = model_file or _default_model_file(folder)
    return parse_card(
        {
            "name": _readme_name(folder) or name,
            "kind": "encoder",
            "dimension": pooling.get("word_embedding_dimension")
            or pooling.get("embedding_dimension"),
            "pooling": _pooling_of(folder, pooling),
            "normalize": True,
            "max_length": _read(folder, _TRANSFORMER).get("max_seq_length") or 512,
            "query_prefix": prompts.get("query", ""),
            "passage_prefix": prompts.get("passage", prompts.get("document", "")),
            "model_file": chosen,
            "precision": "int8" if "int8" in chosen or "quant" in chosen else "fp32",
            "licence": "see the model's own page",
            "source": f"published by sentence-transformers: {name}",
        },
        folder / "modules.json",
    )


def fetch_repository(repository: str) -> Path:
    """Fetch a repository of the Hugging Face hub into its cache; return the folder.

    Raises BundleError if it is no repository, or cannot be fetched from here.
    """
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise BundleFileMissingError(
            Path(repository), "there is no such folder, nor is it a repository (owner/name)"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise BundleError(
            f"{repository} is no folder here, and fetching it from the hub needs the package "
            f"huggingface_hub: pip install huggingface_hub"
        ) from error
    try:
        return Path(
            snapshot_download(
                repository, allow_patterns=["*.json", "onnx/*", "1_Pooling/*", "README.md"]
            )
        )
    except Exception as error:
        raise BundleError(f"cannot fetch {repository} from the hub: {error}") from error


def _default_model_file(folder: Path) -> str:
    """Prefer the plain fp32 file; it runs everywhere."""
    for name in ("onnx/model.onnx", "model.onnx"):
        if (folder / name).is_file():
            return name
    found = sorted(path.name for path in folder.glob("onnx/*.onnx"))
    if found:
        return f"onnx/{found[0]}"
    raise BundleFileMissingError(
        folder / "onnx" / "model.onnx",
        "publish the model with its ONNX file, or use `shoal export`",
    )


def _pooling_of(folder: Path, config: dict[str, Any]) -> str:
    mode = config.get("pooling_mode")
    if config.get("pooling_mode_mean_tokens") or mode == "mean":
        return "mean"
    if config.get("pooling_mode_cls_token") or mode == "cls":
        return "cls"
    raise BundleInvalidError(f"{folder}/1_Pooling/config.json: only mean and cls are understood")


def _readme_name(folder: Path) -> str | None:
    """The model's own name, where the folder is named by a commit, as in the hub's cache."""
    stored = _read_optional(folder, "config.json").get("_name_or_path")
    name = str(stored).rpartition("/")[2].lower() if stored else None
    return name or None


def _read(folder: Path, name: str) -> Any:
    path = folder / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleFileMissingError(path, "published models have it") from None
    except ValueError as error:
        raise BundleInvalidError(f"{path} is no JSON: {error}") from error


def _read_optional(folder: Path, name: str) -> dict[str, Any]:
    return dict(_read(folder, name)) if (folder / name).is_file() else {}
