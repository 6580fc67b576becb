"""Is this folder a model that can be served, and is it whole?

Two layouts are read: Shoal's own, whose card says it all, and the one that sentence-transformers
publishes on the Hugging Face hub (published.py), whose files are put together into a card.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from shoal.bundle.card import CARD_FILE, BundleCard, read_card
from shoal.bundle.errors import BundleDamagedError, BundleFileMissingError
from shoal.bundle.published import card_of_published, fetch_repository, is_published
from shoal.bundle.tokens import BundleTokenizer


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are there and have their checksums."""

    folder: Path
    card: BundleCard
    fingerprint: str
    """Twelve hexadecimal digits over card and files: another file, another fingerprint."""

    @property
    def model(self) -> str:
        """What names the model in answers and in cache keys: `name@fingerprint`."""
        return f"{self.card.name}@{self.fingerprint}"

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.folder / self.card.model_file

    def tokenizer(self) -> BundleTokenizer:
        """Load the tokenizer."""
        return BundleTokenizer(self.folder / self.card.tokenizer_file, self.card.max_length)


def load_bundle(source: str | Path, *, model_file: str | None = None) -> Bundle:
    """Find and verify a bundle.

    source: a folder, in either layout, or the id of a repository on the Hugging Face hub.
    model_file: which ONNX file of a published model, such as `onnx/model_qint8_avx512_vnni.onnx`.
    Reads every byte of every file once. Raises BundleError.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = fetch_repository(str(source))
    if (folder / CARD_FILE).exists() or not is_published(folder):
        card = read_card(folder)
    else:
        card = card_of_published(folder, model_file)
    for name, why in (
        (card.model_file, "it holds the model"),
        (card.tokenizer_file, "it splits text into tokens"),
        *((name, "the card lists it") for name in card.checksums),
    ):
        if not (folder / name).is_file():
            raise BundleFileMissingError(folder / name, why)
    sums = {name: _checksum(folder / name) for name in _files_of(card)}
    for name, expected in card.checksums.items():
        if sums[name] != expected:
            raise BundleDamagedError(folder / name, expected, sums[name])
    return Bundle(folder, card, _fingerprint(card, sums))


def _files_of(card: BundleCard) -> list[str]:
    return sorted({card.model_file, card.tokenizer_file, *card.checksums})


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(card: BundleCard, sums: dict[str, str]) -> str:
    """Digest what decides the vectors: the files, and how the card says to use them."""
    ignored = {"checksums", "agreement", "licence", "source", "modality"}
    # A field that came later changes no bundle that does not use it.
    ignored |= {"passage_tokens"} if card.passage_tokens is None else set()
    decisive = card.model_dump_json(exclude=ignored)
    digest = hashlib.sha256(decisive.encode())
    for name in (card.model_file, card.tokenizer_file):
        digest.update(sums[name].encode())
    return digest.hexdigest()[:12]
