"""A model's folder: load it, verify it, tokenise for it, run it within a thread budget."""

from shoal.bundle.affinity import affinities
from shoal.bundle.blend import blend_scores
from shoal.bundle.card import BlendCard, BundleCard
from shoal.bundle.encoder import EncoderModel, Purpose
from shoal.bundle.errors import (
    BundleDamagedError,
    BundleError,
    BundleFileMissingError,
    BundleInvalidError,
    DeviceUnavailableError,
)
from shoal.bundle.loading import Bundle, load_bundle
from shoal.bundle.pairs import PairReader, TokenPair
from shoal.bundle.reranker import RerankerModel
from shoal.bundle.tokens import BundleTokenizer

__all__ = [
    "BlendCard",
    "Bundle",
    "BundleCard",
    "BundleDamagedError",
    "BundleError",
    "BundleFileMissingError",
    "BundleInvalidError",
    "BundleTokenizer",
    "DeviceUnavailableError",
    "EncoderModel",
    "PairReader",
    "Purpose",
    "RerankerModel",
    "TokenPair",
    "affinities",
    "blend_scores",
    "load_bundle",
]
